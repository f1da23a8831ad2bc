# The commands of the README. Each does its own set-up.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Binaries of the dev profile: one profile serves tests, the demo and the local Lambdas.
TARGET := $(or $(CARGO_TARGET_DIR),target)/debug
SPEED ?= 60
SPEC ?= examples/innovate-dev.json

# Warnings are errors here, not while you type. The same everywhere, since another value compiles the workspace again.
STRICT := CLIPPY_ARGS='-Dwarnings__CLIPPY_HACKERY__'

.PHONY: help demo down nuke-dry-run test soak cloud stop setup build schemas deny fmt

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: setup build ## A cluster with a working Karpenter on this machine, from one event (KEEP=1 leaves it running, SPEC=file)
	@exec $(TARGET)/slipway-local demo --speed $(SPEED) --spec $(SPEC) $(if $(KEEP),--keep)

down: build ## Takes the cluster of KEEP=1 away, prints what is left of it, and ends the cloud (SPEC=file)
	@[ -f .slipway/cloud.env ] || { echo "nothing is running: make demo KEEP=1 leaves a cluster"; exit 1; }
	@source .slipway/cloud.env && $(TARGET)/slipway down --spec $(SPEC) --network --workloads --speed $(SPEED)
	@$(TARGET)/slipway-local stop

nuke-dry-run: build ## What a sweep would remove from the account of your credentials, or of the running local cloud; removes nothing
	@if [ -f .slipway/cloud.env ]; then source .slipway/cloud.env; fi; exec $(TARGET)/slipway sweep --all

cloud: setup build ## The local cloud alone, with the template deployed
	@exec $(TARGET)/slipway-local up --detach --speed $(SPEED)

stop: ## Ends what KEEP=1 or `make cloud` left running
	@if [ -x $(TARGET)/slipway-local ]; then exec $(TARGET)/slipway-local stop; else echo "nothing is running"; fi

test: setup ## Everything that CI runs
	cargo fmt --all --check
	$(STRICT) cargo build --locked --workspace --all-targets
	$(STRICT) RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} cargo test --locked --workspace

soak: setup build ## Every matrix whole; writes docs/soak.md
	$(STRICT) cargo test --locked --workspace -- --ignored soak

setup: ## Tools from the registries into the cache folder
	@python3 local/setup.py

build:
	@$(STRICT) cargo build --locked --workspace --bins

schemas: ## Generated files
	cargo run --locked --package slipway-tests --bin schemas

fmt: ## Format
	cargo fmt --all

deny: ## Licences, sources and duplicates of dependencies
	@command -v cargo-deny >/dev/null || cargo install --locked --version 0.20.2 cargo-deny
	cargo deny --locked check licenses bans sources
