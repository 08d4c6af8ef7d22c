# Every target sets up .venv first if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without compiling all of torch, which takes longer than to install it: Python compiles what is imported.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

.PHONY: help demo test lint docs bench reliability reliability-quick clean
help:
	@echo "make demo   train, attack and evaluate on a small data set; results in runs/demo"
	@echo "make test   all tests, with line coverage"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation as a site, in build/site"
	@echo "make bench  speed beside the classifier, other defences and libraries; writes docs/performance.md"
	@echo "make reliability        kills, faults, bad input and load in large numbers; three hours; writes docs/reliability.md"
	@echo "make reliability-quick  the same in small numbers; two minutes"
	@echo "make clean  remove .venv and caches, but not runs/"

demo: $(VENV)/installed
	$(BIN)/purifiers demo --output runs/demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-fail-under=90 -q

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: $(VENV)/installed-dev
	@$(PIP) openvino
	@$(PIP) --no-deps torchattacks  # it requires versions of 2021
	$(BIN)/python -m benchmarks.run

reliability: $(VENV)/installed-dev
	$(BIN)/python reliability/run.py

reliability-quick: $(VENV)/installed-dev
	$(BIN)/python reliability/run.py --quick

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* build dist src/*.egg-info

# torch is installed first and alone: as a dependency of other packages, pip may choose another build of it.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "purifiers needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) torch
	@$(PIP) --editable '.[research]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) --editable '.[dev]'
	@touch $@
