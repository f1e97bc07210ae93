# Needs Python 3.11 or newer with pip and venv; nothing else. `make demo` and `make test` install what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
JOBS ?= 2
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: help install-locked demo test lint types docs docs-check bench bench-quick bench-speed clean

help:
	@echo "make demo         install, simulate, train, evaluate, report (about 3 minutes on two cores)"
	@echo "make test         install, run the tests"
	@echo "make install-locked   install only files whose sha256 is known (CPython 3.11, Linux x86_64)"
	@echo "make lint         ruff: rules and formatting"
	@echo "make types        mypy"
	@echo "make docs         build the documentation into site/"
	@echo "make docs-check   run every command and example of README and docs"
	@echo "make bench        the task suite; writes docs/benchmarks.md (about 70 minutes, JOBS=2 at a time; continues)"
	@echo "make bench-quick  the same, small, without writing documentation (2-3 minutes)"
	@echo "make bench-speed  the speed comparison of benchmarks/, small"
	@echo "make clean        remove the environment and everything built"

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Perfuse needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# TORCH_LOCK= leaves PyTorch out, for a build that is installed already.
TORCH_LOCK ?= -r requirements-torch.lock
install-locked:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --require-hashes $(TORCH_LOCK) -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check

demo: $(VENV)/.base
	$(BIN)/perfuse demo --out $(DEMO)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-check: $(VENV)/.dev
	$(BIN)/python scripts/check_docs.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.suite --profile full --jobs $(JOBS) --docs

bench-quick: $(VENV)/.dev
	$(BIN)/python -m benchmarks.suite --profile quick --jobs $(JOBS)

bench-speed: $(VENV)/.dev
	$(BIN)/python benchmarks/speed.py --quick

clean:
	rm -rf $(VENV) site build dist $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
