# Everything a person needs: `make help`. A fresh machine needs only Python (3.10 or newer), make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## Create .venv with the pinned versions (once; again when pyproject.toml or constraints.txt change)

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some GB; a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

demo: $(INSTALLED)  ## Synthetic corpus, training, evaluation on unseen voices, transcription: about ten minutes on 2 cores
	@$(BIN)/python scripts/demo.py

lint: $(INSTALLED)  ## Style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED)  ## Rewrite the sources in the house style
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

test: lint  ## Linters and the whole test suite
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES)

bench: $(INSTALLED)  ## Every benchmark, one after the other: tables and JSON
	@for script in scripts/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## Remove caches, runs and prepared corpora; keeps .venv
	rm -rf runs multirun build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find data -mindepth 1 ! -name README.md -delete
	find asr scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
