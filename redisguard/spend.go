package redisguard

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/aiguard-go/aiguard/budget"
)

//go:embed spend.lua
var spendSource string

var spendScript = redis.NewScript(spendSource)

// Store is a budget.Store in Redis: the windows of package budget are shared by all processes with the same key. It is
// safe for concurrent use.
//
// Sums are compared with limits exactly up to 9e15. Slots that no longer count expire by themselves. If Redis loses its
// data, the windows begin again at zero. If the client repeats a command whose reply was lost, an amount may be counted
// twice; MaxRetries -1 of the client turns that off.
type Store struct {
	client redis.UniversalClient
	prefix string
}

// NewStore returns a Store whose keys in Redis begin with key, in one hash slot. key has 1 to 200 bytes without { and }.
// The caller closes client.
func NewStore(client redis.UniversalClient, key string) (*Store, error) {
	if err := checkClient(client); err != nil {
		return nil, err
	}
	if err := checkKey("key", key); err != nil {
		return nil, err
	}
	return &Store{client, "aiguard:{" + key + "}:spent:"}, nil
}

// Spend implements budget.Store, in one round trip.
func (s *Store) Spend(ctx context.Context, charges []budget.Charge) (sums []budget.Sum, spent bool, err error) {
	if len(charges) == 0 {
		return nil, true, nil
	}
	keys, args := make([]string, 0, len(charges)), make([]any, 0, 5*len(charges))
	for i := range charges {
		c := &charges[i]
		keys = append(keys, s.prefix+c.Key)
		args = append(args, c.Slot, c.Since, c.Until, c.Amount, c.Max)
	}
	reply, err := spendScript.Run(ctx, s.client, keys, args...).Slice()
	if err != nil {
		return nil, false, fmt.Errorf("redisguard: spend: %w", err)
	}
	sums, spent, err = parseSpent(reply, charges)
	if err != nil {
		return nil, false, fmt.Errorf("redisguard: spend: %w", err)
	}
	return sums, spent, nil
}

var errReply = errors.New("unexpected reply")

// parseSpent reads the reply of spend.lua.
func parseSpent(reply []any, charges []budget.Charge) (sums []budget.Sum, spent bool, err error) {
	if len(reply) != 2 {
		return nil, false, errReply
	}
	flag, ok := reply[0].(int64)
	all, ok2 := reply[1].([]any)
	if !ok || !ok2 || len(all) != len(charges) {
		return nil, false, errReply
	}
	sums = make([]budget.Sum, len(charges))
	for i := range all {
		slots, ok := all[i].([]any)
		if !ok || len(slots)%2 != 0 {
			return nil, false, errReply
		}
		for j := 0; j < len(slots); j += 2 {
			slot, err1 := number(slots[j])
			amount, err2 := number(slots[j+1])
			if err := errors.Join(err1, err2); err != nil {
				return nil, false, err
			}
			if slot < charges[i].Since || amount <= 0 {
				continue
			}
			sum := &sums[i]
			if sum.Oldest == 0 || slot < sum.Oldest {
				sum.Oldest = slot
			}
			if sum.Spent += amount; sum.Spent < 0 {
				sum.Spent = math.MaxInt64 // overflow
			}
		}
	}
	return sums, flag == 1, nil
}

func number(v any) (int64, error) {
	text, ok := v.(string)
	if !ok {
		return 0, errReply
	}
	return strconv.ParseInt(text, 10, 64)
}
