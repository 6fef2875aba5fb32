# Two commands do all the set-up: `make demo` runs the main job, `make test` runs the tests.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?= -n 2 --dist worksteal

.PHONY: demo test lint format clean

demo: .venv/.llm
	$(BIN)/occ demo --out demo --force

test: .venv/.test lint
	$(BIN)/pytest $(PYTEST_ARGS)

lint: .venv/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build demo *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.llm .venv/.test: .venv/.%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
