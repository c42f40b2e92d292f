# Each target sets up what it needs, in .venv. With uv, if it is there; plain pip does as well.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)
BIN := .venv/bin

.PHONY: quickstart test test-slow check docs bench notebooks accelerators wheels clean

quickstart: .venv/ready
	$(BIN)/discover quickstart

test: .venv/ready-dev
	$(BIN)/python -m pytest

test-slow: .venv/ready-dev
	$(BIN)/python -m pytest -m slow

check: .venv/ready-dev docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/codespell
	$(BIN)/python -m pytest -n 0 tests/test_language.py
	$(BIN)/python -m benchmarks.readme --check

docs: .venv/ready-docs
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

bench: .venv/ready-dev
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.stepping
	$(BIN)/python -m benchmarks.compilation
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.width

notebooks: .venv/ready-dev
	$(BIN)/python notebooks/build.py --small

# Compiles every recipe for TPUs that need not be there: the extra tpu-compile brings the compiler. An hour on two cores.
accelerators: .venv/ready-dev
	@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(BIN)/python -e '.[dev,tpu-compile]'; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,tpu-compile]'; fi
	$(BIN)/python -m benchmarks.accelerators --compile v5e:2x2 v5e:4x4

# What a machine with an accelerator and without a network needs: benchmarks/wheels.py.
wheels: .venv/ready-dev
	$(BIN)/python -m benchmarks.wheels

clean:
	rm -rf .venv .jax_cache .pytest_cache .ruff_cache docs/_build docs/_cards docs/_notebooks

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "discover needs Python 3.11, 3.12 or 3.13, and none is on the PATH ($$(python3 --version 2>&1)): \
	install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@if command -v uv >/dev/null 2>&1; then uv venv --quiet --python "$(PYTHON)" .venv; else "$(PYTHON)" -m venv .venv; fi

.venv/ready: pyproject.toml .venv/bin/python
	@echo "Installing into .venv (a minute or two the first time)."
	@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(BIN)/python -e .; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e .; fi
	@touch $@

.venv/ready-dev: pyproject.toml .venv/bin/python
	@echo "Installing into .venv (a minute or two the first time)."
	@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; fi
	@touch $@ .venv/ready

.venv/ready-docs: pyproject.toml .venv/bin/python
	@echo "Installing into .venv (a minute or two the first time)."
	@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(BIN)/python -e '.[dev,docs]'; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs]'; fi
	@touch $@ .venv/ready-dev .venv/ready
