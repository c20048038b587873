// Package integration tests the guarded client against an independent OpenAI-compatible server: aimock, the npm package
// @copilotkit/aimock, whose version package.json pins.
//
// aiguardtest plays every fault that the project knows, and depends on the project's reading of the API. This package
// checks that reading. It needs Node.js 20.15 or newer, and once:
//
//	npm ci
//
// Without them its tests are skipped. In CI they fail instead.
package integration
