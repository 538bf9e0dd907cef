# Every target works on a fresh machine that has Python 3.11+, pip, git and make; `setup` fetches the rest by name.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help setup demo test test-slow test-services test-gpu lint fix docs bench bench-routing bench-decode clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

setup: $(VENV)/.full ## make .venv with everything the other targets use

$(VENV)/.full: pyproject.toml tools/setup.sh
	PYTHON='$(PYTHON)' tools/setup.sh $(VENV) full
	@touch $@ $(VENV)/.light

# The demo should not wait for torch, which it does not use.
$(VENV)/.light: pyproject.toml tools/setup.sh
	PYTHON='$(PYTHON)' tools/setup.sh $(VENV) light
	@touch $@

demo: $(VENV)/.light ## the embedded ladder behind an endpoint; ONCE=1 prints the table and ends
	$(BIN)/stepladder demo $(if $(ONCE),--once)

# Two processes with one thread of arithmetic each: on two busy cores two threads of one process wait for each other, and
# take ten times as long.
test: setup ## the tests that need no GPU and no outside server, in under 10 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: setup ## real models and long runs on the CPU
	$(BIN)/python -m pytest -m slow --timeout 1800

test-services: setup ## tests against servers that are installed by name
	tools/services.sh $(BIN)/python -m pytest -m services

test-gpu: setup ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu || { [ $$? -eq 5 ] && echo "no test needs a GPU yet"; }

lint: setup ## style, types, and the import graph against ARCHITECTURE.md
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/import_graph.py --check

fix: setup ## mend what can be mended: style, and the picture of the imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/import_graph.py --write

docs: setup ## rewrite the generated parts of docs/reference
	$(BIN)/python tools/reference.py --write

bench: setup ## decision time on this machine, to benchmarks/results
	$(BIN)/python benchmarks/decision_time.py

bench-routing: setup ## prediction and stopping on the outcomes of real models in ../shared, beside the first trial
	OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/routing.py --opponent run
	$(if $(wildcard benchmarks/routellm.py),OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/routellm.py)

bench-decode: setup ## ways to decode against each other here: a 7B shape on a GPU, the embedded models elsewhere
	$(BIN)/stepladder bench decode $(shell command -v nvidia-smi >/dev/null && echo --shape 7B --alphas 0.8,0.0)

clean: ## remove what setup made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
