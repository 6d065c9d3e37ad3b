# Benchmarks. Their results stand in docs/benchmarks.md.

.PHONY: bench-webhook
bench-webhook: ## Decisions per second and core over TLS, beside an always-allow handler; writes docs/benchmarks.md
	cargo bench --locked --bench webhook

.PHONY: bench-admission
bench-admission: ## What reading, deciding and patching cost by themselves
	cargo bench --locked --bench admission

.PHONY: bench-ruleset
bench-ruleset: ## What computing, comparing and writing 10 000 mappings cost by themselves
	cargo bench --locked --bench ruleset

.PHONY: bench-dataplane
bench-dataplane: ## Programming, changes and traffic of each backend, beside others that do the same; writes docs/benchmarks.md
	@.ci/packages $(KERNEL_PACKAGES) containernetworking-plugins
	cargo bench --locked --no-run --bench dataplane
	PATH="$$PATH:/usr/sbin:/sbin" $(AS_NETWORK_ROOT) cargo bench --locked --bench dataplane

.PHONY: bench-scale
bench-scale: packages ## 100 000 claims and 10 000 Pinholes in a real API server: memory and waits; writes docs/benchmarks.md (15 min)
	cargo build --locked --release
	@control_plane=$$(e2e/build-control-plane) && cd e2e/api && \
	PINHOLE_CONTROL_PLANE=$$control_plane PINHOLE_BIN=$(CURDIR)/target/release/pinhole go run ./scale
