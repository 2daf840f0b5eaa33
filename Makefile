# Two targets are all a newcomer needs: `make demo` and `make test`. Both make their own .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The sub-packages, read from their one list.
FOLDERS := $(shell sed -n 's/^\([a-z]*\) = .*/\1/p' packages.toml | grep -v "^farshore$$")

.PHONY: demo test test-slow lint types check proto install clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed .pkg

$(VENV)/.installed: pyproject.toml setup.py packages.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'uv>=0.5'
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --compile-bytecode --editable '.[all]' --group dev
	@touch $@

# A tree of links that lets static tools, and an uninstalled checkout, see the folders as one package.
.PHONY: .pkg
.pkg:
	@mkdir -p .pkg/farshore
	@for f in farshore/*; do ln -sfn ../../$$f .pkg/farshore/$$(basename $$f); done
	@for r in $(FOLDERS); do ln -sfn ../../$$r .pkg/farshore/$$r; done

demo: install
	@$(BIN)/farshore demo

# Files in parallel, one process per core. A single file: .venv/bin/pytest tests/…
test: install
	@$(BIN)/pytest -n auto --dist loadfile

test-slow: install
	@$(BIN)/pytest -m slow --timeout 900

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install
	@MYPYPATH=.pkg $(BIN)/mypy -p farshore

check: lint types test

# Generated modules come from grpcio-tools in an environment of its own: its releases lag grpcio's.
proto:
	@$(PYTHON) proto/generate.py

clean:
	rm -rf $(VENV) .pkg build *.egg-info
