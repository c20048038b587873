package dialect

import "strings"

// An endpoint that no dialect knows is passed through and not judged. It gets a name for logs from its path.

// NameOf names an operation by the first part of its path behind the version: "models", "files".
func NameOf(path string) string {
	if _, rest, ok := strings.Cut(path, "/v1/"); ok {
		path = rest
	}
	op, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return op
}
