package line

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

const unbounded = 1 << 40

// bench is a line with what it takes to drive it.
type bench struct {
	Line[int]
	routes  []*Route[int]
	tenants []*Tenant[int]
	all     []*Waiter[int]
	now     int64
}

func newBench(capacity int64, routes, tenants int) *bench {
	b := &bench{}
	b.Capacity, b.MaxBackground = capacity, -1
	for range routes {
		r := &Route[int]{}
		b.SetRoom(r, unbounded)
		b.routes = append(b.routes, r)
	}
	for range tenants {
		b.tenants = append(b.tenants, &Tenant[int]{})
	}
	return b
}

// join puts a call of weight 1 in line; its value is the number of those before it.
func (b *bench) join(route, tenant int, p Priority) *Waiter[int] {
	w := &Waiter[int]{Value: len(b.all), Weight: 1}
	b.all = append(b.all, w)
	b.Join(w, b.routes[route], b.tenants[tenant], p, b.now, 1)
	return w
}

// next admits who is next, and gives the slot back at once. -1: nobody.
func (b *bench) next() int {
	w := b.First(b.now)
	if w == nil {
		return -1
	}
	f := w.flow
	if !b.Admit(w, 1) {
		return -1
	}
	b.Release(f.tenant, f.priority, w.Weight, 0)
	return w.Value
}

func (b *bench) order() (order []int) {
	for v := b.next(); v >= 0; v = b.next() {
		order = append(order, v)
	}
	return order
}

func TestOneTenantIsServedInTheOrderOfArrival(t *testing.T) {
	b := newBench(1, 2, 1)
	for i := range 20 {
		b.join(i%2, 0, Normal)
	}
	want := make([]int, 20)
	for i := range want {
		want[i] = i
	}
	require.Equal(t, want, b.order())
}

func TestHigherPriorityGoesFirstAndOneInTenIsTheLongestWaiter(t *testing.T) {
	b := newBench(1, 1, 1)
	for range 4 {
		b.join(0, 0, Background) // 0 to 3
	}
	for range 4 {
		b.join(0, 0, Normal) // 4 to 7
	}
	for range 30 {
		b.join(0, 0, Critical) // 8 to 37
	}
	order := b.order()
	require.Equal(t, []int{8, 9, 10, 11, 12, 13, 14, 15, 16, 0, 17}, order[:11])
	require.Equal(t, 1, order[19])
	require.Equal(t, []int{4, 5}, order[33:35], "then the next priority")
}

func TestTenantThatHasReceivedLeastGoesFirst(t *testing.T) {
	b := newBench(1, 1, 3)
	for range 10 {
		b.join(0, 0, Normal) // 0 to 9
	}
	b.join(0, 1, Normal) // 10
	b.join(0, 2, Normal) // 11
	b.join(0, 1, Normal) // 12
	require.Equal(t, []int{0, 10, 11, 1, 12, 2, 3}, b.order()[:7])
}

// Who was away has no claim to what others have received meanwhile.
func TestTenantThatBecomesActiveStartsAtTheLevelOfTheOthers(t *testing.T) {
	b := newBench(1, 1, 2)
	for range 100 {
		require.True(t, b.Take(b.routes[0], b.tenants[0], Normal, 1, 1, b.now))
		b.Release(b.tenants[0], Normal, 1, 0)
	}
	for range 6 {
		b.join(0, 0, Normal) // 0 to 5
	}
	for range 6 {
		b.join(0, 1, Normal) // 6 to 11
	}
	order := b.order()
	ahead := slices.IndexFunc(order, func(v int) bool { return v < 6 })
	require.LessOrEqual(t, ahead, 2, "%v", order)
}

func TestLightTenantWaitsForItsOwnDemandAlone(t *testing.T) {
	b := newBench(1, 1, 2)
	for range 1000 {
		b.join(0, 0, Normal)
	}
	b.next()
	light := b.join(0, 1, Normal)
	for turn := range 3 {
		if b.next() == light.Value {
			require.LessOrEqual(t, turn, 1)
			return
		}
	}
	t.Fatal("the light tenant waits behind the heavy one")
}

