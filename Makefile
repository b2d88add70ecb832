# osteon: `make demo` and `make test` are the two commands a new user needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# In the environment, so that it overrides whatever the machine's own pip configuration constrains.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# One thread a process: pytest runs one process a core.
WORKERS ?= auto
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test install dev lint types layers dup pytest contracts bench claims faults docs clean help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

demo: $(VENV)/.installed  ## install and run the main job on scikit-learn's digits; leaves runs/demo/report.html
	$(BIN)/osteon demo

test: $(VENV)/.installed-dev lint types layers dup pytest  ## install, then lint, types, layering, duplication, tests

install: $(VENV)/.installed  ## the environment of `make demo`
dev: $(VENV)/.installed-dev  ## the environment of `make test`

# Stamps: an install runs once, and again when what it depends on changes.
KERNEL := src/osteon/views/_kernel.cpp

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(KERNEL) | $(VENV)/bin/python
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py constraints.txt $(KERNEL) | $(VENV)/bin/python
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@ $(VENV)/.installed

lint: $(VENV)/.installed-dev  ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev  ## mypy
	$(BIN)/mypy

layers: $(VENV)/.installed-dev  ## the direction of imports
	$(BIN)/lint-imports

dup: $(VENV)/.installed-dev  ## duplicated runs of lines
	$(BIN)/python tools/duplication.py src

pytest: $(VENV)/.installed-dev  ## every test
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder

contracts: $(VENV)/.installed-dev  ## what every registered method must satisfy, the long form included
	OSTEON_LONG_CONTRACTS=1 $(PYTEST) -n $(WORKERS) tests/contracts
	$(BIN)/python -m benchmarks.contracts

bench: $(VENV)/.installed-dev  ## speed and memory, against peers
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.peers

claims: $(VENV)/.installed-dev  ## the published claims this project reproduces
	$(BIN)/python -m benchmarks.claims

faults: $(VENV)/.installed-dev  ## plant faults in every objective, kill runs, train for hours: what must not be lost
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.crash 100
	$(BIN)/python -m benchmarks.fuzz --seconds 1800
	$(BIN)/python -m benchmarks.soak --minutes 120

docs: $(VENV)/.installed-dev  ## the documentation site, strict
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## what builds and tools leave; runs/ and the environment stay
	rm -rf build dist site docs/methods src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
