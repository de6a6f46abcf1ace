# make demo and make test are all that a fresh machine with Python >= 3.11 and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-all torture check format docs wheelhouse clean

install: $(STAMP)

# torch first and pinned, so that no other package pulls a different build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/bolus demo

test: install
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-all: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Attacks on what docs/reliability.md promises, counted; its table is written from them.
torture: install
	$(BIN)/python benchmarks/torture.py
	$(BIN)/python benchmarks/tables.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site, in build/docs/site; needs no network once its tools are there, and fails on warnings.
docs: $(VENV)/.installed-docs
	$(BIN)/python docs/site/build.py

$(VENV)/.installed-docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# Everything that a machine without a network needs: docs/offline.md.
INDEX ?=
EXTRAS ?= imagenet
wheelhouse:
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir wheelhouse .
	$(PYTHON) -m pip download --quiet --only-binary :all: --constraint constraints.txt --dest wheelhouse \
		--find-links wheelhouse $(INDEX) "bolus[$(EXTRAS)]"

clean:
	rm -rf build wheelhouse $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
