#!/bin/sh
# Runs every fuzz target of the tree, each for the given time (10s) or number of inputs (5000x).
set -eu
each=${1:-10s}
for file in $(grep -rl --include='*_test.go' '^func Fuzz' .); do
	pkg=$(dirname "$file")
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "== $pkg $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$each" "$pkg"
	done
done
