package aiguardtest

import (
	"net/http"
	"slices"
)

// Fault names one failure of a provider or of the network: a row of the table in the package documentation. Its text is
// the group and the name, such as "stream/only-pings", which is suitable as the name of a subtest.
//
// Server.Play applies a fault to every request. Fault.Reply applies it to a single request:
// fake.Enqueue(aiguardtest.FaultReset.Reply()). A fault has the form of the request's API.
type Fault string

// Faults of the connection.
const (
	FaultRefused           Fault = "connection/refused"
	FaultTLSStall          Fault = "connection/tls-stall"
	FaultNeverRead         Fault = "connection/never-read"
	FaultEOF               Fault = "connection/eof"
	FaultReset             Fault = "connection/reset"
	FaultStaleKeepAlive    Fault = "connection/stale-keep-alive"
	FaultGoesDark          Fault = "connection/goes-dark"
	FaultRedirect301       Fault = "connection/redirect-301"
	FaultRedirect302       Fault = "connection/redirect-302"
	FaultRedirect307       Fault = "connection/redirect-307"
	FaultRedirect308       Fault = "connection/redirect-308"
	FaultRedirectHost      Fault = "connection/redirect-host"
	FaultHugeHeaders       Fault = "connection/huge-headers"
	FaultManyHeaders       Fault = "connection/many-headers"
	FaultEndlessEarlyHints Fault = "connection/endless-early-hints"
)

// Faults of answers that are not streams. They are sent on every endpoint.
const (
	FaultNoHeaders       Fault = "answer/no-headers"
	FaultHeadersOnly     Fault = "answer/headers-only"
	FaultByteASecond     Fault = "answer/byte-a-second"
	FaultStalledError429 Fault = "answer/stalled-error-429"
	FaultStalledError500 Fault = "answer/stalled-error-500"
	FaultHugeAnswer      Fault = "answer/huge"
	FaultManyObjects     Fault = "answer/many-objects"
	FaultDeepNesting     Fault = "answer/deep-nesting"
	FaultGzipBomb        Fault = "answer/gzip-bomb"
	FaultGzipBombError   Fault = "answer/gzip-bomb-error"
	FaultHugeError       Fault = "answer/huge-error"
	FaultTruncatedJSON   Fault = "answer/truncated-json"
	FaultCutAnswer       Fault = "answer/cut"
	FaultResetAnswer     Fault = "answer/reset"
	FaultErrorInOK       Fault = "answer/error-in-200"
	FaultNull            Fault = "answer/null"
	FaultNoChoices       Fault = "answer/no-choices"
	FaultEmptyBody       Fault = "answer/empty-body"
	FaultNoContent       Fault = "answer/no-content-204"
	FaultHTML            Fault = "answer/html-200"
	FaultWrongType       Fault = "answer/wrong-content-type"
	FaultTrailingBytes   Fault = "answer/trailing-bytes"
	FaultUndrained       Fault = "answer/undrained"
	FaultErrorText       Fault = "answer/error-text-500"
	FaultHTML502         Fault = "answer/html-502"
	FaultHTML504         Fault = "answer/html-504"
	FaultNullCode        Fault = "answer/null-code"
	FaultNumericCode     Fault = "answer/numeric-code"
	FaultFailedResponse  Fault = "answer/failed-response"
)

// Faults of streams. They are sent as streams of the API (OpenAI: of chat), on every endpoint and even if no stream was
// requested.
const (
	FaultStreamNoEvent           Fault = "stream/no-event"
	FaultStreamSilence           Fault = "stream/silence"
	FaultStreamOnlyPings         Fault = "stream/only-pings"
	FaultStreamManyPings         Fault = "stream/many-pings"
	FaultStreamNeverEnds         Fault = "stream/never-ends"
	FaultStreamLong              Fault = "stream/long"
	FaultStreamHugeLine          Fault = "stream/huge-line"
	FaultStreamEndlessLine       Fault = "stream/endless-line"
	FaultStreamHugeComments      Fault = "stream/huge-comments"
	FaultStreamNoFinish          Fault = "stream/no-finish"
	FaultStreamNoFinishNoLF      Fault = "stream/no-finish-no-newline"
	FaultStreamNoDone            Fault = "stream/no-done"
	FaultStreamNoDoneHeldOpen    Fault = "stream/no-done-held-open"
	FaultStreamError             Fault = "stream/error"
	FaultStreamErrorOddSpacing   Fault = "stream/error-odd-spacing"
	FaultStreamErrorHeldOpen     Fault = "stream/error-held-open"
	FaultStreamErrorAfterPing    Fault = "stream/error-after-ping"
	FaultStreamErrorEvent        Fault = "stream/error-event"
	FaultStreamMalformed         Fault = "stream/malformed"
	FaultStreamAnsweredJSON      Fault = "stream/answered-json"
	FaultStreamAnsweredHTML      Fault = "stream/answered-html"
	FaultStreamAnsweredError     Fault = "stream/answered-error"
	FaultStreamCut               Fault = "stream/cut"
	FaultStreamReset             Fault = "stream/reset"
	FaultStreamOpenedThenNothing Fault = "stream/opened-then-nothing"
	FaultStreamManyObjects       Fault = "stream/many-objects"
)