func TestRouteWithoutRoomHoldsNobodyUp(t *testing.T) {
	b := newBench(5, 2, 1)
	b.SetRoom(b.routes[0], 0)
	for range 10 {
		b.join(0, 0, Critical)
	}
	require.True(t, b.Take(b.routes[1], b.tenants[0], Normal, 1, 1, b.now))
	last := b.join(1, 0, Normal)
	require.Equal(t, last.Value, b.next())
	require.Equal(t, -1, b.next())
	require.Zero(t, b.Ready())
	b.SetRoom(b.routes[0], unbounded)
	require.Equal(t, 10, b.Ready())
	require.Zero(t, b.next())
}

func TestSmallWeightDoesNotOvertakeALargeOne(t *testing.T) {
	b := newBench(4, 1, 1)
	require.True(t, b.Take(b.routes[0], b.tenants[0], Normal, 2, 1, 0))
	large := &Waiter[int]{Weight: 3}
	b.Join(large, b.routes[0], b.tenants[0], Normal, 0, 4)
	b.join(0, 0, Normal)
	require.Same(t, large, b.First(0))
	require.False(t, b.Admit(large, 1))
	require.False(t, b.Take(b.routes[0], b.tenants[0], Normal, 1, 1, 0))
	require.True(t, b.Take(b.routes[0], b.tenants[0], Critical, 1, 1, 0), "a higher priority may")
}

func TestBackgroundLeavesTheLastSlotFree(t *testing.T) {
	b := newBench(3, 1, 1)
	b.MaxBackground = 2
	take := func(p Priority) bool { return b.Take(b.routes[0], b.tenants[0], p, 1, 1, 0) }
	require.True(t, take(Background))
	require.True(t, take(Background))
	require.False(t, take(Background))
	b.join(0, 0, Background)
	require.True(t, take(Normal), "it is for the others")
	b.Release(b.tenants[0], Normal, 1, 0)
	require.Equal(t, -1, b.next())
	b.Release(b.tenants[0], Background, 1, 0)
	require.Zero(t, b.next())
}

func TestNewcomerDisplacesWhoHasLessRightToThePlace(t *testing.T) {
	b := newBench(1, 1, 3)
	for range 3 {
		b.join(0, 0, Normal) // 0 to 2
	}
	b.join(0, 1, Normal)     // 3
	b.join(0, 1, Background) // 4
	displaced := func(tenant int, p Priority) int {
		if w := b.Displaced(b.routes[0], b.tenants[tenant], p, 0); w != nil {
			return w.Value
		}
		return -1
	}
	require.Equal(t, 4, displaced(0, Normal), "the lowest priority")
	b.Leave(b.all[4])
	require.Equal(t, 2, displaced(2, Normal), "the newest of the tenant with most")
	require.Equal(t, 2, displaced(1, Normal))
	b.join(0, 1, Normal)
	require.Equal(t, -1, displaced(1, Normal), "two and three would become three and two")
	require.Equal(t, -1, displaced(0, Normal))
	require.Equal(t, 2, displaced(0, Critical))
}

func TestNewestGoesFirstInOverloadAndTheOldestGivesUp(t *testing.T) {
	b := newBench(1, 1, 1)
	b.Overload = 10
	for range 3 {
		b.join(0, 0, Normal)
	}
	require.Equal(t, -1, func() int {
		if w := b.Displaced(b.routes[0], b.tenants[0], Normal, b.now); w != nil {
			return w.Value
		}
		return -1
	}())
	b.now = 11
	require.Equal(t, 2, b.First(b.now).Value)
	require.Zero(t, b.Displaced(b.routes[0], b.tenants[0], Normal, b.now).Value)
	require.Equal(t, []int{2, 1, 0}, b.order())
	b.join(0, 0, Normal)
	b.join(0, 0, Normal)
	require.Equal(t, 3, b.next(), "calm again")
}

