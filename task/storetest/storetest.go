// Package storetest checks that a task.Store meets its contract. Use it in the test of a store:
//
//	for _, c := range storetest.Checks() {
//		t.Run(c.Name, func(t *testing.T) {
//			if err := c.Run(t.Context(), open(t)); err != nil {
//				t.Fatal(err)
//			}
//		})
//	}
package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/task"
)

// Check checks one property of a Store.
type Check struct {
	Name string
	// Run returns an error that describes what s does wrong. s must be empty and used only by this check. Run takes
	// less than a second with a fast store and does not remove the operations that it creates.
	Run func(ctx context.Context, s task.Store) error
}

// Checks returns all checks.
func Checks() []Check {
	return []Check{
		{"EveryFieldComesBack", everyFieldComesBack},
		{"AnyTextComesBack", anyTextComesBack},
		{"NilAndEmptyJSONAreNotTheSame", nilAndEmptyJSONAreNotTheSame},
		{"KeepsAndHandsOutCopies", keepsAndHandsOutCopies},
		{"IDsAreUnique", idsAreUnique},
		{"OneOfConcurrentCreatesWins", oneOfConcurrentCreatesWins},
		{"UnknownIDIsNotFound", unknownIDIsNotFound},
		{"UpdateNeedsTheLastRevision", updateNeedsTheLastRevision},
		{"UpdateMovesTheStatusForwardOnly", updateMovesTheStatusForwardOnly},
		{"UpdateKeepsWhatNeverChanges", updateKeepsWhatNeverChanges},
		{"OneOfConcurrentUpdatesWins", oneOfConcurrentUpdatesWins},
		{"NoUpdateIsLost", noUpdateIsLost},
		{"OneEndOfManyStays", oneEndOfManyStays},
		{"ListIsTheNewestFirst", listIsTheNewestFirst},
		{"ListHasADefaultLimit", listHasADefaultLimit},
		{"ListFilters", listFilters},
		{"OrphansAreWhatTheCallerCanDealWith", orphansAreWhatTheCallerCanDealWith},
		{"OrphansAreTheOldestFirst", orphansAreTheOldestFirst},
		{"LeaseKeepsFromBeingOrphans", leaseKeepsFromBeingOrphans},
		{"LeaseRunsOut", leaseRunsOut},
		{"RenewedLeaseRunsOn", renewedLeaseRunsOn},
		{"LeasesOfManyOwners", leasesOfManyOwners},
		{"EndedContextChangesNothing", endedContextChangesNothing},
	}
}

// The checks evaluate their steps as arguments of errors.Join. Each step runs in order, even if an earlier step
// failed.

// epoch is the creation time of the first operation of a check.
var epoch = time.Date(2026, 3, 1, 12, 30, 15, 123456000, time.UTC)

// pending returns a Pending operation created n microseconds after epoch.
func pending(id string, n int) task.Operation {
	return task.Operation{ID: id, Name: "questions", Status: task.Pending, CreatedAt: epoch.Add(time.Duration(n) * time.Microsecond),
		Revision: 1, Owner: "owner"}
}

// next returns op after a change to status.
func next(op task.Operation, status task.Status) task.Operation {
	op.Revision++
	op.Status = status
	if status.Final() {
		op.FinishedAt = time.Now().UTC().Truncate(time.Microsecond) // recent, because a store may remove operations that finished long ago
	}
	return op
}

// failure returns an error if got does not match want.
func failure(what string, got, want error) error {
	if errors.Is(got, want) {
		return nil
	}
	return fmt.Errorf("%s: %v; want %v", what, got, want)
}

// same returns an error if got differs from want.
func same(what string, got, want any) error {
	if reflect.DeepEqual(got, want) {
		return nil
	}
	return fmt.Errorf("%s: got %s\nwant %s", what, brief(got), brief(want))
}

func brief(v any) string {
	s := fmt.Sprintf("%+v", v)
	if len(s) > 2000 {
		return s[:2000] + "…"
	}
	return s
}

// holds returns an error if the stored operation differs from want, apart from Input, which only Orphans returns.
func holds(ctx context.Context, s task.Store, want task.Operation) error {
	want.Input = nil
	got, err := s.Get(ctx, want.ID)
	if err != nil {
		return fmt.Errorf("Get(%q): %w", want.ID, err)
	}
	return same(fmt.Sprintf("Get(%q)", want.ID), got, want)
}

