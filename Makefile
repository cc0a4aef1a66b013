# Everything runs in .venv, made from pyproject.toml on first use. PYTHON picks the interpreter it is made with.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: serve train test check clean

serve: .venv/installed
	$(BIN)/python -m app serve $(ARGS)

train: .venv/installed-train
	$(BIN)/python -m app train $(ARGS)

test: .venv/installed-test
	$(BIN)/python -m pytest $(ARGS)

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv model_store/*/.checkpoints build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-train .venv/installed-test: .venv/installed-%: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[$*]"
	touch .venv/installed $@
