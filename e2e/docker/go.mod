module github.com/pinhole-dev/pinhole/e2e/docker

go 1.26.0
