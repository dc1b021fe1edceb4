# privfm: `make train` and `make test` work from a fresh clone; each makes the virtual environment that it needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV   := .venv
BIN    := $(VENV)/bin
DEPS   := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install install-dev train check test test-slow wheel clean

help:           ## what can be made
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## *(.*)/  make \1\t\2/' | expand -t 22

install: $(VENV)/installed  ## a virtual environment with privfm in it

install-dev: $(VENV)/installed-dev  ## the same with the tools of developers, and DICOM

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "privfm needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python $(DEPS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python $(DEPS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,dicom]'
	@touch $@ $(VENV)/installed

train: install  ## train on the built-in photographs under epsilon 8
	$(BIN)/privfm train --epsilon 8

check: install-dev  ## linters, types, import contracts, doctests, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test: check     ## what check does: linters, types, import contracts, doctests and tests

test-slow: install-dev  ## the tests that take minutes: 200 kills, 100,000 damaged messages a decoder, whole runs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow -o addopts="-q --strict-markers" tests  # type checks at run time would take hours

wheel: install-dev  ## dist/privfm-VERSION-py3-none-any.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:          ## remove what was made, but no run
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