// stores creates op and returns an error if the store returns a different operation.
func stores(ctx context.Context, s task.Store, op task.Operation) error {
	return errors.Join(s.Create(ctx, op), holds(ctx, s, op))
}

// orphaned returns an error if Orphans does not return op with its Input. op must have no lease.
func orphaned(ctx context.Context, s task.Store, op task.Operation) error {
	all, err := s.Orphans(ctx, []string{op.Name}, 1000)
	if err != nil {
		return fmt.Errorf("orphans: %w", err)
	}
	for _, got := range all {
		if got.ID == op.ID {
			return same(fmt.Sprintf("Orphans: %q", op.ID), got, op)
		}
	}
	return fmt.Errorf("orphans: %q is missing", op.ID)
}

// creates creates the operations.
func creates(ctx context.Context, s task.Store, ops ...task.Operation) error {
	var errs []error
	for _, op := range ops {
		errs = append(errs, s.Create(ctx, op))
	}
	return errors.Join(errs...)
}

// lists returns an error if q does not select exactly the operations with these IDs, in this order.
func lists(ctx context.Context, s task.Store, q task.Query, ids ...string) error {
	ops, err := s.List(ctx, q)
	return errors.Join(err, same(fmt.Sprintf("List(%+v)", q), idsOf(ops), ids))
}

// orphans returns an error if Orphans does not return exactly the operations with these IDs.
func orphans(ctx context.Context, s task.Store, names []string, limit int, ids ...string) error {
	ops, err := s.Orphans(ctx, names, limit)
	return errors.Join(err, same(fmt.Sprintf("Orphans(%q, %d)", names, limit), idsOf(ops), ids))
}

func idsOf(ops []task.Operation) (ids []string) {
	for _, op := range ops {
		ids = append(ids, op.ID)
	}
	return ids
}

// atOnce calls f n times concurrently and returns the results.
func atOnce(n int, f func(i int) error) []error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errs
}

// oneWins returns an error unless exactly one of errs is nil and all others match want.
func oneWins(errs []error, want error) error {
	won := 0
	var wrong []error
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wrong = append(wrong, failure("losing call", err, want))
	}
	if won != 1 {
		wrong = append(wrong, fmt.Errorf("%d of %d concurrent calls succeeded; want 1", won, len(errs)))
	}
	return errors.Join(wrong...)
}

func everyFieldComesBack(ctx context.Context, s task.Store) error {
	op := task.Operation{
		ID: "ID", Name: "questions", Status: task.Running, ErrorCode: "timeout", ErrorMessage: "message", Progress: 42,
		ProgressNote: "note", Result: json.RawMessage(`{"b": 1, "a":  [2]}`), CreatedAt: epoch, StartedAt: epoch.Add(time.Second),
		FinishedAt: epoch.Add(time.Hour), Attempts: 3, Revision: 7, CancelRequested: true, Owner: "owner", Input: json.RawMessage(`"in"`),
	}
	bare := task.Operation{ID: "bare", Name: "n", Status: task.Pending, CreatedAt: epoch, Revision: 1}
	changed := task.Operation{
		ID: "ID", Name: op.Name, Status: task.Failed, ErrorCode: aiguard.ErrOverloaded, ErrorMessage: "other", Progress: 43,
		ProgressNote: "more", Result: json.RawMessage(`null`), CreatedAt: epoch, StartedAt: epoch.Add(2 * time.Second),
		FinishedAt: time.Now().UTC().Truncate(time.Microsecond), Attempts: 4, Revision: 8, Owner: "other", Input: op.Input,
	}
	return errors.Join(
		stores(ctx, s, op), stores(ctx, s, bare),
		s.Update(ctx, changed), holds(ctx, s, changed), holds(ctx, s, bare),
		listed(ctx, s, bare, changed),
	)
}

// listed returns an error if the stored operations are not exactly want, in any order.
func listed(ctx context.Context, s task.Store, want ...task.Operation) error {
	got, err := s.List(ctx, task.Query{})
	if err != nil {
		return err
	}
	byID := func(ops []task.Operation) map[string]task.Operation {
		m := make(map[string]task.Operation)
		for _, op := range ops {
			m[op.ID] = op
		}
		return m
	}
	for i := range want {
		want[i].Input = nil
	}
	return same("List", byID(got), byID(want))
}

