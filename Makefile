# The names of all targets: make help

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
DESTDIR ?=
UNITS := /etc/systemd/system

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LIMIT := $(if $(ORLOP_SOAK),12h,40m)
GO_TEST := go test -tags root -count=1 -timeout $(LIMIT)
# Programs with the race detector sleep for a second at their end unless told otherwise.
# The tools of its tests are installed: a test that misses one fails then, instead of being skipped.
RACE_TEST := CGO_ENABLED=1 GORACE=atexit_sleep_ms=10 ORLOP_TEST_TOOLS=1 $(GO_TEST) -race
# What runs one goroutine at a time: the race detector has nothing to find there, and would take thirty times as long.
SERIAL := ./internal/backup/repo/protocoltest
FUZZ_TIME ?= $(if $(ORLOP_SOAK),1m,10s)
LINTER := bin/tools/golangci-lint
KOPIA := bin/tools/kopia
S3_SERVER := bin/tools/versitygw

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/  \1\t\2/p' Makefile | expand -t 16

.PHONY: deps
deps: ## install what build, lint and test need and this machine lacks (root)
	@tools/deps.sh build lint test

.PHONY: build
build: need-go ## build bin/orlop, one static binary
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" -o bin/orlop ./cmd/orlop

# Where install puts completions, by shell, below PREFIX/share.
COMPLETIONS := bash:bash-completion/completions/orlop zsh:zsh/site-functions/_orlop fish:fish/vendor_completions.d/orlop.fish
UNIT_NAMES := orlop.socket orlop.service orlop-backup.service orlop-backup.timer

.PHONY: install
install: build ## install the binary, shell completion and systemd units (root; PREFIX, DESTDIR)
	@umask 022   # for everybody to read, whoever calls this
	install -D -m 0755 bin/orlop "$(DESTDIR)$(PREFIX)/bin/orlop"
	for entry in $(COMPLETIONS); do
		file="$(DESTDIR)$(PREFIX)/share/$${entry#*:}"
		install -d -m 0755 "$${file%/*}"
		bin/orlop completion "$${entry%%:*}" | install -m 0644 /dev/stdin "$$file"
	done
	if [[ ! -e "$(DESTDIR)/etc/orlop/backup.env" ]]; then
		install -D -m 0600 packaging/backup.env "$(DESTDIR)/etc/orlop/backup.env"
	fi
	echo "installed $(DESTDIR)$(PREFIX)/bin/orlop"
	if [[ -z "$(DESTDIR)" && ! -d /run/systemd/system ]]; then
		echo "no systemd here: start it with: orlop daemon"
		exit
	fi
	install -d -m 0755 "$(DESTDIR)$(UNITS)"
	for unit in $(UNIT_NAMES); do
		sed 's|/usr/local/bin|$(PREFIX)/bin|' "packaging/$$unit" | install -m 0644 /dev/stdin "$(DESTDIR)$(UNITS)/$$unit"
	done
	if [[ ! -e "$(DESTDIR)/etc/default/orlop" ]]; then
		install -D -m 0644 packaging/orlop.default "$(DESTDIR)/etc/default/orlop"
	fi
	if [[ -z "$(DESTDIR)" ]]; then
		systemctl daemon-reload
		echo "start it with: systemctl enable --now orlop.socket orlop.service"
		echo "hourly backups: edit /etc/orlop/backup.env, then systemctl enable --now orlop-backup.timer"
		echo "after an upgrade: systemctl restart orlop.service (containers keep running)"
	fi

.PHONY: uninstall
uninstall: need-root ## remove what install put there; keeps the volumes unless PURGE=1 (root; PREFIX, DESTDIR)
	@tools/uninstall.sh "$(DESTDIR)" "$(PREFIX)" "$(UNITS)" "$(PURGE)" $(foreach entry,$(COMPLETIONS),$(lastword $(subst :, ,$(entry)))) -- $(UNIT_NAMES)

.PHONY: quickstart
quickstart: need-root need-go ## try it: a daemon, a volume and a container, and away again (root)
	@tools/deps.sh quickstart
	$(MAKE) --no-print-directory build
	tools/quickstart.sh

.PHONY: test
test: need-root need-go ## run every test, with a sample of what soak goes through (root, about 20 minutes)
	@tools/deps.sh build test
	tools/leftovers.sh $(MAKE) --no-print-directory test-here $(if $(ORLOP_SOAK),fuzz)

.PHONY: soak
soak: ## run the same tests with the full counts, then fuzz: takes hours (root)
	@$(MAKE) --no-print-directory test ORLOP_SOAK=1

