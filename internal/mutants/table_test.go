package main

import "testing"

func TestEveryMutationMatchesTheCode(t *testing.T) {
	if err := checkTable("../..", mutations); err != nil {
		t.Error(err)
	}
}
