package dialect

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Each row has the error of a provider and its class.
func TestRefusalsAreClassifiedInEveryDialect(t *testing.T) {
	for _, tc := range []struct {
		status int
		body   string
		want   Class
	}{
		// OpenAI's form, which many providers use
		{429, `{"error":{"code":"insufficient_quota","type":"insufficient_quota","message":"x"}}`, Quota},
		{429, `{"error":{"code":"billing_hard_limit_reached"}}`, Quota},
		{429, `{"error":{"code":"project_spend_limit_exceeded"}}`, Quota},
		{429, `{"error":{"type":"exceeded_current_quota_error","message":"x"}}`, Quota},
		{403, `{"error":{"code":"insufficient_user_quota","type":"new_api_error"}}`, Quota},
		{403, `{"error":{"code":"AccountOverdueError"}}`, Quota},
		{400, `{"error":{"code":"Arrearage"}}`, Quota},
		{400, `{"code":"Arrearage","message":"x"}`, Quota},
		{429, `{"error":{"code":"1113","message":"x"}}`, Quota},
		{0, `{"base_resp":{"status_code":1008,"status_msg":"insufficient balance"}}`, Quota},
		{402, `{"error":{"message":"Insufficient Balance","type":"unknown_error","code":"invalid_request_error"}}`, Quota},
		{429, `{"error":{"type":"usage_limit_reached","resets_in_seconds":400000}}`, Quota},
		{429, `{"error":{"type":"usage_limit_reached","resets_in_seconds":60}}`, RateLimited},
		{429, `{"error":{"code":"rate_limit_exceeded","type":"tokens","message":"Rate limit reached: Limit 30000, Used 29000, Requested 2000."}}`, RateLimited},
		{429, `{"error":{"code":"rate_limit_exceeded","type":"tokens","message":"Request too large: Limit 30000, Requested 36278."}}`, PromptTooLarge},
		{429, `{"error":{"message":"Limit 30,000, Requested 36,278"}}`, PromptTooLarge},
		{413, `{"error":{"code":"rate_limit_exceeded","type":"tokens","message":"Request too large"}}`, PromptTooLarge},
		{413, `{"message":"x"}`, PromptTooLarge},
		{400, `{"error":{"code":"context_length_exceeded"}}`, PromptTooLarge},
		{400, `{"error":{"code":400,"type":"exceed_context_size_error","message":"x"}}`, PromptTooLarge},
		{500, `{"error":{"code":500,"type":"exceed_context_size_error","message":"x"}}`, PromptTooLarge},
		{400, `{"error":{"type":"too_many_prompt_tokens","message":"x"}}`, PromptTooLarge},
		{400, `{"object":"error","message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError","code":400}`, PromptTooLarge},
		{400, `{"error":{"message":"This endpoint's maximum context length is 131072 tokens","code":400}}`, PromptTooLarge},
		{404, `{"error":{"code":"model_not_found"}}`, Misconfigured},
		{404, `{"error":{"code":"DeploymentNotFound"}}`, Misconfigured},
		{400, `{"error":{"code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"}}}`, ContentPolicy},
		{400, `{"error":{"innererror":{"code":"ResponsibleAIPolicyViolation"}}}`, ContentPolicy},
		{403, `{"error":{"code":403,"message":"Input requires moderation on OpenAI. It was flagged for violence.","metadata":{"reasons":["violence"]}}}`, ContentPolicy},
		{404, `{"error":{"message":"The model omni-moderation does not exist"}}`, ""},
		{400, `{"error":{"type":"invalid_request_error","message":"x"}}`, ""},
		{400, `{"error":{"type":"server_error","message":"x"}}`, ""},
		{401, `{"error":{"code":"invalid_api_key"}}`, Unauthorized},

		// Anthropic
		{400, `{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API."}}`, Quota},
		{400, `{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}`, PromptTooLarge},
		{413, `{"type":"error","error":{"type":"request_too_large","message":"x"}}`, PromptTooLarge},
		{529, `{"type":"error","error":{"type":"overloaded_error","message":"x"}}`, Unavailable},
		{404, `{"type":"error","error":{"type":"not_found_error","message":"model: x"}}`, Misconfigured},
		{403, `{"type":"error","error":{"type":"permission_error","message":"x"}}`, Unauthorized},
		{400, `{"type":"error","error":{"type":"invalid_request_error","message":"You have reached your specified API usage limits."}}`, Quota},
		{429, `{"type":"error","error":{"type":"rate_limit_error","message":"Extra usage is required for long context requests."}}`, PromptTooLarge},

		{403, `{"code":"AllocationQuota.FreeTierOnly","message":"The free tier of the model has been exhausted."}`, Quota},
		{403, `{"error":{"message":"Key limit exceeded (total limit).","code":403}}`, Quota},
		{400, `{"error":{"message":"Input length 140000 exceeds the maximum allowed token count 131072","type":"invalid_request_error"}}`, PromptTooLarge},
		{400, `{"object":"error","message":"The input (140000 tokens) is longer than the model's context length (131072 tokens).","code":400}`, PromptTooLarge},
		{400, `{"error":{"type":"invalid_request_error","code":"context_window_exceeded"}}`, PromptTooLarge},
		{400, `{"error":{"code":"model_decommissioned","type":"invalid_request_error"}}`, Misconfigured},
		{400, `{"error":{"code":"model_not_supported","type":"invalid_request_error"}}`, Misconfigured},

		// Gemini
		{400, `{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":[{"@type":"t","reason":"API_KEY_INVALID"}]}}`, Unauthorized},
		{400, `{"error":{"code":400,"message":"The input token count (1200000) exceeds the maximum number of tokens allowed","status":"INVALID_ARGUMENT"}}`, PromptTooLarge},
		{429, `{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED"}}`, RateLimited},
		{429, `{"error":{"code":429,"message":"Your prepayment credits are depleted.","status":"RESOURCE_EXHAUSTED"}}`, Quota},
		{404, `{"error":{"code":404,"message":"models/x is not found","status":"NOT_FOUND"}}`, Misconfigured},
		{503, `{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}`, Unavailable},
		{400, `{"error":{"code":400,"message":"x","status":"INVALID_ARGUMENT"}}`, ""},

		// Servers with codes and words of their own
		{401, `{"error":{"code":"1002","message":"Authentication Token invalid"}}`, ""},
		{401, `{"error":{"code":"1001","message":"x"}}`, ""},
		{429, `{"error":{"code":"1308","message":"Usage limit reached for 5 hour."}}`, Quota},
		{400, `{"error":{"code":"1211","message":"Unknown Model"}}`, Misconfigured},
		{0, `{"base_resp":{"status_code":1002,"status_msg":"rate limit"}}`, RateLimited},
		{0, `{"base_resp":{"status_code":1000,"status_msg":"unknown error"}}`, Unavailable},
		{0, `{"base_resp":{"status_code":2013,"status_msg":"invalid params"}}`, Rejected},
		{0, `{"base_resp":{"status_code":2013,"status_msg":"invalid params, context window exceeds limit"}}`, PromptTooLarge},
		{400, `{"type":"error","error":{"type":"bad_request_error","message":"invalid params, context window exceeds limit (2013)","http_code":"400"}}`, PromptTooLarge},
		{400, `{"code":"Client specified an invalid argument","error":"This model's maximum prompt length is 131072 but the request contains 136973 tokens."}`, PromptTooLarge},
		{429, `{"code":"Some resource has been exhausted","error":"Your team x has either used all available credits or reached its monthly spending limit."}`, Quota},
		{403, `{"code":"x","error":"Your newly created team doesn't have any credits yet."}`, Quota},
		{400, `{"code":"Client specified an invalid argument","error":"Incorrect API key provided: xa***aa."}`, Unauthorized},
		{412, `{"error":{"message":"Account x is suspended, possibly due to reaching the monthly spending limit","code":"PRECONDITION_FAILED"}}`, Quota},
		{400, `{"error":{"message":"Budget has been exceeded! Current cost: 0.2, Max budget: 0.1","type":"auth_error","param":null,"code":400}}`, Quota},
		{429, `{"error":{"message":"User x, exceeded budget for model=m","type":"budget_exceeded","code":"429"}}`, Quota},
		{400, `{"error":{"message":"litellm.ContextWindowExceededError: x","type":null,"code":"400"}}`, PromptTooLarge},
		{400, `{"error":{"message":"Invalid request: Your request exceeded model token limit: 262144 (requested: 269030)","type":"invalid_request_error"}}`, PromptTooLarge},
		{400, `{"error":{"code":"invalid_parameter_error","message":"<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 204800]","type":"invalid_request_error"}}`, PromptTooLarge},
		{400, `{"error":"The number of tokens to keep from the initial prompt is greater than the context length."}`, PromptTooLarge},
		{422, "{\"error\":\"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000\",\"error_type\":\"validation\"}", PromptTooLarge},
		{400, `{"error":{"message":"Requested 338405 tokens, max 300000 tokens per request","type":"max_tokens_per_request","code":"max_tokens_per_request"}}`, PromptTooLarge},
		{498, `{"error":{"message":"x","type":"capacity_exceeded","code":"capacity_exceeded"}}`, Unavailable},
		{400, `{"object":"error","message":"Invalid model: m","type":"invalid_model","param":null,"code":"1500"}`, Misconfigured},
		{400, `{"error":{"message":"x/y is not a valid model ID","code":400}}`, Misconfigured},
		{400, `{"error":{"message":"Model Not Exist","type":"invalid_request_error","code":"invalid_request_error"}}`, Misconfigured},
		{400, `{"error":{"message":"/chat/completions: Invalid model name passed in model=m.","type":"None","code":"400"}}`, Misconfigured},
		{0, `{"error":"Unexpected endpoint or method. (POST /chat/completions)"}`, Misconfigured},
		{400, `{"error":{"message":"Content Exists Risk","type":"invalid_request_error","code":"invalid_request_error"}}`, ContentPolicy},
		{400, `{"type":"error","error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"}}`, ContentPolicy},
		{400, `{"type":"error","error":{"type":"invalid_request_error","message":"This organization has been disabled."}}`, Unauthorized},
		{400, `{"error":{"code":400,"message":"User location is not supported for the API use.","status":"FAILED_PRECONDITION"}}`, Unauthorized},
		{400, `{"error":{"code":400,"message":"Request payload size exceeds the limit: 20971520 bytes.","status":"INVALID_ARGUMENT"}}`, PromptTooLarge},

		// Bedrock, Cohere, Ollama
		{429, `{"__type":"ThrottlingException","message":"Too many tokens, please wait before trying again."}`, RateLimited},
		{429, `{"message":"Too many tokens, please wait before trying again."}`, ""},
		{429, `{"__type":"ThrottlingException","message":"Too many tokens per day, please wait before trying again."}`, Quota},
		{400, `{"__type":"ValidationException","message":"The provided model identifier is invalid."}`, Misconfigured},
		{400, `{"message":"Malformed input request: expected maxLength: 2048, actual: 3000, please reformat your input and try again."}`, PromptTooLarge},
		{429, `{"message":"You are using a Trial key, which is limited to 1000 API calls / month."}`, Quota},
		{400, `{"message":"Input is too long for requested model."}`, PromptTooLarge},
		{429, `{"__type":"com.amazon.coral.service#ThrottlingException","message":"x"}`, RateLimited},
		{400, `{"message":"too many tokens: total number of tokens in the prompt exceeds the limit"}`, PromptTooLarge},
		{400, `{"code":"TOO_MANY_TOKENS"}`, PromptTooLarge},
		{400, `{"error":"the input length exceeds the context length"}`, PromptTooLarge},
		{404, `{"error":"model \"x\" not found, try pulling it first"}`, Misconfigured},
	} {
		f, _ := Refusal([]byte(tc.body))
		require.Equal(t, tc.want, Classify(tc.status, f), "%d %s", tc.status, tc.body)
	}
}

