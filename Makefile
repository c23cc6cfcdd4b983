# Every target a person needs; `make` lists them.
.PHONY: help demo build test race fuzz crash e2e interop lint bench docs
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10
demo: ## the whole platform with a simulated fleet
	go run ./cmd/milepost demo
build: ## one binary: bin/milepost
	go build -o bin/milepost ./cmd/milepost
test: ## every test that needs nothing but Go and a C compiler
	go test ./...
race: ## the same under the race detector
	go test -race -short ./...
fuzz: ## every fuzz target for FUZZTIME (default 10s) each
	./scripts/fuzz.sh $(or $(FUZZTIME),10s)
crash: build ## kill -9 under load, ROUNDS times (default 100), then check every acknowledged reading
	go test -count=1 -run TestKill -timeout 60m -v ./cmd/milepost -args -rounds=$(or $(ROUNDS),100)
e2e: ## the program and the dashboard in a real browser
	MILEPOST_REQUIRE_BROWSER=1 go test -count=1 ./web/... ./cmd/milepost -run 'Browser|Screens'
interop: ## boto3, the aws CLI, the SDKs, KCL, KPL, Telegraf and AWS' service models against the AWS doors; installs them into the cache directory
	./scripts/interop.sh
lint: ## formatting and the linters of .golangci.yml
	./scripts/lint.sh
bench: build ## measure this machine
	bin/milepost bench
docs: ## write the pages that are generated from the code
	go test ./cmd/milepost -run TestReferencePage -args -update