// The longest waiter's turn counts for heavy calls too: its route has room for it only after other calls have ended.
func TestHeavyCallDoesNotStarveUnderHigherPriority(t *testing.T) {
	b := newBench(2, 2, 1)
	take := func() { require.True(t, b.Take(b.routes[0], b.tenants[0], Critical, 1, 1, 0)) }
	take()
	take()
	room := func() { b.SetRoom(b.routes[0], b.Capacity-b.InFlight()) } // as a route's own limit, which equals the capacity
	heavy := &Waiter[int]{Value: -2, Weight: 2}
	room()
	b.Join(heavy, b.routes[0], b.tenants[0], Normal, 0, 2)
	for range 3 {
		b.join(0, 0, Critical)
	}
	for range 2 * turn {
		b.Release(b.tenants[0], Critical, 1, 0)
		room()
		for w := b.First(0); w != nil && b.Admit(w, 1); w = b.First(0) {
			if w == heavy {
				return
			}
			room()
			b.join(0, 0, Critical)
		}
	}
	t.Fatal("the heavy call is never admitted")
}

// The turn of a heavy call holds up its own route and no other.
func TestTurnOfAHeavyCallHoldsUpNoOtherRoute(t *testing.T) {
	b := newBench(5, 2, 1)
	b.SetRoom(b.routes[0], 1)
	heavy := &Waiter[int]{Value: -2, Weight: 2}
	b.Join(heavy, b.routes[0], b.tenants[0], Normal, 0, 2)
	for range 2 * turn {
		b.join(1, 0, Normal)
	}
	require.Len(t, b.order(), 2*turn)
	require.Equal(t, 1, b.Ready())
	require.False(t, b.Take(b.routes[0], b.tenants[0], Critical, 1, 1, 0), "its turn has come")
	require.True(t, b.Take(b.routes[1], b.tenants[0], Critical, 1, 1, 0))
	b.Leave(heavy)
	require.True(t, b.Take(b.routes[0], b.tenants[0], Normal, 1, 1, 0))
}

// A Background call that waits for MaxBackground does not take the turn of the longest waiter from those behind it.
func TestBackgroundCallThatMustWaitHidesNobody(t *testing.T) {
	b := newBench(2, 1, 1)
	b.MaxBackground = 1
	require.True(t, b.Take(b.routes[0], b.tenants[0], Background, 1, 1, 0))
	b.join(0, 0, Background)
	b.join(0, 0, Background)
	normal := b.join(0, 0, Normal)
	for i := range 2 * turn {
		b.join(0, 0, Critical)
		if b.next() == normal.Value {
			require.LessOrEqual(t, i, turn)
			return
		}
		b.join(0, 0, Critical)
	}
	t.Fatal("the call waits for ever")
}

// Calls that have waited for the end of a pause are no overload.
func TestPauseIsNoOverload(t *testing.T) {
	b := newBench(1, 1, 1)
	b.Overload = 10
	b.SetRoom(b.routes[0], 0)
	b.join(0, 0, Normal)
	b.join(0, 0, Normal)
	b.now = 100
	b.SetRoom(b.routes[0], unbounded)
	b.routes[0].Reopened(b.now, 100)
	require.Equal(t, []int{0, 1}, b.order())
}

// With d arrivals for each admission a waiter with k newer ones before it is served with probability d^-k.
func TestInOverloadWhoHasNoHopeIsToldSo(t *testing.T) {
	b := newBench(1, 1, 1)
	b.Overload = 10
	f := func() *flow[int] { return b.tenants[0].flows[0] }
	hopeless := 0
	for step := range 100 {
		b.now = int64(step)
		for range 20 {
			w := &Waiter[int]{Weight: 1}
			for n := b.Join(w, b.routes[0], b.tenants[0], Normal, b.now, 5); n > 0; n-- {
				b.Leave(w.Eldest())
				hopeless++
			}
		}
		b.next()
	}
	require.Greater(t, f().demand(), 20.)
	require.LessOrEqual(t, f().length, 3)
	require.Greater(t, hopeless, 1500)

	b.order()
	b.now += b.Overload + 1
	b.join(0, 0, Normal)
	b.join(0, 0, Normal)
	require.Equal(t, []int{0, 1}, b.order(), "that was long ago")
}

