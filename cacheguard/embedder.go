package cacheguard

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/callctx"
)

// The defaults of EmbedderConfig.
const (
	DefaultEmbeddingModel      = openai.SmallEmbedding3
	DefaultEmbeddingDimensions = 256
	DefaultEmbeddingCache      = 1000
)

// EmbedderConfig configures an Embedder. The zero value is valid. Zero means the default, and negative values are
// rejected.
type EmbedderConfig struct {
	Model      openai.EmbeddingModel // default text-embedding-3-small
	Dimensions int                   // of the vectors; -1 leaves them to the provider, for models without a choice. Default 256
	CacheSize  int                   // vectors that the Embedder keeps; each has 4 bytes per dimension. Default 1000
}

const (
	// gatherTime is how long a request waits for further texts. It is short against a request.
	gatherTime = 2 * time.Millisecond

	maxBatch = 256 // texts in one request
)

// Embedder makes vectors with the embeddings API of a guarded client. Texts that come at the same time share a request.
// An Embedder keeps the vectors of recent texts, but not the texts. It is safe for concurrent use.
type Embedder struct {
	client *aiguard.Client
	cfg    EmbedderConfig
	cache  *otter.Cache[[sha256.Size]byte, []float32]

	mu       sync.Mutex
	gathered *batch // waits for further texts; nil: none
}

// NewEmbedder returns an Embedder for Similar.Embed. Each request is a call of client's guard, with its limits,
// deadlines and budget. The texts of several callers share a request, so the request has the context values of none of
// them. To give the requests a tenant or a priority, pass client.With. NewEmbedder returns an error that names the
// invalid field, its value and what is allowed.
func NewEmbedder(client *aiguard.Client, cfg EmbedderConfig) (*Embedder, error) {
	switch {
	case client == nil:
		return nil, errors.New("cacheguard: NewEmbedder: client is nil; want a client such as guard.Client(config)")
	case cfg.Dimensions < -1:
		return nil, fmt.Errorf("cacheguard: EmbedderConfig.Dimensions is %d; want -1 (the model's own), 0 (the default, %d) or more",
			cfg.Dimensions, DefaultEmbeddingDimensions)
	case cfg.CacheSize < 0:
		return nil, fmt.Errorf("cacheguard: EmbedderConfig.CacheSize is %d; want 0 (the default, %d) or more",
			cfg.CacheSize, DefaultEmbeddingCache)
	}
	if cfg.Model == "" {
		cfg.Model = DefaultEmbeddingModel
	}
	if cfg.Dimensions == 0 {
		cfg.Dimensions = DefaultEmbeddingDimensions
	}
	if cfg.CacheSize == 0 {
		cfg.CacheSize = DefaultEmbeddingCache
	}
	cache, err := otter.New(&otter.Options[[sha256.Size]byte, []float32]{
		MaximumSize: cfg.CacheSize,
		Executor:    func(f func()) { f() }, // evicts within Set, without a goroutine
	})
	if err != nil {
		return nil, fmt.Errorf("cacheguard: NewEmbedder: %w", err)
	}
	return &Embedder{client: client, cfg: cfg, cache: cache}, nil
}

// Embed returns the vectors of texts, in their order. The caller must not modify them. Embed returns when ctx ends; the
// request continues for its other callers.
func (e *Embedder) Embed(ctx context.Context, texts []string) ([][]float32, error) {
	vectors := make([][]float32, len(texts))
	waits := map[*batch][]int{} // the texts that are in a request
	for i, text := range texts {
		if v, ok := e.cache.GetIfPresent(sha256.Sum256([]byte(text))); ok {
			vectors[i] = v
			continue
		}
		b := e.gather(text)
		waits[b] = append(waits[b], i)
	}
	var err error
	for b, indices := range waits {
		select {
		case <-b.done:
		case <-ctx.Done():
		}
		for _, i := range indices {
			b.leave()
			if err == nil && ctx.Err() == nil {
				vectors[i], err = b.vectors[texts[i]], b.err
			}
		}
	}
	if ctx.Err() != nil {
		return nil, callctx.Err(ctx)
	}
	if err != nil {
		return nil, err
	}
	return vectors, nil
}

// batch is a request of several texts.
type batch struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when vectors and err are final

	mu      sync.Mutex
	texts   map[string]bool
	callers int // texts that somebody waits for; the last to leave ends the request

	vectors map[string][]float32
	err     error
}

// gather adds a text to the batch that waits for more, or begins one.
func (e *Embedder) gather(text string) *batch {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.gathered
	if b == nil || !b.join(text) {
		var ctx context.Context
		b = &batch{done: make(chan struct{}), texts: map[string]bool{}}
		ctx, b.cancel = context.WithCancel(context.Background())
		b.join(text)
		e.gathered = b
		go e.run(ctx, b)
	}
	return b
}

// join adds a text and its caller unless the batch is full or all callers have left.
func (b *batch) join(text string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.texts) > 0 && b.callers == 0 || len(b.texts) == maxBatch && !b.texts[text] {
		return false
	}
	b.texts[text] = true
	b.callers++
	return true
}

// leave removes a caller. The last one cancels the request and waits for its end, so that no goroutine outlives the
// callers.
func (b *batch) leave() {
	b.mu.Lock()
	b.callers--
	last := b.callers == 0
	b.mu.Unlock()
	if last {
		b.cancel()
		<-b.done
	}
}

// run waits for further texts and makes the request.
func (e *Embedder) run(ctx context.Context, b *batch) {
	defer close(b.done)
	defer b.cancel()
	b.err = errors.New("cacheguard: the embeddings request ended without a result") // for a runtime.Goexit
	patience := time.NewTimer(gatherTime)
	defer patience.Stop()
	select {
	case <-patience.C:
	case <-ctx.Done():
	}
	texts := e.close(b)
	if b.err = ctx.Err(); b.err != nil {
		return
	}
	request := openai.EmbeddingRequestStrings{
		Input: texts, Model: e.cfg.Model, EncodingFormat: openai.EmbeddingEncodingFormatFloat,
	}
	if e.cfg.Dimensions > 0 {
		request.Dimensions = e.cfg.Dimensions
	}
	response, err := e.client.CreateEmbeddings(ctx, request)
	if err != nil {
		b.err = err
		return
	}
	b.vectors, b.err = arrange(texts, response.Data)
	for text, v := range b.vectors {
		e.cache.Set(sha256.Sum256([]byte(text)), v)
	}
}

// close takes b out of reach of new callers and returns its texts in a fixed order.
func (e *Embedder) close(b *batch) (texts []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gathered == b {
		e.gathered = nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for text := range b.texts {
		texts = append(texts, text)
	}
	slices.Sort(texts)
	return texts
}

var errEmbeddings = errors.New("cacheguard: the embeddings answer does not have one vector for each text")

// arrange returns the vector of each text.
func arrange(texts []string, data []openai.Embedding) (map[string][]float32, error) {
	if len(data) != len(texts) {
		return nil, errEmbeddings
	}
	vectors := make(map[string][]float32, len(texts))
	for _, d := range data {
		if d.Index < 0 || d.Index >= len(texts) || len(d.Embedding) == 0 || vectors[texts[d.Index]] != nil {
			return nil, errEmbeddings
		}
		vectors[texts[d.Index]] = d.Embedding
	}
	return vectors, nil
}