func anyTextComesBack(ctx context.Context, s task.Store) error {
	var errs []error
	big, err := json.Marshal(strings.Repeat("é\x00\"\\", 1<<17)) // 1.4 MB
	errs = append(errs, err)
	for i, text := range []string{
		`'; DROP TABLE operations; --`, `"quoted" and 'quoted'`, `back\slash \' \0`, "%s $1 ?1 :name @p {}", "日本語 🙂 e\u0301 \u202e",
		"line\r\nbreak\ttab", " spaces ", "NULL", "\x01\x7f",
	} {
		in, err := json.Marshal(text + "\x00") // JSON can escape this character
		op := pending(text, i)
		op.Name, op.ErrorMessage, op.ProgressNote, op.Owner, op.ErrorCode = text, text, text, text, aiguard.Kind(text)
		op.Input, op.Result = in, in
		errs = append(errs, err, stores(ctx, s, op), lists(ctx, s, task.Query{Name: text, Owner: text}, text), orphaned(ctx, s, op))
	}
	op := pending("big", 100)
	op.Name, op.Input, op.Result = "big", big, big
	return errors.Join(append(errs, stores(ctx, s, op), orphaned(ctx, s, op))...)
}

func nilAndEmptyJSONAreNotTheSame(ctx context.Context, s task.Store) error {
	var errs []error
	for i, raw := range []json.RawMessage{nil, {}, json.RawMessage(`null`), json.RawMessage(` `), json.RawMessage(`{"a":"\u0000"}`)} {
		op := pending(fmt.Sprint(i), i)
		op.Name, op.Input, op.Result = fmt.Sprint(i), raw, raw
		updated := next(op, task.Pending)
		updated.Result = json.RawMessage(`1`)
		back := next(updated, task.Pending)
		back.Result = raw
		errs = append(errs, stores(ctx, s, op), orphaned(ctx, s, op),
			s.Update(ctx, updated), holds(ctx, s, updated), orphaned(ctx, s, updated),
			s.Update(ctx, back), holds(ctx, s, back), orphaned(ctx, s, back))
	}
	return errors.Join(errs...)
}

func keepsAndHandsOutCopies(ctx context.Context, s task.Store) error {
	fresh := func() task.Operation {
		op := pending("a", 0)
		op.Input, op.Result = json.RawMessage(`"in"`), json.RawMessage(`"out"`)
		return op
	}
	spoil := func(ops ...task.Operation) {
		for _, op := range ops {
			copy(op.Input, "xxxx")
			copy(op.Result, "xxxx")
		}
	}
	created := fresh()
	errs := []error{s.Create(ctx, created)}
	spoil(created)
	errs = append(errs, holds(ctx, s, fresh()), orphaned(ctx, s, fresh()))

	got, err := s.Get(ctx, "a")
	spoil(got)
	errs = append(errs, err, holds(ctx, s, fresh()))

	all, err := s.List(ctx, task.Query{})
	spoil(all...)
	errs = append(errs, err, holds(ctx, s, fresh()))

	all, err = s.Orphans(ctx, []string{"questions"}, 10)
	spoil(all...)
	errs = append(errs, err, same("Orphans", idsOf(all), []string{"a"}), holds(ctx, s, fresh()), orphaned(ctx, s, fresh()))

	updated := next(fresh(), task.Running)
	errs = append(errs, s.Update(ctx, updated))
	spoil(updated)
	return errors.Join(append(errs, holds(ctx, s, next(fresh(), task.Running)))...)
}

func idsAreUnique(ctx context.Context, s task.Store) error {
	op, other := pending("a", 0), pending("a", 1)
	other.Name = "other"
	return errors.Join(
		s.Create(ctx, op),
		failure("Create with an existing ID", s.Create(ctx, other), task.ErrExists),
		holds(ctx, s, op),
		stores(ctx, s, pending("A", 2)), // IDs are case-sensitive
	)
}

func oneOfConcurrentCreatesWins(ctx context.Context, s task.Store) error {
	return oneWins(atOnce(16, func(i int) error { return s.Create(ctx, pending("a", i)) }), task.ErrExists)
}

func unknownIDIsNotFound(ctx context.Context, s task.Store) error {
	_, err := s.Get(ctx, "none")
	return errors.Join(
		failure("Get", err, task.ErrNotFound),
		failure("Update", s.Update(ctx, next(pending("none", 0), task.Running)), task.ErrNotFound),
		lists(ctx, s, task.Query{}),
		orphans(ctx, s, nil, 10),
	)
}

