// Package sdktest tests other SDKs over Guard.HTTPClient: what works without a guard works with it, and the SDKs' own error
// types arrive.
package sdktest