// A batch is a burst and no stream: it loses nobody, however long it takes.
func TestClosedBatchLosesNobodyInOverload(t *testing.T) {
	b := newBench(1, 1, 1)
	b.Overload = 10
	for range 1000 {
		w := &Waiter[int]{Weight: 1}
		require.Zero(t, b.Join(w, b.routes[0], b.tenants[0], Normal, 0, 5))
	}
	served := 0
	for step := range 2000 {
		b.now = int64(step * 5)
		if step == 3 || step == 500 { // one more, soon and late
			require.Zero(t, b.Join(&Waiter[int]{Weight: 1}, b.routes[0], b.tenants[0], Normal, b.now, 5))
		}
		if b.next() >= 0 {
			served++
		}
	}
	require.Equal(t, 1002, served)
}

// Against a model that has a list instead of every structure: the same is admitted, whatever happens.
func TestLineDoesWhatAListWouldDo(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		b := newBench(1+rng.Int64N(6), 1+rng.IntN(3), 1+rng.IntN(4))
		b.MaxBackground = rng.Int64N(b.Capacity+1) - 1
		if b.MaxBackground == 0 {
			b.MaxBackground = 1
		}
		m := &model{b: b, service: make([]float64, len(b.tenants)), due: map[int]*Waiter[int]{}}
		for range 300 {
			m.step(t, rng)
			m.counts(t)
		}
	}
}

type entry struct {
	w       *Waiter[int]
	r, t    int
	p       Priority
	arrival int
}

// model keeps those in line in a list, in the order in which they came, and looks at all of them each time.
type model struct {
	b        *bench
	list     []entry
	flight   []entry
	service  []float64
	virtual  float64
	since    int
	arrivals int
	due      map[int]*Waiter[int] // by route
}

func (m *model) step(t *testing.T, rng *rand.Rand) {
	b := m.b
	switch rng.IntN(5) {
	case 0, 1: // one comes
		e := entry{r: rng.IntN(len(b.routes)), t: rng.IntN(len(b.tenants)), p: Priority(rng.IntN(3)), arrival: m.arrivals}
		weight := 1 + rng.Int64N(b.Capacity)
		m.arrivals++
		taken := b.Take(b.routes[e.r], b.tenants[e.t], e.p, weight, float64(weight), 0)
		before := slices.ContainsFunc(m.list, func(o entry) bool { return o.p >= e.p && b.routes[o.r].room > 0 })
		others := slices.ContainsFunc(m.list, func(o entry) bool { return b.routes[o.r].room > 0 })
		want := !before && m.due[e.r] == nil && weight <= b.routes[e.r].room && m.fits(e.p, weight) && (m.since < turn-1 || !others)
		require.Equal(t, want, taken)
		e.w = &Waiter[int]{Value: e.arrival, Weight: weight}
		if taken {
			if others {
				m.since++
			}
			m.admit(e)
			return
		}
		if !slices.ContainsFunc(m.list, func(o entry) bool { return o.t == e.t }) {
			m.service[e.t] = max(m.service[e.t], m.virtual)
		}
		b.Join(e.w, b.routes[e.r], b.tenants[e.t], e.p, 0, 1)
		m.list = append(m.list, e)
	case 2: // one is over
		if len(m.flight) == 0 {
			return
		}
		i := rng.IntN(len(m.flight))
		e := m.flight[i]
		m.flight = slices.Delete(m.flight, i, i+1)
		owed := float64(rng.IntN(3) - 1)
		m.service[e.t] += owed
		b.Release(b.tenants[e.t], e.p, e.w.Weight, owed)
	case 3: // one leaves
		if len(m.list) == 0 {
			return
		}
		i := rng.IntN(len(m.list))
		e := m.list[i]
		b.Leave(e.w)
		m.list = slices.Delete(m.list, i, i+1)
		m.leaves(e)
	case 4: // a route opens or closes
		b.SetRoom(b.routes[rng.IntN(len(b.routes))], rng.Int64N(4)*rng.Int64N(2))
	}
	for {
		want, got := m.first(), b.First(0)
		if want == nil {
			require.Nil(t, got)
			return
		}
		require.Same(t, want.w, got)
		e := *want
		fits, longest := m.fits(e.p, e.w.Weight), m.longest()
		require.Equal(t, fits, b.Admit(e.w, float64(e.w.Weight)))
		if !fits {
			return
		}
		m.since++
		if longest != nil && longest.w == e.w {
			m.since = 0
		}
		m.list = slices.DeleteFunc(m.list, func(o entry) bool { return o.w == e.w })
		m.leaves(e)
		m.admit(e)
	}
}

