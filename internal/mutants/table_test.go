package main

import "testing"

func TestEveryMutationHasItsPlaceInTheCode(t *testing.T) {
	if err := checkTable("../..", mutations); err != nil {
		t.Error(err)
	}
}
