package riverguard

import (
	"testing"
)

func FuzzParseIDAcceptsOnlyWhatItMakes(f *testing.F) {
	for _, id := range []string{"", "-", "SECRET-1", "SECRET-01", "SECRET-+1", "SECRET--1", "a-b-1", "\x00-1", "é-1", "-9223372036854775809"} {
		f.Add(id, int64(1))
	}
	f.Fuzz(func(t *testing.T, id string, number int64) {
		if job, secret, ok := parseID(id); ok && operationID(job, secret) != id {
			t.Errorf("%q is read as the job %d with the secret %q", id, job, secret)
		}
		const secret = "SECRET"
		if job, got, ok := parseID(operationID(number, secret)); !ok || job != number || got != secret {
			t.Errorf("the ID of %d is read as %d, %q, %v", number, job, got, ok)
		}
	})
}
