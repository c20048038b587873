# Every target that works on code enters every module: each folder with a go.mod, found, not listed.
SHELL   := bash
MODULES := $(sort $(patsubst %/go.mod,%,$(shell find . \( -name node_modules -o -name testdata -o -name '.?*' \) -prune -o -name go.mod -print)))

# The race detector needs cgo, which go turns off by itself where there is no C compiler.
RACE := $(if $(filter 1,$(shell go env CGO_ENABLED)),-race)

FUZZTIME    ?= 100000x
STRESS      ?= 30s
SOAK        ?= 30s
BENCH       ?= .
ROUNDS      ?= 6
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# in-each runs $(1) in every module, says which one it enters, and fails at the end if any failed.
define in-each
@failed=; for module in $(MODULES); do \
	echo "==> $@ $$module"; \
	(cd $$module && set -o pipefail && $(1)) || failed="$$failed $$module"; \
done; \
if [ -n "$$failed" ]; then echo "$@: failed in:$$failed" >&2; exit 1; fi
endef

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: test
test: ## Test what users import: no race detector, no other programs needed; under four minutes
	@go run ./internal/testrun

.PHONY: test-all
test-all: ## Test everything as CI does: race detector, real SDKs, databases, browser, npm, fuzz, stress; about 20 minutes
	@go run ./internal/testrun -all

.PHONY: stress
stress: ## Run the random-action test for STRESS (30s)
	AIGUARD_STRESS=$(STRESS) go test $(RACE) -count=1 -run Stress .

.PHONY: soak
soak: ## Run a whole service with all faults, dialects and hostile clients for SOAK (30s)
	cd internal/soak && go run . -for $(SOAK)

.PHONY: mutants
mutants: ## Disable each bound in turn and see a test fail
	go run ./internal/mutants

.PHONY: bench
bench: ## Measure what a guard costs, ROUNDS (6) times, and what users get under overload: 7 minutes; BENCH=^Do: rows of the former
	cd benchmarks && go run . -rounds $(ROUNDS) -bench '$(BENCH)'
	$(if $(filter .,$(BENCH)),cd benchmarks && go run ./overload -rounds $(ROUNDS) && go run ./similar)

.PHONY: lint
lint: ## Check formatting, vet, staticcheck, that go.mod files are tidy, and that no file is over 1 MB
	@large=$$(git ls-tree -r -l HEAD | awk '$$4 > 1000000 { print $$5 }'); if [ -n "$$large" ]; then echo "over 1 MB:"; echo "$$large"; exit 1; fi
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	$(call in-each,go vet ./... && go run $(STATICCHECK) ./... && go mod tidy -diff)

# `go test -list` prints a package's targets first, then its "ok" line, so that awk can pair them.
# Runs are counted, not timed: Go before 1.27 sometimes reports the end of a timed run as a failure (go.dev/issue/75804).
.PHONY: fuzz
fuzz: ## Run every fuzz target FUZZTIME times (100000x) each
	$(call in-each,go test -list '^Fuzz' ./... \
		| awk '/^Fuzz/ { names[n++] = $$1 } $$1 == "ok" { for (i = 0; i < n; i++) print $$2 " " names[i]; n = 0 }' \
		| while read -r pkg name; do \
			echo "--> $$pkg $$name"; \
			go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1000x "$$pkg" </dev/null || exit 1; \
		done)

.PHONY: cover
cover: ## Print the coverage of every module
	$(call in-each,{ out=$$(go test -coverpkg=./... -coverprofile=coverage.out ./...) || { echo "$$out"; false; }; } \
		&& if [ $$(wc -l <coverage.out) -gt 1 ]; then go tool cover -func=coverage.out | tail -n 1; else echo "no statements"; fi)

.PHONY: tidy
tidy: ## Tidy every go.mod
	$(call in-each,go mod tidy)

.PHONY: release
release: ## Release every module as VERSION (v0.3.0); DRY=1 checks and prints the plan, and changes nothing
	@cd internal/release && go run . -version '$(VERSION)' $(if $(DRY),-dry)
