# Everything a person types. Each target works from a fresh clone and sets up what it needs.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo up test test-all check bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## train, write and look, in a few minutes
	$(BIN)/headcount demo --data ./data-demo

up: $(READY) ## serve on http://127.0.0.1:8000
	$(BIN)/headcount up

test: $(READY) ## the quick tests, two files at a time (half of the time they wait for processes), then those that hold limits
	$(BIN)/python -m pytest -m "not slow and not gpu and not alone" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "alone and not slow and not gpu"

test-all: $(READY) ## every test
	$(BIN)/python -m pytest

check: $(READY) ## lint, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure: make bench NAME=pictures
	@test -f bench/$(NAME).py || { echo "usage: make bench NAME=..., one of: $(basename $(notdir $(wildcard bench/*.py)))"; exit 2; }
	$(BIN)/python bench/$(NAME).py

clean: ## remove the environment, not the data
	rm -rf .venv build dist
