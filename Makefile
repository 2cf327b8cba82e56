# make demo: the main job on a bundled model and bundled speech, offline after installation
# make test: linters, types, import contract, tests
# make docs: the documentation as a site, in build/site

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint unit docs clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]' -c constraints.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/sottovoce demo

test: lint unit

lint: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks fuzz
	$(BIN)/ruff format --check --quiet src tests benchmarks fuzz
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(INSTALLED)
	$(BIN)/python -m pytest

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) demo build dist
