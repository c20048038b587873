package errtree

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

type convertible struct{}

func (convertible) Error() string { return "convertible" }

func (convertible) As(target any) bool {
	p, ok := target.(**fs.PathError)
	if ok {
		*p = &fs.PathError{Op: "converted"}
	}
	return ok
}

func TestFindsWhatPackageErrorsFinds(t *testing.T) {
	path := &fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}
	for name, err := range map[string]error{
		"nil":         nil,
		"bare":        path,
		"wrapped":     fmt.Errorf("a: %w", path),
		"twice":       fmt.Errorf("a: %w", fmt.Errorf("b: %w", path)),
		"joined":      errors.Join(io.EOF, path),
		"nested":      errors.Join(errors.Join(io.EOF), fmt.Errorf("a: %w", path)),
		"convertible": fmt.Errorf("a: %w", convertible{}),
		"other":       io.EOF,
		"url":         &url.Error{Op: "Get", Err: context.DeadlineExceeded},
		"OpError":     &net.OpError{Op: "dial", Err: path},
	} {
		t.Run(name, func(t *testing.T) {
			var want *fs.PathError
			errors.As(err, &want)
			require.Equal(t, want, Find[*fs.PathError](err))
			require.Equal(t, want != nil, Has[*fs.PathError](err))
			var timeout net.Error
			errors.As(err, &timeout)
			require.Equal(t, timeout, Find[net.Error](err))
			for _, target := range []error{io.EOF, fs.ErrNotExist, path, context.DeadlineExceeded} {
				require.Equal(t, errors.Is(err, target), Is(err, target), "%v", target)
			}
		})
	}
}

func TestTypedNilsAreSkipped(t *testing.T) {
	for _, err := range []error{(*url.Error)(nil), (*net.OpError)(nil), (*fs.PathError)(nil), (*json.SyntaxError)(nil)} {
		require.True(t, IsNil(err))
		require.False(t, Is(err, io.EOF))
		require.Nil(t, Find[*url.Error](err))
		require.Nil(t, Find[net.Error](err))
		require.False(t, Has[net.Error](err))
		require.True(t, Is(errors.Join(err, io.EOF), io.EOF), "the branch behind a typed nil is searched")
		require.False(t, Is(fmt.Errorf("a: %w", err), io.EOF))
	}
}
