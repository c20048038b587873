package dialect

import (
	"strconv"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

func first(value []byte) byte {
	for _, c := range value {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return c
		}
	}
	return 0
}

func member(object []byte, name string) []byte {
	for key, value := range jsonscan.Members(object) {
		if string(key) == name {
			return value
		}
	}
	return nil
}

func hasElement(list []byte) bool { return first(list) == '[' && first(list[1:]) != ']' }

// said reports whether a value is a non-empty string.
func said(value []byte) bool { return len(value) > 2 && value[0] == '"' }

func isTrue(value []byte) bool { return string(value) == "true" }

func text(value []byte) string {
	s, _ := jsonscan.Text(value)
	return clip(s)
}

// number returns value as a whole number, or 0.
func number(value []byte) int64 {
	if n, err := strconv.ParseInt(string(value), 10, 64); err == nil {
		return n
	}
	if f, err := strconv.ParseFloat(string(value), 64); err == nil && f > -1e15 && f < 1e15 {
		return int64(f)
	}
	return 0
}

// scalar returns the text of a string or number. It returns "" for null, booleans, objects and arrays.
func scalar(value []byte) (s string, isNumber bool) {
	if s, ok := jsonscan.Text(value); ok {
		return clip(s), false
	}
	if c := first(value); c == '-' || c >= '0' && c <= '9' {
		return clip(string(value)), true
	}
	return "", false
}

// maxMessage limits the provider's message that is kept for the cause of an error.
const maxMessage = 4 << 10

func clip(s string) string {
	if len(s) > maxMessage {
		return s[:maxMessage]
	}
	return s
}

// empty reports whether a value has no content: null, false, 0, "", or an object or array of such values.
func empty(value []byte) bool {
	switch first(value) {
	case '{':
		for _, v := range jsonscan.Members(value) {
			if !hollow(v) {
				return false
			}
		}
		return true
	case '[':
		for v := range jsonscan.Elements(value) {
			if !hollow(v) {
				return false
			}
		}
		return true
	}
	return hollow(value)
}

// hollow is empty for a nested value. It reads only the bytes of the value itself.
func hollow(value []byte) bool {
	switch string(value) {
	case "", "null", "false", "0", `""`, "{}", "[]":
		return true
	}
	return false
}
