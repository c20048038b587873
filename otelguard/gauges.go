package otelguard

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/aiguard-go/aiguard"
)

// gauges are the instruments that are read from the guard.
type gauges struct {
	inFlight, waiting, limit, buffered    metric.Int64ObservableGauge
	routeInFlight, routePaused, routeDown metric.Int64ObservableGauge
	tenantInFlight, tenantWaiting         metric.Int64ObservableGauge
	budgetReached                         metric.Int64ObservableGauge
}

func (t *Telemetry) observe(g *aiguard.Guard) (metric.Registration, error) {
	var errs []error
	var all []metric.Observable
	gauge := func(i instrument) metric.Int64ObservableGauge {
		o, err := t.meter.Int64ObservableGauge(i.name, metric.WithUnit(i.unit), metric.WithDescription(i.description))
		errs, all = append(errs, err), append(all, o)
		return o
	}
	gs := &gauges{
		inFlight: gauge(inFlight), waiting: gauge(waiting), limit: gauge(limit), buffered: gauge(buffered),
		routeInFlight: gauge(routeInFlight), routePaused: gauge(routePaused), routeDown: gauge(routeDown),
		tenantInFlight: gauge(tenantInFlight), tenantWaiting: gauge(tenantWaiting), budgetReached: gauge(budgetReached),
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		st := g.Stats()
		var common []attribute.KeyValue
		if t.series.guard != "" {
			common = append(common, attribute.String(attrGuard, t.series.guard))
		}
		whole := metric.WithAttributeSet(newSet(common, nil))
		o.ObserveInt64(gs.inFlight, st.InFlight, whole)
		o.ObserveInt64(gs.waiting, st.Waiting, whole)
		if st.Limit >= 0 { // else there is none
			o.ObserveInt64(gs.limit, st.Limit, whole)
		}
		o.ObserveInt64(gs.buffered, st.BufferedBytes, whole)
		t.observeRoutes(o, gs, common, g.Routes())
		t.observeTenants(o, gs, common, st.Tenants)
		for limit, keys := range t.budgets.reached(time.Now()) {
			o.ObserveInt64(gs.budgetReached, keys, metric.WithAttributeSet(newSet(common, []attribute.KeyValue{
				attribute.String(attrBudget, limit.name), attribute.String(attrBudgetUnit, limit.unit)})))
		}
		return nil
	}, all...)
}

// observeRoutes observes the routes. Routes beyond the limit of label values are added up as one.
func (t *Telemetry) observeRoutes(o metric.Observer, gs *gauges, common []attribute.KeyValue, routes []aiguard.RouteStats) {
	now := time.Now()
	type place struct{ host, name string }
	type state struct{ inFlight, paused, down int64 }
	sum := make(map[place]state)
	for _, r := range routes {
		at := place{clean(r.Host), clean(r.Name)}
		if !t.routes.has(at.host + " " + at.name) {
			at = place{"", other}
		}
		s := sum[at]
		s.inFlight += r.InFlight
		s.paused, s.down = max(s.paused, flag(r.PausedUntil.After(now))), max(s.down, flag(!r.DownSince.IsZero()))
		sum[at] = s
	}
	for at, s := range sum {
		attrs := []attribute.KeyValue{attribute.String(attrRoute, at.name)}
		if at.host != "" { // else it is the route of a Do
			address, port := splitHost(at.host)
			attrs = append(attrs, attribute.String(attrAddress, address), attribute.Int(attrPort, port))
		}
		with := metric.WithAttributeSet(newSet(common, attrs))
		o.ObserveInt64(gs.routeInFlight, s.inFlight, with)
		o.ObserveInt64(gs.routePaused, s.paused, with)
		o.ObserveInt64(gs.routeDown, s.down, with)
	}
}

func flag(set bool) int64 {
	if set {
		return 1
	}
	return 0
}

// observeTenants observes the tenants. Tenants beyond the limit of label values are added up as one.
func (t *Telemetry) observeTenants(o metric.Observer, gs *gauges, common []attribute.KeyValue, tenants []aiguard.TenantStats) {
	sum := make(map[string]aiguard.TenantStats)
	for _, tenant := range tenants {
		name := t.tenants.bound(tenant.Tenant)
		s := sum[name]
		s.InFlight += tenant.InFlight
		s.Waiting += tenant.Waiting
		sum[name] = s
	}
	for name, s := range sum {
		with := metric.WithAttributeSet(newSet(common, []attribute.KeyValue{attribute.String(attrTenant, name)}))
		o.ObserveInt64(gs.tenantInFlight, s.InFlight, with)
		o.ObserveInt64(gs.tenantWaiting, s.Waiting, with)
	}
}
