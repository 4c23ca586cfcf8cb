# Two commands do all the set-up: `make demo` and `make test`. Both keep their environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env demo test slow chaos check docs format lock train-shapes results bench clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

env: $(STAMP) ## make the environment in .venv (or do nothing when it is up to date)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: env ## run the main job on the built-in model; pictures in outputs/shapes-demo
	$(BIN)/python -m ttsvar_ray demo

test: env ## run the default tests, in three processes (6 to 14 minutes on two cores)
	$(BIN)/python -m pytest

slow: env ## run the slow tests: full matrices, fresh environments, stopped jobs (most of an hour)
	$(BIN)/python -m pytest -m slow

chaos: env ## kill workers, coordinators, drivers and nodes of a simulated cluster (about ten minutes)
	$(BIN)/python -m pytest -m chaos -s

check: env ## static checks: format, lint, types, import layers, sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.house

docs: env ## build the pages of docs/ as a site in build/site; broken links end it
	$(BIN)/python -m mkdocs build

format: env ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: env ## rewrite requirements.lock from pyproject.toml
	sh docs/lock.sh

train-shapes: env ## train the built-in model from nothing; resumable, some hours on two cores
	$(BIN)/python -m recipes.shapes

results: env ## measure raw, best-of-N and TTS-VAR on the built-in model (docs/results.md)
	$(BIN)/python -m benchmarks.shapes_results

bench: env ## measure what a CPU can: image files, the published loop, precision, scales against the limit (under 15 minutes)
	$(BIN)/python -m benchmarks.bench --output benchmarks/results

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