func updateNeedsTheLastRevision(ctx context.Context, s task.Store) error {
	op := pending("a", 0)
	second := next(op, task.Pending)
	errs := []error{s.Create(ctx, op), s.Update(ctx, second)}
	for _, revision := range []int64{-1, 0, 1, 2, 4} { // the stored revision is 2
		stale := next(op, task.Running)
		stale.Revision = revision
		errs = append(errs, failure(fmt.Sprintf("Update to revision %d from 2", revision), s.Update(ctx, stale), task.ErrConflict))
	}
	third := next(second, task.Running)
	return errors.Join(append(errs, holds(ctx, s, second), s.Update(ctx, third), holds(ctx, s, third))...)
}

func updateMovesTheStatusForwardOnly(ctx context.Context, s task.Store) error {
	all := []task.Status{task.Pending, task.Running, task.Succeeded, task.Failed, task.Cancelled}
	var errs []error
	for i, from := range all {
		for j, to := range append(all, "unknown") {
			op := next(pending(fmt.Sprintf("%s-%s", from, to), 10*i+j), from)
			errs = append(errs, s.Create(ctx, op))
			updated := next(op, to)
			err := s.Update(ctx, updated)
			if from.MayBecome(to) {
				errs = append(errs, err, holds(ctx, s, updated))
			} else {
				errs = append(errs, failure(fmt.Sprintf("Update from %s to %s", from, to), err, task.ErrConflict), holds(ctx, s, op))
			}
		}
	}
	return errors.Join(errs...)
}

func updateKeepsWhatNeverChanges(ctx context.Context, s task.Store) error {
	op := pending("a", 0)
	op.Input = json.RawMessage(`1`)
	changed := next(op, task.Running)
	changed.Name, changed.Input, changed.CreatedAt = "other", json.RawMessage(`2`), epoch.Add(time.Hour)
	kept := next(op, task.Running)
	without := pending("b", 1)
	given := next(without, task.Running)
	given.Input = json.RawMessage(`2`)
	return errors.Join(
		s.Create(ctx, op), s.Update(ctx, changed), holds(ctx, s, kept), orphaned(ctx, s, kept),
		s.Create(ctx, without), s.Update(ctx, given), holds(ctx, s, next(without, task.Running)), orphaned(ctx, s, next(without, task.Running)),
	)
}

func oneOfConcurrentUpdatesWins(ctx context.Context, s task.Store) error {
	op := pending("a", 0)
	err := s.Create(ctx, op)
	for range 10 {
		revision := op.Revision
		errs := atOnce(16, func(i int) error {
			update := next(op, task.Pending)
			update.Progress = i
			return s.Update(ctx, update)
		})
		got, getErr := s.Get(ctx, "a")
		err = errors.Join(err, oneWins(errs, task.ErrConflict), getErr, same("the revision", got.Revision, revision+1))
		if err != nil {
			return err
		}
		err = same("the winner", errs[got.Progress], error(nil))
		op = got
	}
	return err
}

// increment adds 1 to an operation's progress and retries after a conflict.
func increment(ctx context.Context, s task.Store, id string) error {
	for {
		op, err := s.Get(ctx, id)
		if err != nil {
			return err
		}
		op = next(op, task.Running)
		op.Progress++
		if err = s.Update(ctx, op); !errors.Is(err, task.ErrConflict) {
			return err
		}
	}
}

func noUpdateIsLost(ctx context.Context, s task.Store) error {
	const clients, times = 8, 10
	err := s.Create(ctx, pending("a", 0))
	errs := atOnce(clients, func(int) error {
		for range times {
			if err := increment(ctx, s, "a"); err != nil {
				return err
			}
		}
		return nil
	})
	op, getErr := s.Get(ctx, "a")
	return errors.Join(err, errors.Join(errs...), getErr,
		same("the sum", op.Progress, clients*times), same("the revision", op.Revision, int64(1+clients*times)))
}

func oneEndOfManyStays(ctx context.Context, s task.Store) error {
	op := next(pending("a", 0), task.Running)
	err := s.Create(ctx, op)
	ends := []task.Status{task.Succeeded, task.Failed, task.Cancelled}
	errs := atOnce(12, func(i int) error {
		end := next(op, ends[i%len(ends)])
		end.Progress = i
		return s.Update(ctx, end)
	})
	got, getErr := s.Get(ctx, "a")
	return errors.Join(err, oneWins(errs, task.ErrConflict), getErr,
		same("the winner", errs[got.Progress], error(nil)), same("its status", got.Status, ends[got.Progress%len(ends)]),
		failure("Update of a final operation", s.Update(ctx, next(got, task.Failed)), task.ErrConflict))
}

