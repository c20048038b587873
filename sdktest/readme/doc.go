// Package readme compiles and runs the lines of the SDK table in README.md. Each file has the lines of one SDK with
// their imports.
package readme
