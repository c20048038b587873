// Package pgvector tests cacheguard's pgindex with a real PostgreSQL and the extension pgvector. Both are in npm packages:
// PGlite is PostgreSQL compiled to WebAssembly, and its socket server speaks the protocol. It needs Node.js 20.15 or newer,
// and once, in the folder integration:
//
//	npm ci
//
// Without them the tests are skipped. In CI they fail instead.
package pgvector
