# make demo: the main job on a bundled model and bundled speech, offline after installation
# make test: linters, types, import contract, tests
# make coverage: the tests, with the share of lines that they execute, at least 90 %
# make mutation: how many random changes of the code the tests notice (an hour; writes benchmarks/results/mutation.json)
# make docs: the documentation as a site, in build/site

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
INSTALLED := $(VENV)/.installed
# --no-compile: bytecode of all packages takes half the time; Python compiles what is used at its first use.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test lint unit coverage mutation docs clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0 -c constraints.txt
	$(PIP) --editable '.[demo,dev]' -c constraints.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/sottovoce demo

test: lint unit

lint: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks fuzz
	$(BIN)/ruff format --check --quiet src tests benchmarks fuzz
	$(BIN)/mypy
	$(BIN)/lint-imports

# Python compiles what the tests use once, not in each of the processes that they start.
unit coverage: export PYTHONDONTWRITEBYTECODE =

unit: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

coverage: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --cov --cov-report=term:skip-covered --cov-fail-under=90

mutation: $(INSTALLED)
	$(PIP) --editable '.[mutation]' -c constraints.txt
	$(BIN)/python benchmarks/mutation.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) demo build dist
