// Package sdktest tests other SDKs over Guard.HTTPClient. Everything that works without a guard works with it, and
// callers get the SDKs' own error types.
package sdktest
