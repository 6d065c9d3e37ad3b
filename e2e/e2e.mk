# Included by the Makefile: the tests against a real Kubernetes API server.

.PHONY: e2e-control-plane e2e-api e2e-vet

e2e-control-plane: ## Build kube-apiserver, controller-manager, kubectl and etcd into the cache (7 min cold, then 0 s)
	@e2e/build-control-plane >/dev/null

e2e-api: packages ## Test the webhook through a real API server with the real kubectl (7 min)
	@control_plane=$$(e2e/build-control-plane) && cargo build --locked && cd e2e/api && \
	PINHOLE_CONTROL_PLANE=$$control_plane PINHOLE_BIN=$(CURDIR)/target/debug/pinhole go run ./report

check: e2e-vet

e2e-vet:
	@unformatted=$$(gofmt -l e2e/api); [ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w: $$unformatted"; exit 1; }
	@cd e2e/api && go vet ./...
