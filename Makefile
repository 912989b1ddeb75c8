# Every target sets up what it needs: a fresh clone, then `make demo` or `make test`.
# Settings: PYTHON=python3.12, VENV=path, OMP_NUM_THREADS=n, LONGWAVE_SHARED=path (data for some tests),
# ARGS='--output DIR --overwrite' for demo.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Small models gain nothing from more than eight threads.
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
OMP_NUM_THREADS ?= $(shell n=$(CORES); [ $$n -gt 8 ] && n=8; echo $$n)
LONGWAVE_SHARED ?= ../shared
# glibc returns every freed tensor to the system and faults it in again; keeping up to 1 GiB is faster.
MALLOC_TRIM_THRESHOLD_ ?= 1073741824
MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export OMP_NUM_THREADS LONGWAVE_SHARED MALLOC_TRIM_THRESHOLD_ MALLOC_MMAP_THRESHOLD_

.PHONY: help install demo test test-fast lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(STAMP)  ## virtual environment with pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: longwave needs Python 3.11 or newer; run make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,eval,peft,gguf,llamacpp,ctranslate2,serve]'
	@touch $@

demo: $(STAMP)  ## extend a small model and measure it: 2 CPU cores, at most 10 minutes, no download
	$(BIN)/longwave demo $(ARGS)

test: lint  ## everything CI runs: lint, types, fast and slow tests, in two processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(STAMP)  ## the tests that take seconds, in two processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
