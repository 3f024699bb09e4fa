# Everything happens in .venv, which is made on the first call and filled again when pyproject.toml or constraints.txt
# have changed. Choose another interpreter with `make PYTHON=python3.12 ...`.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS ?=

.DELETE_ON_ERROR:
.PHONY: help demo test test-all check check-hub lint-fix format bench wheel-test clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed ## songs -> adapter -> new music, offline, with the built-in checkpoint
	$(BIN)/musicgen-dreamboothing demo $(ARGS)

test: .venv/installed-dev ## run the tests on all cores; a part of them: make test ARGS="-k delay"
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: .venv/installed-dev ## run the slow tests too: several processes, statistics, memory, benchmarks/, tools/
	$(BIN)/python -m pytest -m '' -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/installed-dev ## format, lint, types and the direction of imports; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-hub: .venv/installed-dev ## which published checkpoints would load: reads metadata from the Hub, no weights
	$(BIN)/python tools/check_hub.py $(ARGS)

lint-fix: .venv/installed-dev ## fix what ruff can fix, then format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

format: .venv/installed-dev ## format the code
	$(BIN)/ruff format .

bench: .venv/installed-dev ## run every benchmark on this machine; results go to benchmarks/results/
	@set -e; for script in $(filter-out benchmarks/_%,$(sort $(wildcard benchmarks/*.py))); do \
		echo "$(BIN)/python $$script $(ARGS)"; $(BIN)/python "$$script" $(ARGS); \
	done

wheel-test: .venv/installed-dev ## build the wheel, install it elsewhere and run the demo there
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
		echo "building the wheel"; $(BIN)/python -m build --wheel --outdir "$$work" . >"$$work/log" 2>&1 || { cat "$$work/log"; exit 1; }; \
		echo "installing it in an empty environment"; $(BIN)/python -m venv "$$work/venv"; \
		"$$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$work"/*.whl; \
		cd "$$work"; venv/bin/musicgen-dreamboothing demo

clean: ## remove build outputs and caches; .venv, demo/ and runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "error: '$(PYTHON)' is not Python 3.10 or newer; name one that is: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: '$(PYTHON)' cannot make virtual environments; install its venv package (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv

# What `demo` needs; and that, with the tools of developers.
.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (the first time takes a few minutes)"
	@$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv, with the tools of developers (the first time takes a few minutes)"
	@$(PIP) -e '.[dev]'
	@touch .venv/installed $@
