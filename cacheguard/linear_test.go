package cacheguard

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/aiguard-go/aiguard/internal/linear"
	"github.com/stretchr/testify/require"
)

// hostile returns request bodies of about size bytes that a user could inject.
var hostile = map[string]func(size int) string{
	"nested arrays": func(size int) string { return repeated(strings.Repeat("[", 90)+strings.Repeat("]", 90), size) },
	"nested objects": func(size int) string {
		return repeated(strings.Repeat(`{"a":`, 90)+"1"+strings.Repeat("}", 90), size)
	},
	"one deep array": func(size int) string {
		return `{"a":` + strings.Repeat("[", 90) + strings.Repeat("1,", size/2) + "1" + strings.Repeat("]", 90) + `}`
	},
	"many fields": func(size int) string {
		var b strings.Builder
		b.WriteString(`{"":0`)
		for i := 0; b.Len() < size; i++ {
			fmt.Fprintf(&b, `,"%x":%d`, i*2654435761%(1<<32), i)
		}
		return b.String() + "}"
	},
	"escapes": func(size int) string { return `{"a":"` + strings.Repeat(`\u0041\n\ud83d\ude00`, size/20) + `"}` },
	"text":    func(size int) string { return `{"a":"` + strings.Repeat("x", size) + `"}` },
}

func repeated(value string, size int) string {
	return `{"a":[` + strings.Repeat(value+",", size/(len(value)+1)) + value + `]}`
}

// The cost of reading a request must be linear in its size, because clients send it before any authentication.
func TestRequestCostIsLinear(t *testing.T) {
	tr := newKeyer(t, Config{})
	for name, body := range hostile {
		t.Run(name, func(t *testing.T) {
			linear.Check(t, 30, func(size int) (int, func()) {
				text := body(size)
				req, err := http.NewRequest(http.MethodPost, chatURL, strings.NewReader(text))
				require.NoError(t, err)
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Authorization", "Bearer sk-one")
				return len(text), func() {
					_, err := tr.read(req, Policy{})
					require.NoError(t, err)
				}
			})
		})
	}
}
