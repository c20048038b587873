package cacheguard

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
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
			var perByte []float64
			for _, size := range []int{16 << 10, 64 << 10, 128 << 10, 256 << 10} {
				text := body(size)
				took, bytes := time.Hour, uint64(0)
				for range 5 {
					req, err := http.NewRequest(http.MethodPost, chatURL, strings.NewReader(text))
					require.NoError(t, err)
					req.Header.Set("Content-Type", "application/json")
					req.Header.Set("Authorization", "Bearer sk-one")
					before, start := allocated(), time.Now()
					_, err = tr.read(req, Policy{})
					took, bytes = min(took, time.Since(start)), allocated()-before
					require.NoError(t, err)
				}
				perByte = append(perByte, float64(took)/float64(len(text)))
				t.Logf("%7d bytes: %6.1f ns and %4.1f bytes for each", len(text), perByte[len(perByte)-1], float64(bytes)/float64(len(text)))
				assert.Less(t, float64(bytes)/float64(len(text)), 30.0, "bytes for a byte")
				assert.Less(t, perByte[len(perByte)-1], 5000.0, "nanoseconds for a byte, on a busy machine")
			}
			assert.Less(t, perByte[3], 8*perByte[0]+50, "quadratic would be 16 times")
		})
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
