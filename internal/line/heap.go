package line

// heap is a binary heap of flows. Each flow knows its position in the heap.
type heap[T any] struct {
	flows []*flow[T]
	which int // index in flow.at; 0: by service, 1: by length
}

func (h *heap[T]) first() *flow[T] {
	if len(h.flows) == 0 {
		return nil
	}
	return h.flows[0]
}

func (h *heap[T]) less(a, b *flow[T]) bool {
	switch {
	case h.which == 1:
		return a.length > b.length
	case a.tenant.service != b.tenant.service:
		return a.tenant.service < b.tenant.service
	}
	return a.oldest.arrival < b.oldest.arrival
}

func (h *heap[T]) push(f *flow[T], which int) {
	h.which = which
	h.flows = append(h.flows, f)
	f.at[which] = len(h.flows) - 1
	h.up(f.at[which])
}

func (h *heap[T]) remove(f *flow[T]) {
	i, last := f.at[h.which], len(h.flows)-1
	h.swap(i, last)
	h.flows[last] = nil
	h.flows = h.flows[:last]
	if i < last {
		h.up(i)
		h.down(i)
	}
}

// up moves the flow at i, which may have to come earlier than before.
func (h *heap[T]) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !h.less(h.flows[i], h.flows[parent]) {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

// down moves the flow at i, which may have to come later than before.
func (h *heap[T]) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(h.flows) {
			return
		}
		if right := child + 1; right < len(h.flows) && h.less(h.flows[right], h.flows[child]) {
			child = right
		}
		if !h.less(h.flows[child], h.flows[i]) {
			return
		}
		h.swap(i, child)
		i = child
	}
}

func (h *heap[T]) swap(i, j int) {
	h.flows[i], h.flows[j] = h.flows[j], h.flows[i]
	h.flows[i].at[h.which], h.flows[j].at[h.which] = i, j
}
