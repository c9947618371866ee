PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed
# Cases of `make bench`; empty: the benchmark's own default.
CASES ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench screenshots clean

# axe-core, which the tests of the dashboard ask about accessibility; renewed where the lock file is newer.
AXE := tests/browser/node_modules/.package-lock.json

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

install: $(STAMP) ## create .venv with the pinned dependencies (instant where nothing changed)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Accutune needs Python 3.11 or newer, but '$(PYTHON)' was not found. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Accutune needs Python 3.11 or newer, but $(PYTHON) is %s. Name another: make PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	@echo "Installing Accutune and its pinned dependencies into $(VENV); the first time takes a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,dev]'
	@touch $@
	@echo "Done: $(VENV)/bin/tuner is ready."

demo: install ## train a small network, tune it and show the report
	@$(VENV)/bin/tuner demo

$(AXE): tests/browser/package-lock.json
	@if ! command -v npm >/dev/null; then \
		echo "npm was not found, so the tests that need a browser will be skipped. It comes with Node.js."; \
	elif cd tests/browser && npm ci --silent --no-audit --no-fund --no-update-notifier; then \
		touch node_modules/.package-lock.json; \
	else \
		echo "npm could not install axe-core, so the tests that need a browser will be skipped. To see why: cd tests/browser && npm ci"; \
	fi

test: install $(AXE) ## run every test, the slow ones too
	@$(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: install ## lint and type-check
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy --strict search_spaces tuner server

bench: install ## measure tuning itself; choose with CASES="a b"
	@$(VENV)/bin/python benchmarks/tuning.py $(CASES)

screenshots: install ## draw the dashboard's pages to docs/images
	@$(VENV)/bin/python tests/screenshots.py

clean: ## remove .venv and every cache
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist tests/browser/node_modules
	@find search_spaces tuner server tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
