# make help lists what there is. Everything it needs beside Go is found, or
# installed, by internal/setup.

ARGS     ?=
FUZZTIME ?= 30s
BENCH    ?= .

GO        = go
STATIC    = $(GO) tool -modfile=internal/tools/go.mod staticcheck
WITH_ENV  = . ./.cache/env &&

# git refuses to read a clone that belongs to another user (sudo, containers),
# and go build fails with it: build without the version stamp then.
ifneq ($(shell command -v git >/dev/null && ! git rev-parse HEAD >/dev/null 2>&1 && echo refused),)
export GOFLAGS := $(GOFLAGS) -buildvcs=false
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test check build install setup setup-test fuzz faults soak bench bench-peers clean

help: ## this list
	@echo "make run ARGS='--for 60s --summary out.json' passes flags on; FUZZTIME=5m make fuzz"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

# exec, so that Ctrl-C reaches scrape once and nothing comes after its account.
# make turns every exit code but 0 into 2: call bin/scrape for the exact one.
run: setup build ## install what is missing, build, scrape the demo exchange's prices
	@$(WITH_ENV) exec bin/scrape run targets/prices.yaml $(ARGS)

test: setup-test check build ## install what is missing, check, run every test with the race detector
	@echo "== browser driver"
	@$(WITH_ENV) bin/scrape install
	@echo "== tests, with the race detector"
	@$(WITH_ENV) exec env CGO_ENABLED=1 $(GO) test -race -p 2 -timeout 20m ./...

check: ## gofmt, go vet, staticcheck, and compiling for other systems (needs only Go)
	@echo "== gofmt"
	@files=$$($$($(GO) env GOROOT)/bin/gofmt -l $$($(GO) list -f '{{.Dir}}' ./...)) && [ -z "$$files" ] || \
		{ echo "$$files"; echo "not formatted: gofmt -w these files"; exit 1; }
	@echo "== go vet"
	@$(GO) vet ./...
	@echo "== staticcheck"
	@$(STATIC) ./...
	@echo "== go vet, the benchmarks' own module"
	@cd internal/bench && $(GO) vet .
	@echo "== darwin"
	@GOOS=darwin CGO_ENABLED=0 $(GO) build ./...
	@echo "== windows"
	@GOOS=windows CGO_ENABLED=0 $(GO) build ./...

build: ## bin/scrape
	@echo "== build"
	@CGO_ENABLED=0 $(GO) build -o bin/scrape ./cmd/scrape

install: setup build ## only install what is missing: browser, Node and the browser driver
	@$(WITH_ENV) bin/scrape install

setup:
	@sh internal/setup/setup.sh

setup-test:
	@sh internal/setup/setup.sh test

fuzz: ## every fuzz target for FUZZTIME each
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's|/[^/]*:func | |' | sort | \
	while read -r dir name; do \
		echo "== $$dir $$name"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) $$dir </dev/null || exit 1; \
	done

faults: ## every fault, by every source, with the settings of every day: the tables, as Markdown (half an hour)
	@rm -f .cache/faults.md && mkdir -p .cache
	@$(GO) test -run 'TestFaultTable|TestPrograms' -timeout 2h ./internal/faults -faults.long -faults.table $(CURDIR)/.cache/faults.md; \
	code=$$?; cat .cache/faults.md; exit $$code

soak: ## ten minutes of a fault every twenty milliseconds: what memory, descriptors and goroutines come to, as Markdown
	@rm -f .cache/soak.md && mkdir -p .cache
	@$(GO) test -run TestSoak -timeout 2h ./internal/faults -faults.soak 10m -faults.table $(CURDIR)/.cache/soak.md; \
	code=$$?; cat .cache/soak.md; exit $$code

bench: ## every benchmark, or BENCH=Regexp
	@$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

bench-peers: ## beside other clients: decoder, client, memory and silence, as Markdown (downloads the peers)
	@cd internal/bench && $(GO) run . $(ARGS)

clean: ## what was built and found; keeps data/ and downloads
	@rm -rf bin .cache
