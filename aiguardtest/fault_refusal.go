package aiguardtest

import (
	"net/http"
	"time"
)

func refusalFaults() []faultRow {
	limited := func(fault Fault, header, value string) faultRow {
		reply := func(a *answer) Reply { return a.refuse(a.limited, header, value) }
		return faultRow{fault, reply, "429 with " + header + ": " + value}
	}
	refused := func(fault Fault, status int, doc string) faultRow {
		reply := func(a *answer) Reply { return a.refuse(a.refusal(fault, status)) }
		return faultRow{fault, reply, doc}
	}
	return []faultRow{
		limited(FaultRetryAfter, "Retry-After", "1"),
		{FaultRetryAfterDate, retryAfterDate, "429 with Retry-After: a date, one to two seconds from now"},
		limited(FaultRetryAfterMS, "retry-after-ms", "500"),
		limited(FaultXMSRetryAfterMS, "x-ms-retry-after-ms", "500"),
		limited(FaultRetryAfterLong, "Retry-After", "3600"),
		{FaultRetryAfterAbsurd, limited("", "Retry-After", "1000000000").play, "429 with Retry-After: 1000000000, 31 years"},
		limited(FaultRetryAfterNegative, "Retry-After", "-5"),
		limited(FaultRetryAfterGarbage, "Retry-After", "soon; perhaps"),
		limited(FaultRetryAfterNaN, "Retry-After", "NaN"),
		refused(FaultInsufficientQuota, 429, "429 insufficient_quota"),
		refused(FaultBillingNotActive, 429, "429 billing_not_active"),
		refused(FaultSpendLimit, 429, "429 project_spend_limit_exceeded"),
		refused(FaultCreditExhausted, 429, "429 credit_balance_exhausted"),
		refused(FaultSlowDown, 429, "429 slow_down"),
		refused(FaultPromptTooLong, 400, "400 context_length_exceeded"),
		refused(FaultContentPolicy, 400, "400 content_policy_violation"),
		refused(FaultStatus401, 401, "401 invalid_api_key"),
		refused(FaultStatus403, 403, "403 unsupported_country_region_territory"),
		refused(FaultStatus408, 408, "408"),
		refused(FaultStatus409, 409, "409"),
		refused(FaultStatus500, 500, "500"),
		refused(FaultStatus502, 502, "502"),
		refused(FaultStatus503, 503, "503"),
		refused(FaultStatus504, 504, "504"),
		refused(FaultStatus529, 529, "529, overloaded"),
	}
}

// refuse answers with the error r in the API's form.
func (d *dialect) refuse(r refusal, headers ...string) Reply {
	return JSON(r.status, d.body(d.words(r)), headers...)
}

func retryAfterDate(a *answer) Reply {
	// A date has no fractions of a second, so one second from now could be now.
	date := time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat)
	return a.refuse(a.limited, "Retry-After", date)
}
