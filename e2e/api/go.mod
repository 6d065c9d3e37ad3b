// The tests of the webhook against a real Kubernetes API server. Nothing but Go's standard library: the API server is
// spoken to with kubectl, as a user does, or in plain HTTP.
module github.com/pinhole-dev/pinhole/e2e/api

go 1.26.0
