# Every target creates .venv by itself; `make help` lists them. Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check docs bench gpu gpu-tests

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: try make PYTHON=python3.12" >&2; exit 1; }
	@echo "installing into $(VENV), once; this takes a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,hf,export,kernels]'
	@touch $(STAMP)

setup: $(STAMP)  ## create .venv with everything pinned by constraints.txt

demo: $(STAMP)  ## segment a street clip, or VIDEO=path, into demo/
	@mkdir -p demo
	@test -n "$(VIDEO)" || $(BIN)/steadyseg data render demo/streets.mp4 --video 10 --overwrite
	$(BIN)/steadyseg predict "$(or $(VIDEO),demo/streets.mp4)" -o demo/overlay.mp4 --sheet demo/sheet.png --overwrite
	@echo "overlay video: demo/overlay.mp4"
	@echo "contact sheet: demo/sheet.png"

test: $(STAMP)  ## run the tests with coverage
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --cov=steadyseg --cov-report=term:skip-covered --cov-fail-under=90 -m "not exhaustive"

test-all: $(STAMP)  ## run all tests, also minutes of further variants
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

check: $(STAMP)  ## ruff, type checker and the import rules: what CI and pre-commit run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

docs: $(STAMP)  ## check every command and doctest in the documents
	$(BIN)/python -m pytest tests/test_readme.py tests/test_docs.py
	$(BIN)/python -m pytest --doctest-modules src/steadyseg/metrics src/steadyseg/data/sampling.py

bench: $(STAMP)  ## measure speed and cost on this machine
	$(BIN)/steadyseg benchmark segformer sdcpc --backbone mit_b0 --against transformers

gpu-tests: $(STAMP)  ## run the tests of kernels and recordings on a GPU
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch finds no GPU")'
	$(BIN)/python -m pytest tests/ops/test_kernels.py
	$(BIN)/python -m pytest -m gpu

gpu: gpu-tests  ## all that waits for a GPU: the tests, then every missing measurement
	$(BIN)/python benchmarks/gpu.py --seconds 12000
