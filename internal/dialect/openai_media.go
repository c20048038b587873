package dialect

import "github.com/aiguard-go/aiguard/internal/jsonscan"

// Embeddings, moderations, images and audio of OpenAI's API.

func embeddingMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "input":
		q.inputs(c)
	case "user", "encoding_format", "dimensions":
	default:
		q.next = true
		q.strings(c)
	}
}

func imageMember(q *query, key []byte, c *jsonscan.Cursor) {
	if string(key) == "prompt" {
		q.text(c)
	}
}

func audioMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "input", "instructions", "prompt":
		q.text(c)
	}
}

// moderationEvent reads a list of verdicts.
func moderationEvent(s *Stream, _ []byte, c jsonscan.Cursor) { listEvent(s, "results", c) }

// embeddingEvent reads a list of embeddings. llama.cpp's own API answers with a bare list at this path.
func embeddingEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	for element := range jsonscan.Elements(c.Text()) {
		s.any = member(element, "embedding") != nil
		s.progress, s.foreign = s.any, s.any
		return
	}
	listEvent(s, "data", c)
}

// listEvent reads an answer with a list in the member called name. Such answers are never streamed.
func listEvent(s *Stream, name string, c jsonscan.Cursor) {
	for key := range c.Members() {
		switch {
		case string(key) == name:
			s.any = hasElement(c.Value())
		case string(key) == "usage":
			s.usage.readOpenAI(&c)
		default:
			errorMember(s, key, &c)
		}
	}
	s.progress = s.any
	s.cut = !s.answer
}

// imageEvent reads an event of a streamed image or a list of images.
func imageEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "type":
			switch string(c.Value()) {
			case `"error"`:
				s.err = true
			case `"image_generation.completed"`, `"image_edit.completed"`: // another image may follow
				s.choices.note(0, true)
			case `"keepalive"`, `"ping"`:
				return
			default:
				s.choices.note(0, false)
			}
			s.any, s.progress = true, true
		case "data", "created":
			if s.answer {
				s.any = true
				s.choices.note(0, true)
			}
			c.Value()
		case "usage":
			s.usage.readOpenAI(&c)
		default:
			errorMember(s, key, &c)
		}
	}
}

// audioEvent reads an event of a streamed transcript or speech, or a whole transcript.
func audioEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "type":
			switch string(c.Value()) {
			case `"error"`:
				s.err = true
			case `"transcript.text.done"`, `"speech.audio.done"`:
				s.any, s.done = true, true
			case `"keepalive"`, `"ping"`:
				return
			default:
				s.any = true
			}
		case "text": // text of a transcript; silence has none
			s.any = true
			s.some(&c)
		case "delta", "audio":
			s.any = true
			s.some(&c)
		case "usage":
			s.usage.readOpenAI(&c)
		default:
			errorMember(s, key, &c)
		}
	}
}
