package dialect

import "strings"

// Endpoints without a dialect pass through without judgement. Their name in logs comes from the path.

// NameOf returns a name for an operation: the first segment of its path after the version, such as "models" or "files".
func NameOf(path string) string {
	if _, rest, ok := strings.Cut(path, "/v1/"); ok {
		path = rest
	}
	op, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return op
}
