package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/budget"
)

// Spend implements budget.Store in one transaction. It locks the keys before it reads what was spent.
func (s *Store) Spend(ctx context.Context, charges []budget.Charge) (sums []budget.Sum, spent bool, err error) {
	if len(charges) == 0 {
		return nil, true, nil
	}
	for left := s.db.Stats().OpenConnections; left >= 0; left-- {
		sums, spent, err = s.spendOrClose(ctx, charges)
		if !isReadOnly(err) { // as for execElsewhere
			break
		}
	}
	return sums, spent, failed("spend", err)
}

// spendOrClose is Spend in one session, which is closed if it is read-only.
func (s *Store) spendOrClose(ctx context.Context, charges []budget.Charge) (sums []budget.Sum, spent bool, err error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return nil, false, err
	}
	defer conn.Close()                                                              // it only goes back to the pool
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted}) // to see, under the locks, what others have done
	if err != nil {
		return nil, false, err
	}
	sums, spent, err = s.spend(ctx, tx, charges)
	if err == nil && spent {
		err = tx.Commit()
	} else {
		_ = tx.Rollback() // nothing has changed, or err says more
	}
	if isReadOnly(err) {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	if err != nil {
		return nil, false, err
	}
	return sums, spent, nil
}

func (s *Store) spend(ctx context.Context, tx *sql.Tx, charges []budget.Charge) (sums []budget.Sum, spent bool, err error) {
	if err := s.lockKeys(ctx, tx, charges); err != nil {
		return nil, false, err
	}
	if sums, err = sumsOf(ctx, tx, charges); err != nil {
		return nil, false, err
	}
	changes := false
	for i, c := range charges {
		if c.Amount > 0 && sums[i].Spent > c.Max-c.Amount {
			return sums, false, nil
		}
		changes = changes || c.Amount != 0
	}
	if !changes {
		return sums, true, nil
	}
	for _, c := range charges {
		if err := addTo(ctx, tx, c); err != nil {
			return nil, false, err
		}
	}
	sums, err = sumsOf(ctx, tx, charges)
	return sums, err == nil, err
}

// lockKeys keeps other transactions from the keys until this one is over. All lock in the same order, so that none waits for
// another in a circle. SQLite has one writer at a time.
func (s *Store) lockKeys(ctx context.Context, tx *sql.Tx, charges []budget.Charge) error {
	if s.dialect.lockKey == "" {
		return nil
	}
	locks := make([]int64, len(charges))
	for i, c := range charges {
		h := fnv.New64a()
		_, _ = h.Write([]byte(c.Key))
		locks[i] = int64(h.Sum64())
	}
	slices.Sort(locks)
	for _, lock := range slices.Compact(locks) {
		if _, err := tx.ExecContext(ctx, s.dialect.lockKey, lock); err != nil {
			return err
		}
	}
	return nil
}

// sumsOf returns what was spent under the keys of charges.
func sumsOf(ctx context.Context, tx *sql.Tx, charges []budget.Charge) ([]budget.Sum, error) {
	var args condition
	terms := make([]string, len(charges))
	for i, c := range charges {
		terms[i] = `counter = ` + args.arg(c.Key) + ` AND slot >= ` + args.arg(c.Since)
	}
	rows, err := tx.QueryContext(ctx, `SELECT counter, CAST(SUM(amount) AS BIGINT), MIN(slot) FROM aiguard_spent
		WHERE amount > 0 AND (`+strings.Join(terms, " OR ")+`) GROUP BY counter`, args.args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	sums := make([]budget.Sum, len(charges))
	for rows.Next() {
		var key string
		var sum budget.Sum
		if err := rows.Scan(&key, &sum.Spent, &sum.Oldest); err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(charges, func(c budget.Charge) bool { return c.Key == key }); i >= 0 {
			sums[i] = sum
		}
	}
	return sums, cmp.Or(rows.Err(), rows.Close())
}

// addTo adds a charge to its slot.
func addTo(ctx context.Context, tx *sql.Tx, c budget.Charge) (err error) {
	switch {
	case c.Amount > 0:
		_, err = tx.ExecContext(ctx, `INSERT INTO aiguard_spent (counter, slot, over_at, amount) VALUES ($1, $2, $3, $4)
			ON CONFLICT (counter, slot) DO UPDATE SET amount = aiguard_spent.amount + excluded.amount`, c.Key, c.Slot, c.Until, c.Amount)
	case c.Amount < 0:
		_, err = tx.ExecContext(ctx, `UPDATE aiguard_spent SET amount = CASE WHEN amount > $3 THEN amount - $3 ELSE 0 END
			WHERE counter = $1 AND slot = $2`, c.Key, c.Slot, -c.Amount)
	}
	return err
}

// DeleteSpent deletes what was spent in windows that ended before the given time, and returns the number of entries. It
// deletes in steps, as DeleteFinished does. Pass a time that is longer ago than any call can take, such as an hour.
func (s *Store) DeleteSpent(ctx context.Context, before time.Time) (deleted int64, err error) {
	const step = 1000
	for n := int64(step); err == nil && n == step; deleted += n {
		n, err = s.exec(ctx, fmt.Sprintf(`DELETE FROM aiguard_spent WHERE (counter, slot) IN
			(SELECT counter, slot FROM aiguard_spent WHERE over_at < $1 ORDER BY over_at LIMIT %d)`, step), before.Unix())
	}
	return deleted, failed("delete what was spent", err)
}
