# Everything a developer or a CI machine does with this project; `make help` lists it.
#
# A fresh Debian machine with Python 3.11+ and make is enough: Python packages go into $(VENV), Node comes as a
# Python package into pip's build environment, and the few system packages are installed where we may
# (as root or by password-less sudo) and named where we may not.

PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 5

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LABEXTENSION := $(addprefix labextension/,package.json yarn.lock tsconfig.json) \
	$(shell find labextension/src labextension/style labextension/schema -type f)

# What a promise about data rests on: every line and branch of it is exercised.
FULLY_COVERED := jupyter_wsfuse/protocol/*,jupyter_wsfuse/fuse/*,jupyter_wsfuse/engine/sandbox.py,jupyter_wsfuse/engine/operations.py,jupyter_wsfuse/engine/attributes.py,jupyter_wsfuse/engine/entries.py,jupyter_wsfuse/engine/files.py,jupyter_wsfuse/engine/patterns.py,jupyter_wsfuse/engine/permissions.py,jupyter_wsfuse/engine/places.py,jupyter_wsfuse/engine/enforcement.py,jupyter_wsfuse/engine/inotify.py,jupyter_wsfuse/engine/leases.py,jupyter_wsfuse/engine/notes.py,jupyter_wsfuse/engine/ours.py,jupyter_wsfuse/engine/watcher.py,jupyter_wsfuse/engine/subtree.py

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test check lint types imports fuzz bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## install the project and its tools into $(VENV)

# Installed again only when something changed that an editable install does not pick up by itself.
$(STAMP): pyproject.toml $(LABEXTENSION)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	PYTHON=$(PYTHON) scripts/system-packages.sh setup
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP) ## run the quick start in a real kernel of a real server, then clean up
	scripts/system-packages.sh demo
	$(BIN)/python scripts/demo.py

lab: $(STAMP) ## open JupyterLab with the quick start on a sample workspace
	scripts/system-packages.sh demo
	$(BIN)/python scripts/demo.py --lab

test: $(STAMP) lint types imports ## everything: style, types, imports, all tests, coverage
	scripts/system-packages.sh test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage report --fail-under=100 --include='$(FULLY_COVERED)'

check: $(STAMP) lint types imports ## what to run at every save: no server, no mount, under a minute
	$(BIN)/python -m pytest --quiet -m "not mount and not jupyter and not slow"

lint: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

fuzz: $(STAMP) ## try anything for MINUTES (5): malformed input, escapes, races
	$(BIN)/python scripts/fuzz.py $(MINUTES)

bench: $(STAMP) ## measure against sshfs on this machine, at several distances
	scripts/system-packages.sh bench
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks --rtt 0,5,20,80 --patience 60 --minutes 18 --output build/benchmarks.json --docs
	$(BIN)/python -m benchmarks.coherence --docs
	$(BIN)/python -m benchmarks.bigtree --docs
	$(BIN)/python -m benchmarks.security
	$(BIN)/python -m benchmarks.fairness

clean: ## remove everything that was built, installed or measured
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache jupyter_wsfuse/labextension \
		labextension/lib labextension/build labextension/node_modules labextension/.yarn labextension/*.tsbuildinfo
	find jupyter_wsfuse tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
