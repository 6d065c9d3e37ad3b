# Fuzzing. What each target does with an input is in fuzz/inputs.rs; `make test` replays the corpora.

FUZZ_SECONDS ?= 60
CARGO_FUZZ := $(CACHE)/tools/bin/cargo-fuzz
CARGO_FUZZ_VERSION := 0.13.2

.PHONY: fuzz
fuzz: $(CARGO_FUZZ) ## Feed each parser of what comes from outside with $(FUZZ_SECONDS) s of inputs; needs a nightly toolchain
	cd fuzz && for target in netlink rtnetlink conntrack iptables-save annotation; do \
	  mkdir -p target/found/$$target && \
	  RUSTUP_TOOLCHAIN=nightly $(CARGO_FUZZ) run --fuzz-dir . --dev --sanitizer none $$target \
	    target/found/$$target corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit 1; \
	done

$(CARGO_FUZZ):
	@echo "Building cargo-fuzz $(CARGO_FUZZ_VERSION) into $(CACHE)/tools (once)"
	cargo install cargo-fuzz --version $(CARGO_FUZZ_VERSION) --locked --quiet --root $(CACHE)/tools
