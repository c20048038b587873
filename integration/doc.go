// Package integration tests the guarded client against an OpenAI-compatible server that we did not
// write: aimock, the npm package @copilotkit/aimock, which package.json pins.
//
// aiguardtest plays every fault we know of, and shares our reading of the API. This package is the
// check on that reading. It needs Node.js 20.15 or newer, and once:
//
//	npm ci
//
// Without them its tests are skipped; in CI, where the server must be there, they fail.
package integration
