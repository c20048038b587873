// Package errtree searches trees of errors as package errors does, but skips typed nils. A typed nil is an error
// interface that holds a nil pointer. Its methods may panic when errors.Is or errors.As calls them.
package errtree

import "reflect"

// IsNil reports whether v, an error or the value of any other interface, is nil or a typed nil.
func IsNil(v any) bool {
	if v == nil {
		return true
	}
	p := reflect.ValueOf(v)
	return p.Kind() == reflect.Pointer && p.IsNil()
}

// Search calls match for err and the errors it wraps, in the order of errors.Is, until match returns true.
func Search(err error, match func(error) bool) bool {
	for !IsNil(err) {
		if match(err) {
			return true
		}
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		case interface{ Unwrap() []error }:
			for _, branch := range e.Unwrap() {
				if Search(branch, match) {
					return true
				}
			}
			return false
		default:
			return false
		}
	}
	return false
}

// Find returns the first E in err's tree, as errors.As does, or the zero value.
func Find[E error](err error) E {
	found, _ := first[E](err)
	return found
}

// Has reports whether err's tree contains an E.
func Has[E error](err error) bool {
	_, ok := first[E](err)
	return ok
}

func first[E error](err error) (found E, ok bool) {
	ok = Search(err, func(err error) (ok bool) {
		if found, ok = err.(E); ok {
			return true
		}
		x, ok := err.(interface{ As(any) bool })
		return ok && x.As(&found)
	})
	return found, ok
}

// Is is errors.Is for a comparable target.
func Is(err, target error) bool {
	return Search(err, func(err error) bool {
		if err == target {
			return true
		}
		x, ok := err.(interface{ Is(error) bool })
		return ok && x.Is(target)
	})
}