func TestWaitIsFoundInTheBody(t *testing.T) {
	for body, want := range map[string]time.Duration{
		`{"error":{"details":[{"retryDelay":"30s"}],"status":"RESOURCE_EXHAUSTED"}}`: 30 * time.Second,
		`{"error":{"details":[{"retryDelay":"1.5s"}],"code":1}}`:                     1500 * time.Millisecond,
		`{"error":{"details":[{"retryDelay":"-1s"}],"code":1}}`:                      0,
		`{"error":{"details":[{"retryDelay":"soon"}],"code":1}}`:                     0,
		`{"error":{"code":1,"resets_in_seconds":90}}`:                                90 * time.Second,
		`{"error":{"code":1,"retry_after_ms":250}}`:                                  250 * time.Millisecond,
		`{"error":{"code":1},"retry_after":3}`:                                       3 * time.Second,
		`{"message":"x","retry_after":"4"}`:                                          4 * time.Second,
		`{"error":{"code":1,"retry_after":1e300}}`:                                   0,
		`{"error":{"code":1,"retry_after":"NaN"}}`:                                   0,
		`{"error":{"code":1,"retry_after":{}}}`:                                      0,
	} {
		f, _ := Refusal([]byte(body))
		require.Equal(t, want, f.RetryAfter, body)
	}
}

