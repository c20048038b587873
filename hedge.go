package aiguard

// Hedge starts a second attempt of a slow request. The zero Hedge does not.
type Hedge struct {
	// Quantile of the route's own times to the first event or answer, such as 0.95: a request that has taken longer is sent
	// a second time, if it creates nothing at the provider, a slot is free, nobody waits, the route is healthy and its
	// retry budget allows it. 0: never
	Quantile float64
}