func listIsTheNewestFirst(ctx context.Context, s task.Store) error {
	return errors.Join(
		creates(ctx, s, pending("b", 1), pending("c", 2), pending("a", 3)),
		lists(ctx, s, task.Query{}, "a", "c", "b"),
		s.Update(ctx, next(pending("b", 1), task.Running)),
		lists(ctx, s, task.Query{}, "a", "c", "b"),
		lists(ctx, s, task.Query{Limit: 2}, "a", "c"),
		lists(ctx, s, task.Query{Limit: 1000}, "a", "c", "b"),
		lists(ctx, s, task.Query{Limit: -1}, "a", "c", "b"),
	)
}

func listHasADefaultLimit(ctx context.Context, s task.Store) error {
	var errs []error
	var newest []string
	for n := range task.DefaultLimit + 5 {
		id := fmt.Sprintf("%05d", n)
		errs = append(errs, s.Create(ctx, pending(id, n)))
		if n >= 5 {
			newest = append([]string{id}, newest...)
		}
	}
	return errors.Join(append(errs, lists(ctx, s, task.Query{}, newest...))...)
}

func listFilters(ctx context.Context, s task.Store) error {
	feedback := pending("feedback", 1)
	feedback.Name = "feedback"
	running := next(pending("running", 2), task.Running)
	failed := next(pending("failed", 3), task.Failed)
	theirs := next(pending("theirs", 4), task.Running)
	theirs.Owner = "other"
	nobodys := pending("nobodys", 5)
	nobodys.Owner = ""
	return errors.Join(
		creates(ctx, s, feedback, running, failed, theirs, nobodys),
		lists(ctx, s, task.Query{Name: "questions"}, "nobodys", "theirs", "failed", "running"),
		lists(ctx, s, task.Query{Name: "question"}),
		lists(ctx, s, task.Query{Owner: "owner"}, "failed", "running", "feedback"),
		lists(ctx, s, task.Query{Statuses: []task.Status{task.Running}}, "theirs", "running"),
		lists(ctx, s, task.Query{Statuses: []task.Status{task.Pending, task.Failed, task.Failed}}, "nobodys", "failed", "feedback"),
		lists(ctx, s, task.Query{Statuses: []task.Status{"unknown"}}),
		lists(ctx, s, task.Query{Statuses: []task.Status{}, Limit: 1}, "nobodys"),
		lists(ctx, s, task.Query{Name: "questions", Owner: "owner", Statuses: []task.Status{task.Running, task.Failed}}, "failed", "running"),
		lists(ctx, s, task.Query{Name: "questions", Statuses: []task.Status{task.Running, task.Failed}, Limit: 2}, "theirs", "failed"),
	)
}

// submitted returns a Pending operation with an Input, which another Runner can run.
func submitted(id string, n int, name string) task.Operation {
	op := pending(id, n)
	op.Name, op.Input = name, json.RawMessage(`{}`)
	return op
}

func orphansAreWhatTheCallerCanDealWith(ctx context.Context, s task.Store) error {
	running := next(submitted("running", 4, "unknown"), task.Running)
	empty := submitted("empty", 5, "unknown")
	empty.Input = json.RawMessage{}
	nobodys := submitted("nobodys", 6, "questions")
	nobodys.Owner = ""
	return errors.Join(
		creates(ctx, s,
			submitted("questions", 0, "questions"), submitted("feedback", 1, "feedback"), submitted("unknown", 2, "unknown"),
			pending("closure", 3), running, empty, nobodys,
			next(submitted("succeeded", 7, "questions"), task.Succeeded), next(pending("failed", 8), task.Failed),
			next(pending("cancelled", 9), task.Cancelled)),
		orphans(ctx, s, nil, 100, "closure", "running"),
		orphans(ctx, s, []string{"none"}, 100, "closure", "running"),
		orphans(ctx, s, []string{"questions"}, 100, "questions", "closure", "running", "nobodys"),
		orphans(ctx, s, []string{"feedback", "questions"}, 100, "questions", "feedback", "closure", "running", "nobodys"),
		orphans(ctx, s, []string{"unknown"}, 100, "unknown", "closure", "running", "empty"),
		s.Update(ctx, next(running, task.Failed)),
		orphans(ctx, s, nil, 100, "closure"),
	)
}

