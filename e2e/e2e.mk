# Included by the Makefile: the tests against a real Kubernetes API server.

.PHONY: e2e-control-plane
e2e-control-plane: ## Build kube-apiserver, controller-manager, kubectl and etcd into the cache (7 min cold, then 0 s)
	@e2e/build-control-plane
