# Benchmarks. Their results stand in docs/benchmarks.md.

.PHONY: bench-webhook
bench-webhook: ## Decisions per second and core over TLS, beside an always-allow handler; writes docs/benchmarks.md
	cargo bench --locked --bench webhook

.PHONY: bench-admission
bench-admission: ## What reading, deciding and patching cost by themselves
	cargo bench --locked --bench admission