func orphansAreTheOldestFirst(ctx context.Context, s task.Store) error {
	return errors.Join(
		creates(ctx, s, next(pending("c", 1), task.Running), pending("a", 2), submitted("d", 3, "d"), pending("b", 4)),
		orphans(ctx, s, []string{"d"}, 100, "c", "a", "d", "b"),
		orphans(ctx, s, []string{"d"}, 3, "c", "a", "d"),
		orphans(ctx, s, nil, 3, "c", "a", "b"),
		orphans(ctx, s, nil, 0),
	)
}

func leaseKeepsFromBeingOrphans(ctx context.Context, s task.Store) error {
	late := pending("late", 2)
	return errors.Join(
		s.Renew(ctx, "owner", time.Hour),
		creates(ctx, s, pending("closure", 0), next(pending("running", 1), task.Running)),
		orphans(ctx, s, []string{"questions"}, 10),
		s.Renew(ctx, "owner", 0), // ends the lease at once
		orphans(ctx, s, nil, 10, "closure", "running"),
		s.Renew(ctx, "owner", 0), // without a lease this is no error
		s.Renew(ctx, "owner", time.Hour),
		s.Create(ctx, late),
		orphans(ctx, s, nil, 10),
		s.Update(ctx, disowned(next(late, task.Pending))),
		orphans(ctx, s, nil, 10, "late"),
	)
}

func disowned(op task.Operation) task.Operation {
	op.Owner = ""
	return op
}

// clockSlack is the coarsest resolution that a store's clock may have.
const clockSlack = 5 * time.Millisecond

func leaseRunsOut(ctx context.Context, s task.Store) error {
	const lease = 100 * time.Millisecond
	err := errors.Join(s.Create(ctx, pending("a", 0)), s.Renew(ctx, "owner", time.Hour), orphans(ctx, s, nil, 10))
	before := time.Now()
	err = errors.Join(err, s.Renew(ctx, "owner", lease)) // a shorter lease replaces the longer one
	for err == nil {
		found, orphansErr := s.Orphans(ctx, nil, 10)
		took := time.Since(before)
		switch {
		case orphansErr != nil:
			err = orphansErr
		case len(found) > 0 && took < lease-clockSlack:
			err = fmt.Errorf("a lease of %v expired after %v", lease, took)
		case len(found) > 0:
			return nil
		case took > lease+10*time.Second:
			err = fmt.Errorf("a lease of %v is still held after %v", lease, took)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

func renewedLeaseRunsOn(ctx context.Context, s task.Store) error {
	const lease = 50 * time.Millisecond
	err := errors.Join(s.Create(ctx, pending("a", 0)), s.Renew(ctx, "owner", lease), s.Renew(ctx, "owner", time.Hour))
	time.Sleep(2 * lease)
	return errors.Join(err,
		s.Renew(ctx, "somebody else", time.Hour), // a store may clean up during Renew
		orphans(ctx, s, nil, 10))
}

func leasesOfManyOwners(ctx context.Context, s task.Store) error {
	owner := func(i int) string { return fmt.Sprintf("owner %02d", i) }
	var errs []error
	var left []string
	for i := range 12 {
		op := pending(owner(i), i)
		op.Owner = owner(i)
		errs = append(errs, s.Create(ctx, op))
		if i%3 == 0 {
			left = append(left, owner(i))
		}
	}
	errs = append(errs, atOnce(12, func(i int) error {
		var errs []error
		for range 10 {
			errs = append(errs, s.Renew(ctx, owner(i), time.Hour))
		}
		if i%3 == 0 {
			errs = append(errs, s.Renew(ctx, owner(i), 0))
		}
		return errors.Join(errs...)
	})...)
	return errors.Join(append(errs, orphans(ctx, s, nil, 100, left...))...)
}

func endedContextChangesNothing(ctx context.Context, s task.Store) error {
	op := pending("a", 0)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	err := errors.Join(s.Create(ctx, op), s.Renew(ctx, "owner", time.Hour))
	_, getErr := s.Get(ended, "a")
	_, listErr := s.List(ended, task.Query{})
	_, orphansErr := s.Orphans(ended, nil, 10)
	return errors.Join(err,
		failure("Get", getErr, context.Canceled), failure("List", listErr, context.Canceled),
		failure("Orphans", orphansErr, context.Canceled),
		failure("Create", s.Create(ended, pending("b", 1)), context.Canceled),
		failure("Update", s.Update(ended, next(op, task.Running)), context.Canceled),
		failure("Renew", s.Renew(ended, "owner", 0), context.Canceled),
		listed(ctx, s, op),
		orphans(ctx, s, nil, 10),
	)
}