.PHONY: test-unit
test-unit: need-go ## run the tests that need no root
	go test -count=1 ./...

.PHONY: test-e2e
test-e2e: need-root need-go ## run the tests with a real Docker daemon, and with a real cron (root)
	@tools/deps.sh build test
	$(MAKE) --no-print-directory build
	set -x
	tools/leftovers.sh env $(RACE_TEST) ./e2e/...

.PHONY: test-vm
test-vm: need-go ## run tests on Debian's kernel, in an emulated machine (see docs/testing.md)
	@tools/deps.sh build test vm
	tools/vm/test.sh

.PHONY: test-here
test-here: build $(S3_SERVER)
	@root=$$(grep -rl --include='*_test.go' '^//go:build root$$' . | xargs dirname | sort -u)
	rest=$$(go list -f '{{.Dir}}' ./... | sed "s|^$$PWD|.|" | grep -vxF -e "$$root" -e "$(SERIAL)")
	status=0
	set -x
	$(GO_TEST) $(SERIAL) || status=1
	$(RACE_TEST) $$rest || status=1
	$(RACE_TEST) -p 3 $$root || status=1   # each in a mount namespace of its own; they wait a lot
	exit $$status

.PHONY: fuzz
fuzz: need-go ## run every fuzz target in the tree for FUZZ_TIME each (10s; in soak 1m)
	@out=$$(mktemp)
	trap 'rm -f "$$out"' EXIT
	{ grep -rHoE --include='*_test.go' '^func Fuzz\w+' . || true; } | sort | while IFS=: read -r file func; do
		set -- go test -tags root -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZ_TIME) "$${file%/*}"
		echo "$$*"
		"$$@" < /dev/null 2>&1 | tee "$$out" && continue
		# Before Go 1.27 the end of the time is sometimes taken for a failure (go.dev/issue/75804). A real one says more.
		grep -q '^    context deadline exceeded$$' "$$out" && ! grep -q 'Failing input' "$$out" || exit 1
		echo "no failure: the time was over"
	done

.PHONY: bench
bench: need-root need-go build $(KOPIA) ## compare with plain loop devices, restic, borg and kopia, in about 45 minutes; BENCH_QUICK=1: in 8 (root)
	@tools/deps.sh run bench
	go build -o bin/bench ./e2e/bench
	# The mounts are nobody else's, and go with the process at the latest.
	PATH="$(CURDIR)/bin/tools:$$PATH" unshare --mount bin/bench bin/orlop

.PHONY: lint
lint: need-go $(LINTER) ## check the format, the Go code and the scripts
	@tools/deps.sh build lint
	unformatted=$$(gofmt -l .)
	if [[ -n "$$unformatted" ]]; then
		printf 'not in gofmt format:\n%s\n' "$$unformatted" >&2
		exit 1
	fi
	set -x
	go vet ./...
	go vet -tags root ./...
	go vet -tags root,vm ./...
	$(LINTER) run
	shellcheck tools/*.sh tools/vm/*.sh .ci/run

$(LINTER): tools/go.mod tools/go.sum | need-go
	go -C tools build -buildvcs=false -o "$(CURDIR)/$@" github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	touch $@

$(KOPIA): tools/peers/go.mod tools/peers/go.sum | need-go
	go -C tools/peers build -buildvcs=false -o "$(CURDIR)/$@" github.com/kopia/kopia
	touch $@

# The S3 server of the tests is in a module of its own. It takes minutes to build, once.
$(S3_SERVER): tools/s3server/go.mod tools/s3server/go.sum | need-go
	go -C tools/s3server build -buildvcs=false -o "$(CURDIR)/$@" github.com/versity/versitygw/cmd/versitygw
	touch $@

.PHONY: clean
clean: ## delete what make built
	rm -rf bin

.PHONY: need-root
need-root:
	@if [[ $$EUID != 0 ]]; then
		echo "This needs root: it uses loop devices, mounts and a Docker daemon. Without root: make test-unit" >&2
		exit 1
	fi

.PHONY: need-go
need-go:
	@if ! version=$$(cd / && GOTOOLCHAIN=local go version); then
		echo "No go in PATH. Install Go 1.21 or newer from https://go.dev/dl/ (Debian 12's is too old);" >&2
		echo "it fetches the version that go.mod names. With sudo: sudo env PATH=\$$PATH make ..." >&2
		exit 1
	fi
	minor=$$(sed -nE 's/.*go1\.([0-9]+).*/\1/p' <<< "$$version")
	if (( minor < 21 )); then
		echo "$$version is too old: install Go 1.21 or newer from https://go.dev/dl/" >&2
		exit 1
	fi
