package tokenguard

import "slices"

// tokens counts the tokens of a piece by byte pair encoding (Sennrich, Haddow and Birch, "Neural Machine Translation
// of Rare Words with Subword Units", 2016, on bytes). It starts with single bytes. It merges the neighbours whose
// union has the lowest rank, leftmost first, until no union is a token.
func (e *encoding) tokens(piece string) int {
	if _, ok := e.ranks[piece]; ok {
		return 1
	}
	if len(piece) <= scanned {
		return e.scan(piece)
	}
	return e.merge(piece)
}

// scanned is the length up to which a linear scan for the lowest rank is faster than a heap. Most words are shorter.
const scanned = 64

// scan merges in quadratic time.
func (e *encoding) scan(piece string) int {
	var start [scanned + 1]int    // start of each part, and the end
	var ranks [scanned + 1]uint32 // rank of each part joined with the next
	n := len(piece)               // number of parts
	for i := range n + 1 {
		start[i], ranks[i] = i, none
		if i+2 <= n {
			ranks[i] = e.rank(piece[i : i+2])
		}
	}
	for {
		low := 0
		for i := 1; i < n; i++ {
			if ranks[i] < ranks[low] {
				low = i
			}
		}
		if ranks[low] == none {
			return n
		}
		copy(start[low+1:n], start[low+2:n+1])
		copy(ranks[low+1:n], ranks[low+2:n+1])
		n--
		for i := max(low-1, 0); i <= low; i++ {
			ranks[i] = none
			if i+2 <= n {
				ranks[i] = e.rank(piece[start[i]:start[i+2]])
			}
		}
	}
}

// merge merges in O(n log n) time, with the parts in a linked list and the pairs in a heap.
func (e *encoding) merge(piece string) int {
	n := len(piece)
	next, prev := make([]int32, n+1), make([]int32, n+1)
	ranks := make([]uint32, n+1)
	pairs := make(heap, 0, n)
	rank := func(i int32) uint32 { // rank of the part at i joined with the next
		if int(next[i]) >= n {
			return none
		}
		return e.rank(piece[i:next[next[i]]])
	}
	for i := range next {
		next[i], prev[i] = int32(i+1), int32(i-1)
	}
	for i := range n {
		if ranks[i] = rank(int32(i)); ranks[i] != none {
			pairs = append(pairs, pair(ranks[i], int32(i)))
		}
	}
	slices.Sort(pairs) // a sorted slice is a heap

	parts := n
	for len(pairs) > 0 {
		r, i := pairs.pop()
		if ranks[i] != r {
			continue // stale: one of its parts was merged
		}
		gone := next[i]
		next[i] = next[gone]
		prev[next[i]] = i
		ranks[gone] = none
		parts--
		for _, j := range [2]int32{prev[i], i} {
			if j < 0 {
				continue
			}
			if ranks[j] = rank(j); ranks[j] != none {
				pairs.push(pair(ranks[j], j))
			}
		}
	}
	return parts
}

// heap is a binary min-heap of pairs, ordered by rank and then by position.
type heap []uint64

func pair(rank uint32, at int32) uint64 { return uint64(rank)<<32 | uint64(at) }

func (h *heap) push(p uint64) {
	*h = append(*h, p)
	s := *h
	for i := len(s) - 1; i > 0 && s[i] < s[(i-1)/2]; i = (i - 1) / 2 {
		s[i], s[(i-1)/2] = s[(i-1)/2], s[i]
	}
}

func (h *heap) pop() (rank uint32, at int32) {
	s := *h
	top, last := s[0], len(s)-1
	s[0] = s[last]
	s = s[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child+1 < len(s) && s[child+1] < s[child] {
			child++
		}
		if child >= len(s) || s[i] <= s[child] {
			break
		}
		s[i], s[child] = s[child], s[i]
		i = child
	}
	*h = s
	return uint32(top >> 32), int32(uint32(top))
}
