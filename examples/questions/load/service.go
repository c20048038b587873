package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/aiguard-go/aiguard/internal/procmem"
)

// service is the program in its own process.
type service struct {
	cmd *exec.Cmd
	dir string
	url string
	pid int
}

func startService(ctx context.Context, flags ...string) (*service, error) {
	dir, err := os.MkdirTemp("", "questions")
	if err != nil {
		return nil, err
	}
	s := &service{dir: dir}
	if err := s.start(ctx, flags); err != nil {
		s.kill()
		return nil, err
	}
	return s, nil
}

func (s *service) start(ctx context.Context, flags []string) error {
	program := filepath.Join(s.dir, "questions")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/aiguard-go/aiguard/examples/questions").CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	s.cmd = exec.Command(program, flags...)
	s.cmd.Env = append(os.Environ(), "OPENAI_API_KEY=")
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd.Stderr = log
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.pid = s.cmd.Process.Pid
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		why, _ := os.ReadFile(log.Name())
		return fmt.Errorf("the service did not start: %w\n%s", err, why)
	}
	s.url = strings.TrimPrefix(strings.TrimSpace(line), "listening on ")
	return nil
}

// end sends SIGTERM to the service and returns how it exited.
func (s *service) end() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.cmd.Wait()
}

func (s *service) kill() {
	if s.pid != 0 {
		_ = s.cmd.Process.Kill() // fails if the process has ended
		_ = s.cmd.Wait()
	}
	_ = os.RemoveAll(s.dir)
}

// memory samples the resident memory of a process.
type memory struct {
	samples []int64
	over    chan struct{}
	done    chan struct{}
}

func watchMemory(pid int) *memory {
	m := &memory{over: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(m.done)
		for tick := time.Tick(50 * time.Millisecond); ; {
			select {
			case <-tick:
				if kB, _, _ := procmem.Of(strconv.Itoa(pid)); kB > 0 { // 0 if the system does not report it
					m.samples = append(m.samples, int64(kB)<<10)
				}
			case <-m.over:
				return
			}
		}
	}()
	return m
}

// stop returns the peak memory in the first and in the last quarter, or 0 if the system does not report it.
func (m *memory) stop() (first, last int64) {
	close(m.over)
	<-m.done
	for i, rss := range m.samples {
		switch {
		case 4*i < len(m.samples):
			first = max(first, rss)
		case 4*i >= 3*len(m.samples):
			last = max(last, rss)
		}
	}
	return first, last
}