// The name "error" alone has no class. The data of the event determines it.
func TestErrorEventIsClassifiedByItsData(t *testing.T) {
	for _, tc := range []struct {
		path, name, data string
		want             Class
	}{
		{"/v1/messages", "error", `{"type":"error","error":{"type":"rate_limit_error","message":"x"}}`, RateLimited},
		{"/v1/messages", "error", `{"type":"error","error":{"type":"authentication_error","message":"x"}}`, Unauthorized},
		{"/v1/messages", "error", `{"type":"error","error":{"type":"overloaded_error","message":"x"}}`, Unavailable},
		{"/v1/chat/completions", "error", `{"error":{"type":"rate_limit_error","message":"x","code":null}}`, RateLimited},
		{"/v1/chat/completions", "error", `{"message":"x"}`, ""},
		{"/model/m/converse-stream", "throttlingException", `{"message":"x"}`, RateLimited},
		{"/model/m/converse-stream", "throttlingException", `{"message":"Too many tokens, please wait before trying again."}`, RateLimited},
		{"/model/m/converse-stream", "validationException", `{"message":"x"}`, Rejected},
		{"/model/m/converse-stream", "validationException", `{"message":"Input is too long for requested model."}`, PromptTooLarge},
	} {
		s := Of("POST", tc.path, "").Follow()
		f, failed := s.Event([]byte(tc.name), []byte(tc.data))
		require.True(t, failed, tc.data)
		require.Equal(t, tc.want, Classify(0, f), tc.data)
	}
}
