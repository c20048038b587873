package sqlstore_test

import (
	"bytes"
	"context"
	"database/sql"
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

	_ "github.com/jackc/pgx/v5/stdlib"
)

// The tests start their own PostgreSQL from the programs of Debian's package postgresql. The new cluster has its own
// folder and is reached through a socket there. It is removed after the tests, even if they are killed.

var errNoPostgres = errors.New("PostgreSQL is not installed (Debian: apt-get install postgresql)")

// startPostgres starts the server once and returns its DSN.
var startPostgres = sync.OnceValues(func() (dsn string, err error) {
	bin, err := postgresPrograms()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "sqlstore-postgres-")
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
	postgres.end, postgres.done = stdin, make(chan struct{})
	go func() {
		defer close(postgres.done)
		_ = server.Wait()
	}()
	dsn = fmt.Sprintf("host=%s user=postgres dbname=postgres sslmode=disable", dir)
	if err := answers(dsn); err != nil {
		stopPostgres()
		return "", fmt.Errorf("PostgreSQL does not start: %w\n%s", err, &log)
	}
	return dsn, nil
})

var postgres struct {
	end  io.Closer
	done chan struct{}
}

// stopPostgres stops the server if it runs.
func stopPostgres() {
	if postgres.end != nil {
		_ = postgres.end.Close()
		<-postgres.done
	}
}

func postgresPrograms() (string, error) {
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
		return "", errNoPostgres
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
func answers(dsn string) error {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-postgres.done:
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
