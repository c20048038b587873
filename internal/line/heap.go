package line

// heap is a binary heap of flows, the flow with the least rank first. Each flow knows its position in the heap.
//
// A rank in the heap may be out of date, but it is never greater than the flow's true rank. So a flow whose rank grows
// need not move before it is the first. Until then several changes cost as much as one.
type heap[T any] struct {
	ranked []ranked[T]
	which  order
}

type order int8

const (
	byService order = iota // the flow that is served next first
	byLength               // the longest flow first
	orders
)

// ranked is a flow with the rank by which the heap has placed it. The copy saves two pointers per comparison.
type ranked[T any] struct {
	rank
	flow *flow[T]
}

// rank is the place of a flow in an order. tie decides between equal keys.
type rank struct {
	key float64
	tie uint64
}

func (r rank) less(o rank) bool { return r.key < o.key || r.key == o.key && r.tie < o.tie }

// rank returns the true rank of a flow with waiters.
func (f *flow[T]) rank(which order) rank {
	if which == byLength {
		return rank{key: -float64(f.length)}
	}
	return rank{key: f.tenant.service, tie: f.oldest.arrival}
}

// first returns the flow with the least true rank, or nil.
func (h *heap[T]) first() *flow[T] {
	for len(h.ranked) > 0 {
		e := &h.ranked[0]
		now := e.flow.rank(h.which)
		if !e.less(now) {
			return e.flow
		}
		e.rank = now
		h.down(0)
	}
	return nil
}

func (h *heap[T]) push(f *flow[T], which order) {
	h.which = which
	h.ranked = append(h.ranked, ranked[T]{f.rank(h.which), f})
	h.up(len(h.ranked) - 1)
}

func (h *heap[T]) remove(f *flow[T]) {
	i, last := f.at[h.which], len(h.ranked)-1
	moved := h.ranked[last]
	h.ranked[last] = ranked[T]{}
	h.ranked = h.ranked[:last]
	if i < last {
		h.ranked[i] = moved
		h.up(i)
		h.down(moved.flow.at[h.which])
	}
}

// sooner moves a flow whose true rank may be less than before.
func (h *heap[T]) sooner(f *flow[T]) {
	e := &h.ranked[f.at[h.which]]
	if now := f.rank(h.which); now.less(e.rank) {
		e.rank = now
		h.up(f.at[h.which])
	}
}

// up moves the flow at i, which may have to come earlier.
func (h *heap[T]) up(i int) {
	e := h.ranked[i]
	for i > 0 {
		parent := (i - 1) / 2
		if !e.less(h.ranked[parent].rank) {
			break
		}
		h.put(i, h.ranked[parent])
		i = parent
	}
	h.put(i, e)
}

// down moves the flow at i, which may have to come later.
func (h *heap[T]) down(i int) {
	e := h.ranked[i]
	for {
		child := 2*i + 1
		if child >= len(h.ranked) {
			break
		}
		if right := child + 1; right < len(h.ranked) && h.ranked[right].less(h.ranked[child].rank) {
			child = right
		}
		if !h.ranked[child].less(e.rank) {
			break
		}
		h.put(i, h.ranked[child])
		i = child
	}
	h.put(i, e)
}

func (h *heap[T]) put(i int, e ranked[T]) {
	h.ranked[i] = e
	e.flow.at[h.which] = i
}