func (m *model) leaves(e entry) {
	if m.due[e.r] == e.w {
		m.due[e.r] = nil
	}
}

// counts checks what the line counts while calls come and go.
func (m *model) counts(t *testing.T) {
	var waits, ready [priorities]int
	var readyWeight [priorities]int64
	longest := map[[2]int]int{} // by route and priority
	queues := map[[3]int]int{}  // and by tenant
	for _, e := range m.list {
		queue := [3]int{e.r, int(e.p), e.t}
		queues[queue]++
		longest[[2]int{e.r, int(e.p)}] = max(longest[[2]int{e.r, int(e.p)}], queues[queue])
		waits[e.p]++
		if m.b.routes[e.r].room > 0 {
			ready[e.p]++
			readyWeight[e.p] += e.w.Weight
		}
	}
	for p := range priorities {
		require.Equal(t, waits[p], m.b.Waits(p))
	}
	require.Equal(t, ready, m.b.ready)
	require.Equal(t, readyWeight, m.b.weight)
	for i, r := range m.b.routes {
		for p := range priorities {
			length := 0
			if f := r.lanes[p].byLength.first(); f != nil {
				length = f.length
			}
			require.Equal(t, longest[[2]int{i, int(p)}], length, "the longest queue, whose newest waiter may be displaced")
		}
	}
}

func (m *model) admit(e entry) {
	m.service[e.t] = max(m.service[e.t], m.virtual)
	m.virtual = m.service[e.t]
	m.service[e.t] += float64(e.w.Weight)
	m.flight = append(m.flight, e)
}

func (m *model) inFlight(background bool) (sum int64) {
	for _, e := range m.flight {
		if !background || e.p == Background {
			sum += e.w.Weight
		}
	}
	return sum
}

func (m *model) fitsBackground(p Priority, weight int64) bool {
	most := m.b.MaxBackground
	return p != Background || most < 0 || m.inFlight(true) == 0 || m.inFlight(true)+weight <= most
}

func (m *model) fits(p Priority, weight int64) bool {
	return m.inFlight(false)+weight <= m.b.Capacity && m.fitsBackground(p, weight)
}

// longest is the oldest of all whose routes have room, other than those that MaxBackground holds up.
func (m *model) longest() (found *entry) {
	held := map[int]bool{} // the oldest is held up by MaxBackground
	seen := map[int]bool{}
	for i := range m.list {
		e := &m.list[i]
		if seen[e.r] || m.b.routes[e.r].room <= 0 || m.due[e.r] != nil || held[e.r] && e.p == Background {
			continue
		}
		if !held[e.r] && !m.fitsBackground(e.p, e.w.Weight) {
			held[e.r] = true
			continue
		}
		if seen[e.r] = true; found == nil {
			found = e
		}
	}
	return found
}

// first is the best of the routes' best, if their routes have room for them.
func (m *model) first() (best *entry) {
	if m.since >= turn-1 {
		if e := m.longest(); e != nil {
			if e.w.Weight <= m.b.routes[e.r].room {
				return e
			}
			m.due[e.r], m.since = e.w, 0
		}
	}
	for i := range m.list {
		switch e := &m.list[i]; {
		case m.due[e.r] != e.w:
		case !m.fitsBackground(e.p, e.w.Weight):
			m.due[e.r] = nil
		case best == nil && e.w.Weight <= m.b.routes[e.r].room:
			best = e
		}
	}
	if best != nil {
		return best
	}
	better := func(a, b *entry) bool {
		switch {
		case b == nil:
			return true
		case a.p != b.p:
			return a.p > b.p
		case m.service[a.t] != m.service[b.t]:
			return m.service[a.t] < m.service[b.t]
		}
		return a.arrival < b.arrival
	}
	for r := range m.b.routes {
		if m.due[r] != nil {
			continue
		}
		var own *entry
		for i := range m.list {
			if e := &m.list[i]; e.r == r && better(e, own) {
				own = e
			}
		}
		if own != nil && own.w.Weight <= m.b.routes[r].room && better(own, best) {
			best = own
		}
	}
	return best
}
