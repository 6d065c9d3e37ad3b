module github.com/pinhole-dev/pinhole/e2e/kind

go 1.26.0
