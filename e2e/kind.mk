# Included by the Makefile: the tests on a real cluster of kubelets, see e2e/README.md.

.PHONY: e2e-up e2e-down

e2e-up: ## Bring up a three-node kind cluster without any image registry (15 min cold, then 1 min; as root)
	@e2e/kind/up

e2e-down: ## Remove that cluster and its docker daemon
	@e2e/kind/down
