# Included by the Makefile: the tests against a real Kubernetes API server, and what all tests written in Go share.

.PHONY: e2e-control-plane e2e-api e2e-vet e2e-tools pinhole-binary

e2e-control-plane: ## Build kube-apiserver, controller-manager, kubectl, etcd and cert-manager into the cache (9 min cold, then 0 s)
	@e2e/build-control-plane >/dev/null
	@e2e/cert-manager/build >/dev/null

# With the development dependencies, as `cargo test` builds it: else what they share would be compiled twice.
pinhole-binary:
	@cargo test --locked --quiet --no-run --test it

# Another release of Kubernetes than the pinned one, as in `make e2e-api K8S=v1.33.13`.
K8S ?=

e2e-api: packages pinhole-binary ## Test the webhook through a real API server with the real kubectl, of release K8S= (7 min)
	@control_plane=$$(K8S=$(K8S) e2e/build-control-plane) && cert_manager=$$(e2e/cert-manager/build) && cd e2e/api && \
	K8S=$(K8S) PINHOLE_CONTROL_PLANE=$$control_plane PINHOLE_CERT_MANAGER=$$cert_manager PINHOLE_BIN=$(CURDIR)/target/debug/pinhole go run ./report e2e-api .

test: e2e-tools

e2e-tools: ## Test what builds the images and runs containers
	@cd e2e/api && go run ./report runc-wrapper ../docker; first=$$?; go run ./report archive ../../image/archive && exit $$first

check: e2e-vet

# CoreDNS and cert-manager are only formatted: to vet their mains would compile all of them once more.
GO_MODULES := e2e/api e2e/cert-manager e2e/docker e2e/images/coredns e2e/kind image/archive tests/chart

e2e-vet:
	@unformatted=$$(gofmt -l $(GO_MODULES)); [ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w: $$unformatted"; exit 1; }
	@for module in $(filter-out e2e/cert-manager e2e/images/coredns,$(GO_MODULES)); do (cd $$module && GOWORK=off go vet ./...) || exit 1; done
