# Included by the Makefile: the scenarios on a cluster of real kubelets, see e2e/README.md.

E2E_PACKAGES := iproute2 iptables util-linux openssl wget gcc libc6-dev binutils

.PHONY: e2e e2e-all e2e-prove e2e-prepare e2e-up e2e-run e2e-down e2e-packages

e2e: e2e-packages ## All scenarios on a real cluster, brought up and removed (as root, 45 min cold, then 20)
	@trap e2e/kind/down EXIT; e2e/kind/up && e2e/kind/install && e2e/kind/run && \
	export E2E_CLAIMS=on && e2e/kind/install && e2e/kind/run WithClaims

e2e-all: e2e ## The scenarios again with kube-proxy in nftables mode, and with agents on iptables and IPv4 alone
	@E2E_KUBE_PROXY=nftables $(MAKE) --no-print-directory e2e
	@E2E_FIREWALL=iptables E2E_IP_FAMILY=ipv4 $(MAKE) --no-print-directory e2e

e2e-prove: ## Show on the running cluster that each scenario fails when what it names is broken, or those that match S=pattern
	@e2e/kind/prove '$(S)'

e2e-prepare: e2e-packages ## What the tests on Kubernetes need and no source of ours decides, into the cache
	@e2e/prepare

e2e-up: e2e-packages ## Bring up a three-node kind cluster with Pinhole, without any image registry
	@e2e/kind/up && e2e/kind/install

e2e-run: ## Run the scenarios on that cluster, or those that match S=pattern
	@e2e/kind/run '$(S)'

e2e-down: ## Remove that cluster and its docker daemon
	@e2e/kind/down

e2e-packages:
	@.ci/packages $(E2E_PACKAGES)
