# Included by the Makefile: the Helm chart and what is rendered from it.

.PHONY: manifests test-chart

manifests: ## Render webhook-config/ from the chart
	@helm=$$(tests/chart/build-helm) && chart/render-manifests $$helm/helm webhook-config

test-chart: pinhole-binary ## Test the Helm chart against the program and a real API server (as root, 1 min; 4 min more the first time)
	@helm=$$(tests/chart/build-helm) && control_plane=$$(e2e/build-control-plane) && cd e2e/api && \
	PINHOLE_HELM=$$helm/helm PINHOLE_CONTROL_PLANE=$$control_plane PINHOLE_BIN=$(CURDIR)/target/debug/pinhole \
	go run ./report chart ../../tests/chart
