package tokenguard

import "strings"

// The encodings of OpenAI's models, by their names in tiktoken.
const (
	o200k = "o200k_base"
	cl100 = "cl100k_base"
	p50k  = "p50k_base"
	r50k  = "r50k_base"
)

// model holds the facts that counting needs about a model.
type model struct {
	encodings []string // if several, the encoding is unknown and the largest count applies
	chat      bool     // accepts messages
}

var (
	newer    = model{[]string{o200k}, true}
	older    = model{[]string{cl100}, true}
	plain    = model{[]string{cl100}, false}
	codex    = model{[]string{p50k}, false}
	gpt3     = model{[]string{r50k}, false}
	unknown  = model{[]string{o200k, cl100}, true}
	families = []struct {
		name string // model name, alone or followed by a date, a size, or a deployment suffix
		model
	}{ // a longer name comes before its own prefix; from tiktoken's model.py
		{"gpt-4o", newer}, {"chatgpt-4o", newer}, {"gpt-4.1", newer}, {"gpt-4.5", newer}, {"gpt-5", newer},
		{"gpt-oss", newer}, {"o1", newer}, {"o3", newer}, {"o4", newer},
		{"gpt-3.5-turbo-instruct", plain}, {"gpt-35-turbo-instruct", plain},
		{"gpt-4", older}, {"gpt-3.5", older}, {"gpt-35", older},
		{"text-embedding-3", plain}, {"text-embedding-ada-002", plain}, {"davinci-002", plain}, {"babbage-002", plain},
		{"text-davinci-001", gpt3}, {"text-davinci", codex}, {"code-davinci", codex}, {"code-cushman", codex},
		{"davinci-codex", codex}, {"cushman-codex", codex},
		{"text-curie", gpt3}, {"text-babbage", gpt3}, {"text-ada", gpt3}, {"text-similarity", gpt3},
		{"text-search", gpt3}, {"code-search", gpt3}, {"davinci", gpt3}, {"curie", gpt3}, {"babbage", gpt3},
		{"ada", gpt3}, {"gpt-2", gpt3}, {"gpt2", gpt3},
	}
)

// Encoding returns the name of model's encoding, such as "o200k_base", and whether the model is known. The model's
// name may have a date, a size or another suffix ("gpt-4o-2024-08-06"). Fine-tuned models ("ft:gpt-4o-mini:…"),
// Azure's spellings, deployments named after their model ("gpt-35-turbo-eu"), and a router's prefix
// ("openai/o3-mini") are also known.
//
// Other names, such as a deployment called "prod" or another vendor's model, are counted with both o200k_base and
// cl100k_base, and the larger count applies. For any current OpenAI model this count is never too low. Other vendors'
// models may need more tokens, so leave room for them.
func Encoding(model string) (name string, known bool) {
	m := modelOf(model)
	return m.encodings[0], len(m.encodings) == 1
}

func modelOf(name string) model {
	name = strings.ToLower(strings.TrimPrefix(name, "ft:"))
	name = name[strings.LastIndexByte(name, '/')+1:]
	for i := range families {
		f := &families[i]
		if rest, ok := strings.CutPrefix(name, f.name); ok && (rest == "" || strings.IndexByte("-_.:@", rest[0]) >= 0) {
			return f.model
		}
	}
	return unknown
}
