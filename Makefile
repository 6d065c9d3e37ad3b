# Everything a developer or CI runs. `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# What is expensive and depends on no source of ours lives here, outside the checkout.
CACHE ?= $(or $(PINHOLE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pinhole)
CARGO_DENY := $(CACHE)/tools/bin/cargo-deny
CARGO_DENY_VERSION := 0.20.2
KERNEL_PACKAGES := iptables nftables conntrack iproute2 ethtool netcat-openbsd
# Whose completion is tried.
SHELL_PACKAGES := bash zsh fish
# Tests make network namespaces of their own, which takes root or, for an ordinary user, a user namespace.
AS_NETWORK_ROOT := $(if $(filter 0,$(shell id -u)),,unshare -Urn sh -c 'ip link set lo up && exec "$$@"' sh)

-include e2e/e2e.mk
-include e2e/kind.mk
-include image/image.mk
-include benches/bench.mk
-include fuzz/fuzz.mk
-include chart/chart.mk

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "%-18s %s\n", $$1, $$2 }'

.PHONY: demo
demo: packages ## The main job on this machine, without a cluster: refusals, rules, real packets
	cargo build --locked --quiet
	target/debug/pinhole demo

.PHONY: test
test: test-rust e2e-api test-chart ## All tests: unit, property, kernel, a real API server, the Helm chart

.PHONY: test-rust
test-rust: packages ## Unit, property and kernel tests; no cluster
	@.ci/packages $(SHELL_PACKAGES)
	cargo test --locked --workspace --no-run
	PATH="$$PATH:/usr/sbin:/sbin" $(AS_NETWORK_ROOT) cargo test --locked --workspace

.PHONY: check
check: $(CARGO_DENY) ## Format, lints, documentation, licences, manifests
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -D rustdoc::all -A rustdoc::private_doc_tests' cargo doc --locked --no-deps --document-private-items --quiet
	$(CARGO_DENY) check bans licenses sources

.PHONY: advisories
advisories: $(CARGO_DENY) ## Known vulnerabilities of dependencies; needs the network
	$(CARGO_DENY) check advisories

.PHONY: fmt
fmt: ## Format all sources
	cargo fmt

.PHONY: generate
generate: ## Rewrite golden files and generated documentation
	UPDATE_GOLDEN=1 cargo test --locked --quiet

.PHONY: build
build: ## The release binary
	cargo build --locked --release

.PHONY: packages
packages:
	@.ci/packages $(KERNEL_PACKAGES)

$(CARGO_DENY):
	@echo "Building cargo-deny $(CARGO_DENY_VERSION) into $(CACHE)/tools (once)"
	cargo install cargo-deny --version $(CARGO_DENY_VERSION) --locked --quiet --root $(CACHE)/tools
