package aiguard

// wire holds the extra state of a call over HTTP.
type wire struct {
	tokens         float64 // expected tokens of a request
	usage          Usage   // from the answer
	prompt, answer int64   // bytes sent and received by the last attempt
	race           *race   // the race of the attempt; nil: none
	estimate       estimate
	unread         *outgoing // whose body has to be read for the estimate; nil: it has been, or need not be
}

// takeUsage returns the tokens that the answer reported, and how many of them were not expected. It forgets them.
func (w *wire) takeUsage() (used int64, more float64) {
	if used = w.usage.Input + w.usage.Output; w.usage.Estimated {
		used = 0
	}
	if used > 0 {
		more = float64(used) - w.tokens
	}
	w.usage = Usage{}
	return used, more
}

// expected returns the expected tokens of a request; 0: not a call over HTTP.
func (w *wire) expected() float64 {
	if w == nil {
		return 0
	}
	return w.tokens
}

// moved returns the bytes that the last attempt sent and received.
func (w *wire) moved() (prompt, answer int64) {
	if w == nil {
		return 0, 0
	}
	return w.prompt, w.answer
}

// answered records a complete answer of so many bytes. Its length replaces a usage that it does not report.
func (w *wire) answered(u Usage, bytes int64, whole bool) {
	if u.Input+u.Output == 0 {
		u.Output, u.Estimated = bytes/bytesPerToken, true
	}
	w.usage, w.estimate.complete, w.estimate.whole = u, true, whole
}
