#!/bin/sh
# The linters of .golangci.yml, at the version below, installed by Go itself when they are not there.
set -eu
version=v2.6.0
bin=$(go env GOPATH)/bin/golangci-lint-$version
if [ ! -x "$bin" ]; then
	dir=$(mktemp -d)
	GOBIN=$dir GOFLAGS= go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
	mkdir -p "$(dirname "$bin")"
	mv "$dir/golangci-lint" "$bin"
fi
exec "$bin" run "$@"
