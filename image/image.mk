# Included by the Makefile: the images of the webhook and of the agent, see Dockerfile.

.PHONY: image image-offline
VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)

image: ## Build both images with docker buildx, as ghcr.io/pinhole-dev/pinhole-{webhook,agent}
	@for part in webhook agent; do \
		docker buildx build --target $$part --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
			--tag ghcr.io/pinhole-dev/pinhole-$$part:$(VERSION) --load . || exit 1; \
	done

image-offline: ## Make the same images as archives in target/image, without docker and without pulling anything
	@image/offline target/image
