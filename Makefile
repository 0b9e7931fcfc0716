# `make` prints this file's targets. Everything runs inside .venv, which each target sets up by itself.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install
ARGS ?=
NAME ?=

.DEFAULT_GOAL := help
.PHONY: help demo test soak docs bench peers screenshots lint fmt lock audit clean

##@ Use
demo: $(VENV)/.run  ## extend a real video end to end on this machine (ARGS="--video my.mp4 --prompt '...'")
	@$(BIN)/extend-video demo $(ARGS)

##@ Develop
test: $(VENV)/.dev  ## run the suite, real PostgreSQL and Redis included: six minutes (ARGS="-k name")
	@$(BIN)/python -m pytest $(ARGS)

soak: $(VENV)/.dev  ## run what takes longer, in parts, with one table (NAME=kills, NAME=? lists them)
	@$(BIN)/python -m tests.soak "$(NAME)" -- $(ARGS)

bench: $(VENV)/.bench $(if $(NAME),$(filter peers,$(NAME:crash=peers)),peers)  ## measure beside references, each question or one (NAME=path ARGS="--rounds 9")
	@$(BIN)/python -m benchmarks $(NAME) $(ARGS)

screenshots: $(VENV)/.dev  ## take the README's pictures of the page anew, with Chromium
	@$(BIN)/python -m tests.page.screenshots

lint: $(VENV)/.dev  ## ruff, strict types, import contracts, migration drift, version
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tests/version.py
	@$(BIN)/python tests/drift.py

fmt: $(VENV)/.dev  ## format the code and mend what ruff can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

docs: $(VENV)/.dev  ## write the pages of docs/ that are made of the code
	@$(BIN)/python -m tests.documents

##@ Maintain
lock: $(VENV)/.dev  ## renew the hash-locked requirements from pyproject.toml
	@$(PIP) uv
	@$(BIN)/uv pip compile $(LOCK) pyproject.toml --extra demo --extra otel --group build -o requirements/run.txt
	@$(BIN)/uv pip compile $(LOCK) pyproject.toml --extra demo --extra otel --group build --group dev -c requirements/run.txt -o requirements/dev.txt
	@$(BIN)/uv pip compile $(LOCK) --group bench -c requirements/dev.txt -o requirements/bench.txt
	@$(BIN)/uv pip compile $(LOCK) --group peers -c requirements/dev.txt -o requirements/peers.txt

audit: $(VENV)/.dev  ## look for known vulnerabilities of what is locked (asks the package index; fails if it cannot tell)
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements/run.txt
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements/dev.txt

$(VENV)/.bench: $(VENV)/.dev requirements/bench.txt
	@echo "installing what draws plots into $(VENV) ..." >&2
	@$(PIP) --require-hashes --no-deps -r requirements/bench.txt
	@echo > $@

# Engines that are compared with get along with each other, and need nothing of ours.
$(PEERS)/.peers: $(VENV)/bin/python requirements/peers.txt
	@echo "installing the engines that are compared with into $(PEERS) ..." >&2
	@$(PYTHON) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip --quiet --disable-pip-version-check install \
	  --require-hashes --no-deps -r requirements/peers.txt
	@echo > $@

# Without them the rest is measured all the same, and their rows say so.
peers: $(VENV)/bin/python
	@$(MAKE) --no-print-directory $(PEERS)/.peers || echo "the other engines cannot be installed" >&2

clean:  ## remove the virtual environments and caches
	@rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage* *.egg-info

help:
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*##/ {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
  --no-annotate --custom-compile-command "make lock"

# The stamps, written without any program of the machine's, make a second run start at once: they are renewed only when the lock or the project's metadata change.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "extend-video needs Python 3.11 or later; set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python requirements/run.txt pyproject.toml
	@echo "installing extend-video into $(VENV) ..." >&2
	@$(PIP) --require-hashes --no-deps -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@echo > $@

$(VENV)/.dev: $(VENV)/bin/python requirements/dev.txt pyproject.toml
	@echo "installing extend-video and its development tools into $(VENV) ..." >&2
	@$(PIP) --require-hashes --no-deps -r requirements/dev.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@echo > $@; echo > $(VENV)/.run
