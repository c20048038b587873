package dialect

import (
	"bytes"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// maxWalk is how deep walk looks for strings. What is deeper counts as text, whatever it is.
const maxWalk = 100_000

// level is a container around the place where a walk is.
type level struct {
	object bool
	typed  bool // media and plain are known
	media  bool
	plain  bool // it says itself that it is text
	at     int  // where its current member has its value
}

// walker finds the strings in structured input. It passes over each byte once, and a few times where the type of a part
// comes behind its data.
type walker struct {
	value  []byte
	levels []level
	spare  int // bytes that may be looked at ahead
}

// walk reads every string at any depth of value, but for what carries an image, a sound or a file: the member that has the
// data in an object whose "type" says so.
func (q *query) walk(value []byte) {
	if q.enough {
		return
	}
	if said(value) {
		q.emit(Part{Value: value})
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
				if len(text) > 2 {
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
			case `"image_url"`, `"file_data"`, `"file_url"`, `"data"`, `"bytes"`:
				if w.inMedia() {
					if i, ok = jsonscan.Skip(value, i); !ok {
						return
					}
				}
			}
			continue
		case '{', '[':
			if len(w.levels) == maxWalk {
				q.emit(Part{Value: value[i:]})
				return
			}
			w.levels = append(w.levels, level{object: c == '{', typed: c == '[', at: i})
			key = c == '{'
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

// inMedia reports whether an object around this place is the part of a message that carries an image, a sound or a file.
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
			return false // parts are not that deep, and each question would cost the depth
		}
	}
	return false
}

// is notes the type of an object.
func (l *level) is(kind []byte) {
	l.typed, l.plain = true, string(kind) == `"text"`
	l.media = isMedia(kind)
}

// ahead returns the type of an object, if that comes behind its member at i.
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

// isMedia reports whether a type is that of a part which carries an image, a sound or a file.
func isMedia(kind []byte) bool {
	for _, word := range [...]string{"image", "file", "audio", "screenshot", "video", "base64", "document"} {
		if bytes.Contains(kind, []byte(word)) {
			return true
		}
	}
	return false
}
