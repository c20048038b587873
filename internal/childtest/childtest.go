// Package childtest runs a test binary as another process. An order in the environment tells the process what to do.
package childtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
)

const env = "CHILDTEST_ORDER"

// Main obeys the order of a child process and exits. It does nothing in other processes. TestMain calls it first.
func Main[Order any](obey func(Order, context.Context) error) {
	text, ok := os.LookupEnv(env)
	if !ok {
		return
	}
	var order Order
	err := json.Unmarshal([]byte(text), &order)
	if err == nil {
		err = obey(order, context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Command returns the command that runs this test binary as a child process with an order.
func Command(order any) (*exec.Cmd, error) {
	text, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	binary, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), env+"="+string(text))
	return cmd, nil
}
