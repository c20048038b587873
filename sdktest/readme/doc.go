// Package readme compiles and runs the lines of the table in README.md that put each SDK under a guard. Each file has the
// lines of one SDK, with the imports that they need.
package readme
