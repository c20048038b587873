package dialect

import "strings"

// What no dialect knows is passed through, and not judged: only its name is made up.

// NameOf names an operation by the first part of its path behind the version: "models", "files".
func NameOf(path string) string {
	if _, rest, ok := strings.Cut(path, "/v1/"); ok {
		path = rest
	}
	op, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return op
}
