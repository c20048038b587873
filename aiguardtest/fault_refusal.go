package aiguardtest

import (
	"net/http"
	"time"
)

func refusalFaults() []faultRow {
	limited := func(header, value string) Reply {
		return Error(http.StatusTooManyRequests, "rate_limit_exceeded", header, value)
	}
	refused := func(code string) Reply { return Error(http.StatusTooManyRequests, code) }
	return []faultRow{
		{FaultRetryAfter, limited("Retry-After", "1"), "429 with Retry-After: 1"},
		{FaultRetryAfterDate, retryAfterDate, "429 with Retry-After: a date, one to two seconds from now"},
		{FaultRetryAfterMS, limited("Retry-After-Ms", "500"), "429 with retry-after-ms: 500"},
		{FaultXMSRetryAfterMS, limited("X-Ms-Retry-After-Ms", "500"), "429 with x-ms-retry-after-ms: 500"},
		{FaultRetryAfterLong, limited("Retry-After", "3600"), "429 with Retry-After: 3600"},
		{FaultRetryAfterAbsurd, limited("Retry-After", "1000000000"), "429 with Retry-After: 1000000000, 31 years"},
		{FaultRetryAfterNegative, limited("Retry-After", "-5"), "429 with Retry-After: -5"},
		{FaultRetryAfterGarbage, limited("Retry-After", "soon; perhaps"), "429 with Retry-After: soon; perhaps"},
		{FaultRetryAfterNaN, limited("Retry-After", "NaN"), "429 with Retry-After: NaN"},
		{FaultInsufficientQuota, refused("insufficient_quota"), "429 insufficient_quota"},
		{FaultBillingNotActive, refused("billing_not_active"), "429 billing_not_active"},
		{FaultSpendLimit, refused("project_spend_limit_exceeded"), "429 project_spend_limit_exceeded"},
		{FaultCreditExhausted, refused("credit_balance_exhausted"), "429 credit_balance_exhausted"},
		{FaultSlowDown, refused("slow_down"), "429 slow_down"},
		{FaultPromptTooLong, Error(http.StatusBadRequest, "context_length_exceeded"), "400 context_length_exceeded"},
		{FaultContentPolicy, Error(http.StatusBadRequest, "content_policy_violation"), "400 content_policy_violation"},
		{FaultStatus401, Error(http.StatusUnauthorized, "invalid_api_key"), "401 invalid_api_key"},
		{FaultStatus403, Error(http.StatusForbidden, "unsupported_country_region_territory"), "403 unsupported_country_region_territory"},
		{FaultStatus408, Error(http.StatusRequestTimeout, ""), "408"},
		{FaultStatus409, Error(http.StatusConflict, ""), "409"},
		{FaultStatus500, Error(http.StatusInternalServerError, ""), "500"},
		{FaultStatus502, Error(http.StatusBadGateway, ""), "502"},
		{FaultStatus503, Error(http.StatusServiceUnavailable, ""), "503"},
		{FaultStatus504, Error(http.StatusGatewayTimeout, ""), "504"},
		{FaultStatus529, Error(529, ""), "529, overloaded"},
	}
}

func retryAfterDate(w http.ResponseWriter, r *Request) {
	// A date has no fractions of a second: one from now might be now.
	date := time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat)
	Error(http.StatusTooManyRequests, "rate_limit_exceeded", "Retry-After", date)(w, r)
}
