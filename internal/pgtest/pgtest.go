//go:build unix

// Package pgtest starts a PostgreSQL server for tests.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// ErrNotInstalled means that this machine has no PostgreSQL.
var ErrNotInstalled = errors.New("PostgreSQL is not installed (Debian: apt-get install postgresql)")

// Server is a PostgreSQL server from the programs of Debian's package postgresql. Its new cluster has its own folder and
// is reached through a socket there. It is removed at the end, even if this process is killed. The zero value is ready.
type Server struct {
	once sync.Once
	dsn  string
	err  error
	end  io.Closer
	done chan struct{}
}

// DSN starts the server at the first call and returns its connection string in keyword form.
func (s *Server) DSN() (string, error) {
	s.once.Do(func() { s.dsn, s.err = s.start() })
	return s.dsn, s.err
}

func (s *Server) start() (dsn string, err error) {
	bin, err := programs()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "aiguard-postgres-")
	if err != nil {
		return "", err
	}
	as, err := unprivileged(dir)
	if err != nil {
		return "", err
	}
	// The shell waits for the end of its input, which also comes when this process dies.
	script := `dir=$1 bin=$2
		if "$bin/initdb" --pgdata="$dir/data" --username=postgres --auth=trust --encoding=UTF8 --no-locale --no-sync >&2; then
			"$bin/postgres" -D "$dir/data" -F -c listen_addresses= -c unix_socket_directories="$dir" </dev/null >&2 &
			read -r _
			kill -INT $! && wait $!
		fi
		rm -rf "$dir"`
	server := exec.Command("sh", "-c", script, "sh", dir, bin)
	server.Dir = dir
	server.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setpgid: true} // keeps the terminal's Ctrl-C from the server
	var log bytes.Buffer
	server.Stdout, server.Stderr = nil, &log
	stdin, err := server.StdinPipe()
	if err != nil {
		return "", err
	}
	if err := server.Start(); err != nil {
		return "", err
	}
	s.end, s.done = stdin, make(chan struct{})
	go func() {
		defer close(s.done)
		_ = server.Wait()
	}()
	dsn = fmt.Sprintf("host=%s user=postgres dbname=postgres sslmode=disable", dir)
	if err := s.answers(bin, dir); err != nil {
		s.Stop()
		return "", fmt.Errorf("PostgreSQL does not start: %w\n%s", err, &log)
	}
	return dsn, nil
}

// Stop stops the server if it runs.
func (s *Server) Stop() {
	if s.end != nil {
		_ = s.end.Close()
		<-s.done
	}
}

// programs returns the folder of the newest version.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		version := func(path string) int {
			v, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
			return v
		}
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
	}
	path, err := exec.LookPath("initdb")
	if err != nil {
		return "", ErrNotInstalled
	}
	return filepath.Dir(path), nil
}

// unprivileged gives the folder to another user if this process is root, because PostgreSQL refuses to run as root.
func unprivileged(dir string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, os.Chown(dir, int(uid), int(gid))
}

// answers waits until the server responds.
func (s *Server) answers(bin, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		text, err := exec.CommandContext(ctx, filepath.Join(bin, "pg_isready"), "-h", dir).CombinedOutput()
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(text))
		select {
		case <-ctx.Done():
			return err
		case <-s.done:
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
