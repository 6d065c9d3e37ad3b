module github.com/pinhole-dev/pinhole/image/archive

go 1.26.0