// Refusals.
const (
	FaultRetryAfter         Fault = "refusal/retry-after"
	FaultRetryAfterDate     Fault = "refusal/retry-after-date"
	FaultRetryAfterMS       Fault = "refusal/retry-after-ms"
	FaultXMSRetryAfterMS    Fault = "refusal/x-ms-retry-after-ms"
	FaultRetryAfterLong     Fault = "refusal/retry-after-long"
	FaultRetryAfterAbsurd   Fault = "refusal/retry-after-absurd"
	FaultRetryAfterNegative Fault = "refusal/retry-after-negative"
	FaultRetryAfterGarbage  Fault = "refusal/retry-after-garbage"
	FaultRetryAfterNaN      Fault = "refusal/retry-after-nan"
	FaultInsufficientQuota  Fault = "refusal/insufficient-quota"
	FaultBillingNotActive   Fault = "refusal/billing-not-active"
	FaultSpendLimit         Fault = "refusal/project-spend-limit"
	FaultCreditExhausted    Fault = "refusal/credit-exhausted"
	FaultSlowDown           Fault = "refusal/slow-down"
	FaultPromptTooLong      Fault = "refusal/prompt-too-long"
	FaultContentPolicy      Fault = "refusal/content-policy"
	FaultStatus401          Fault = "refusal/401"
	FaultStatus403          Fault = "refusal/403"
	FaultStatus408          Fault = "refusal/408"
	FaultStatus409          Fault = "refusal/409"
	FaultStatus500          Fault = "refusal/500"
	FaultStatus502          Fault = "refusal/502"
	FaultStatus503          Fault = "refusal/503"
	FaultStatus504          Fault = "refusal/504"
	FaultStatus529          Fault = "refusal/529"
)

// faultRow is a row of the table. It returns a reply that plays the fault, possibly around a good answer. It is nil for
// faults below HTTP.
type faultRow struct {
	fault Fault
	play  func(good *answer) Reply
	doc   string
}

// always is a fault that is the same in every API.
func always(reply Reply) func(*answer) Reply {
	return func(*answer) Reply { return reply }
}

var faultTable = slices.Concat(connectionFaults(), answerFaults(), streamFaults(), refusalFaults())

// Faults returns all faults, in the order of the table.
func Faults() []Fault {
	all := make([]Fault, len(faultTable))
	for i, row := range faultTable {
		all[i] = row.fault
	}
	return all
}

func (f Fault) row() (faultRow, bool) {
	for _, row := range faultTable {
		if row.fault == f {
			return row, true
		}
	}
	return faultRow{}, false
}

// Reply returns the fault as a reply, for example for Enqueue, Then and FailFirst. It panics if the fault does not
// exist or happens below HTTP (see Connection). Only Server.Play can play faults below HTTP.
func (f Fault) Reply() Reply {
	row, ok := f.row()
	switch {
	case !ok:
		panic("aiguardtest: unknown fault " + string(f))
	case row.play == nil:
		panic("aiguardtest: " + string(f) + " happens below HTTP: use Server.Play, not Reply")
	}
	return func(w http.ResponseWriter, r *Request) {
		row.play(newAnswer(w, r, hello, 1))(w, r)
	}
}

// Connection reports whether the fault happens below HTTP or before a request is read. Only Server.Play can play such a
// fault.
func (f Fault) Connection() bool {
	row, ok := f.row()
	return ok && row.play == nil
}

// String returns the fault's name.
func (f Fault) String() string { return string(f) }

// Doc describes the fault in one line. It returns "" if the fault does not exist.
func (f Fault) Doc() string {
	row, _ := f.row()
	return row.doc
}
