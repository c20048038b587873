package dialect

import (
	"bytes"
	"strings"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// maxWalk is the depth to which walk looks for strings. Everything below counts as text.
const maxWalk = 100_000

// level is a container around the current position of a walk.
type level struct {
	object bool
	typed  bool // media and plain are known
	media  bool
	plain  bool // the type says that it is text
	list   bool // a list of media, whose strings are not text
	at     int  // offset of the current member's value
}

// walker finds the strings in structured input. It reads each byte once, and a few times if the type of a part comes
// after its data.
type walker struct {
	value  []byte
	levels []level
	spare  int // number of bytes that may still be read ahead
}

// walk reads every string at any depth of value, except the data of images, sounds and files. In most APIs that data is
// a member of an object whose "type" says so. In APIs without types the name of the member identifies it.
func (q *query) walk(value []byte) { q.walkMember(nil, value) }

// walkMember is walk for the value of the member called name.
func (q *query) walkMember(name, value []byte) {
	list := q.carries(name)
	if q.enough {
		return
	}
	if said(value) {
		if !list {
			q.emit(Part{Value: value})
		}
		return
	}
	w := walker{value: value, spare: 4*len(value) + 1<<10}
	key := false // a name comes next
	for i := 0; i < len(value) && !q.enough; {
		switch c := value[i]; c {
		case '"':
			end, ok := jsonscan.SkipString(value, i)
			if !ok {
				return
			}
			text := value[i:end]
			i = end
			if !key {
				if n := len(w.levels); len(text) > 2 && (n == 0 || !w.levels[n-1].list) {
					q.emit(Part{Value: text})
				}
				continue
			}
			key = false
			for i < len(value) && (value[i] == ':' || value[i] <= ' ') {
				i++
			}
			here := &w.levels[len(w.levels)-1]
			here.at = i
			switch string(text) {
			case `"type"`:
				if end, ok := jsonscan.SkipString(value, i); ok && !here.typed {
					here.is(value[i:end])
				}
			case `"encrypted_content"`: // part of reasoning and of compacted input, not text
				if i, ok = jsonscan.Skip(value, i); !ok {
					return
				}
			case `"image_url"`, `"file_data"`, `"file_url"`, `"data"`, `"bytes"`, `"result"`:
				if w.inMedia() {
					if i, ok = jsonscan.Skip(value, i); !ok {
						return
					}
				}
			}
			if list = q.carries(text[1 : len(text)-1]); list && i < len(value) && value[i] == '"' {
				if i, ok = jsonscan.SkipString(value, i); !ok {
					return
				}
			}
			continue
		case '{', '[':
			if len(w.levels) == maxWalk {
				q.emit(Part{Value: value[i:]})
				return
			}
			w.levels = append(w.levels, level{object: c == '{', typed: c == '[', list: list && c == '[', at: i})
			key, list = c == '{', false
		case '}', ']':
			if len(w.levels) > 0 {
				w.levels = w.levels[:len(w.levels)-1]
			}
			key = false
		case ',':
			key = len(w.levels) > 0 && w.levels[len(w.levels)-1].object
		}
		i++
	}
}

// carries reports whether a string or a list of strings in the member called name is an image, a sound or a file. It
// reports false for APIs whose parts have types.
func (q *query) carries(name []byte) bool {
	if !q.api.untyped {
		return false
	}
	switch string(name) {
	case "bytes", "mask":
		return true
	}
	for _, end := range [...]string{"image", "images", "video", "audio", "_base64"} { // inputImage, init_image, image_base64
		if n := len(name) - len(end); n >= 0 && strings.EqualFold(string(name[n:]), end) {
			return true
		}
	}
	return false
}

// inMedia reports whether an enclosing object is a message part with an image, a sound or a file.
func (w *walker) inMedia() bool {
	for i := len(w.levels) - 1; i >= 0; i-- {
		l := &w.levels[i]
		if !l.typed {
			l.is(w.ahead(l.at))
		}
		if l.media || l.plain {
			return l.media
		}
		if len(w.levels)-i > 64 {
			return false // parts are not that deep, and each check takes time in proportion to the depth
		}
	}
	return false
}

// is records the type of an object.
func (l *level) is(kind []byte) {
	l.typed, l.plain = true, string(kind) == `"text"`
	l.media = isMedia(kind)
}

// ahead returns the type of an object if the type comes after the member at i.
func (w *walker) ahead(i int) []byte {
	for start := i; w.spare > 0; start = i {
		end, ok := jsonscan.Skip(w.value, i)
		if !ok {
			return nil
		}
		for i = end; i < len(w.value) && w.value[i] <= ' '; i++ {
		}
		if i == len(w.value) || w.value[i] != ',' {
			w.spare -= i - start
			return nil
		}
		for i++; i < len(w.value) && w.value[i] <= ' '; i++ {
		}
		if end, ok = jsonscan.SkipString(w.value, i); !ok {
			return nil
		}
		name := w.value[i:end]
		for i = end; i < len(w.value) && (w.value[i] == ':' || w.value[i] <= ' '); i++ {
		}
		w.spare -= i - start
		if string(name) == `"type"` {
			end, ok := jsonscan.SkipString(w.value, i)
			if !ok {
				return nil
			}
			return w.value[i:end]
		}
	}
	return nil
}

// isMedia reports whether a type belongs to a part with an image, a sound or a file.
func isMedia(kind []byte) bool {
	for _, word := range [...]string{"image", "file", "audio", "screenshot", "video", "base64", "document"} {
		if bytes.Contains(kind, []byte(word)) {
			return true
		}
	}
	return false
}
