# Everything a person types. Each target works from a fresh clone and sets up what it needs.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

PAGE_TOOLS := tools/page/node_modules/.ready

.PHONY: setup demo up test test-debian test-all check structure bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## train, write and look, in a few minutes
	$(BIN)/headcount demo --data ./data-demo

up: $(READY) ## serve on http://127.0.0.1:8000, or on another port: make up PORT=8001
	$(BIN)/headcount up $(if $(PORT),--port $(PORT))

# Three files at a time, because most tests wait for processes; then, one by one, those that hold time limits
# and the slow ones, whose trainings take every core. Both halves run; the worse exit code counts.
define both_halves
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not alone and not slow $(1)"; first=$$?; \
	$(BIN)/python -m pytest -m "($(2)) $(1)"; second=$$?; \
	exit $$(( first > second ? first : second ))
endef

test: $(READY) $(PAGE_TOOLS) ## the quick tests, five to ten minutes on two cores
	$(call both_halves,and not gpu,alone and not slow)

test-debian: $(READY) $(PAGE_TOOLS) ## of those, what uses a Redis server or a browser that is installed on this machine
	$(call both_halves,and not gpu and (redis or browser),alone and not slow)

test-all: $(READY) $(PAGE_TOOLS) ## every test
	$(call both_halves,,alone or slow)

$(PAGE_TOOLS): $(READY) tools/page/package-lock.json
	PATH=$(CURDIR)/$(BIN):$$PATH npm ci --prefix tools/page --no-audit --no-fund --loglevel error
	@touch $@

check: $(READY) $(PAGE_TOOLS) ## lint and types of Python and of the page, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	PATH=$(CURDIR)/$(BIN):$$PATH npm run check --prefix tools/page --silent

structure: $(READY) ## count files, import circles, long functions, incomplete docstrings
	$(BIN)/python tools/structure.py

bench: $(READY) ## measure: make bench NAME=pictures
	@test -f bench/$(NAME).py || { echo "usage: make bench NAME=..., one of: $(basename $(notdir $(wildcard bench/*.py)))"; exit 2; }
	$(BIN)/python bench/$(NAME).py

clean: ## remove the environment, not the data
	rm -rf .venv build dist tools/page/node_modules
