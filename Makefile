# promptbus. `make` lists what there is; `make demo` is the place to start.
.DEFAULT_GOAL := help
.PHONY: help setup demo up down compile test test-unit chaos overload soak lint check bench lock clean
SHELL := /bin/sh
BIN := .venv/bin
# Settings of a cluster of yours must not leak into tests and local servers.
CLEAN_ENV := env $$(env | sed -n 's/^\(\(KAFKA\|TRITON\|OTEL\)_[A-Za-z0-9_]*\)=.*/-u \1/p')

# Which group protocol workers use where a test does not choose.
WITH_PROTOCOL := $(if $(PROTOCOL),TEST_GROUP_PROTOCOL=$(PROTOCOL))

# Tests of everything run what is shipped: the compiled worker, where it could be compiled.
COMPILED := PYTHONPATH="$$($(BIN)/python -m stack.compiled --path)"

# They measure, so nothing may run beside them.
ALONE := tests/integration/test_throughput.py tests/load/test_load.py

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 18

setup: ## check this machine, install .venv and what the stack needs (PYTHON=… chooses one)
	@python=$$(PYTHON='$(PYTHON)' sh stack/python.sh) && "$$python" -m stack.setup

# The same for the other targets: silent when there is nothing to do.
.PHONY: ready
ready:
	@python=$$(PYTHON='$(PYTHON)' sh stack/python.sh) && "$$python" -m stack.setup --quiet

# What only tests need.
.PHONY: ready-to-test
ready-to-test: ready
	@$(BIN)/python -m stack.prometheus

demo: ready ## real Kafka, real Triton, a real language model: prompts and their answers
	@$(BIN)/python -m stack.demo

up: ready ## Kafka, Triton and a worker in the background (WORKER=0: none, ENGINE=canned: no real model)
	@$(BIN)/python -m stack.up

down: ready ## stop what `make up` started
	@$(BIN)/python -m stack.down

compile: ready ## the worker's hot modules to C, as in the wheel that is published; needs gcc
	@$(BIN)/python -m stack.compiled

test: ready-to-test compile ## every test, with real services (PROTOCOL=consumer: with Kafka's new group protocol)
	@$(CLEAN_ENV) $(COMPILED) $(WITH_PROTOCOL) $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 tests $(addprefix --ignore ,$(ALONE)) $(PYTEST_ARGS)
	@$(CLEAN_ENV) $(COMPILED) $(BIN)/pytest $(ALONE)

test-unit: ready ## the tests that need no Kafka and no Triton, on the sources as they are
	@$(CLEAN_ENV) $(BIN)/pytest -n 2 tests/unit $(PYTEST_ARGS)

chaos: compile ## break everything under load, lose nothing (SEED=…, MINUTES=5, BROKERS=1|3, PROTOCOL=…, ORDERING=…, DELIVERY=…)
	@$(CLEAN_ENV) $(COMPILED) $(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(BROKERS),--brokers $(BROKERS)) $(if $(PROTOCOL),--protocol $(PROTOCOL)) $(if $(ORDERING),--ordering $(ORDERING)) $(if $(DELIVERY),--delivery $(DELIVERY))

overload: compile ## three times what Triton can do, for MINUTES=5: full speed, flat memory, quick recovery
	@$(CLEAN_ENV) $(COMPILED) $(BIN)/python -m tests.load overload $(if $(MINUTES),--minutes $(MINUTES))

soak: compile ## half of what Triton can do, for MINUTES=30: memory, file descriptors and threads stay flat
	@$(CLEAN_ENV) $(COMPILED) $(BIN)/python -m tests.load soak $(if $(MINUTES),--minutes $(MINUTES))

lint: ready ## format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy hatch_build.py producer consumer models/gpt4_nano/1 config stack grafana tests bench
	@$(BIN)/lint-imports
	@$(BIN)/hadolint consumer/Dockerfile models/Dockerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

check: lint test-unit ## what to run before a commit

bench: compile ## promptbus beside others, 15 minutes (QUICK=1: 3; PEERS=1: more of them; WORKLOADS=…, ROUNDS=5)
	@$(CLEAN_ENV) $(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(PEERS),--peers) $(if $(WORKLOADS),--workloads '$(WORKLOADS)') $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_ARGS)

lock: ready ## write requirements/*.txt anew from pyproject.toml and requirements/*.in
	@$(BIN)/python -m stack.lock $(LOCK_ARGS)

clean: ## remove .venv, .stack and what tools cached (make down first)
	@if [ -e .stack/state.json ]; then echo "Something may still run: make down first." >&2; exit 1; fi
	rm -rf .venv .stack .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
