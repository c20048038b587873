package budget

import (
	"slices"
	"strings"
)

// prices finds the price of a model.
type prices struct {
	exact    map[string]Price
	prefixes []prefix // the longest first
}

type prefix struct {
	text  string
	price Price
}

func newPrices(all map[string]Price) (p prices) {
	p.exact = make(map[string]Price)
	for name, price := range all {
		if text, ok := strings.CutSuffix(name, "*"); ok {
			p.prefixes = append(p.prefixes, prefix{text, price})
		} else {
			p.exact[name] = price
		}
	}
	slices.SortFunc(p.prefixes, func(a, b prefix) int { return len(b.text) - len(a.text) })
	return p
}

func (p *prices) find(model string) (Price, bool) {
	if price, ok := p.exact[model]; ok {
		return price, true
	}
	for _, of := range p.prefixes {
		if strings.HasPrefix(model, of.text) {
			return of.price, true
		}
	}
	return Price{}, false
}
