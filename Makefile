# make sample PROMPT="…"   set up what sampling needs, then make a clip
# make test                set up everything, then check and test
# make wheel               a wheel and an sdist with the shipped model, in dist/

PYTHON ?= python3
PROMPT ?= a small red metal ball drops onto a wooden floor
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: sample test check setup wheel clean
.DELETE_ON_ERROR:

sample: $(CORE)
	@$(BIN)/python sample.py --prompt "$$PROMPT" $(ARGS)

test: check
	$(BIN)/python -m pytest

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(DEV)

wheel: $(DEV)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

export PROMPT

# torch comes first: it is by far the largest, and a failure to get it should show at once.
$(CORE): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (some minutes the first time)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=…")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt torch
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(DEV): $(CORE)
	@$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@touch $@
