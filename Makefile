# Everything runs in .venv, which is made on first use and again when setup.py or the pins change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TORCH := $(VENV)/torch
SOURCES := setup.py feat_ros test requirements

# With a ROS installation sourced, its packages are visible and its versions hold.
VENV_FLAGS := $(if $(ROS_DISTRO),--system-site-packages)
PROFILE := $(if $(ROS_DISTRO),$(wildcard requirements/robot-$(ROS_DISTRO).txt))
PINS := requirements/dev.txt $(or $(PROFILE),requirements/desktop.txt)

.DEFAULT_GOAL := help
.PHONY: help venv format format-check lint types resolve pytest test demo torch clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

venv: $(STAMP) ## install the package and its tools into .venv

# Debian's Python has venv but not always ensurepip: then its pip puts a newer pip into the folder.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo 'feat_ros needs Python 3.10 or newer: name one with make PYTHON=python3.12' >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	    $(PYTHON) -m venv --clear $(VENV_FLAGS) $(VENV); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    $(PYTHON) -m venv --clear --without-pip $(VENV_FLAGS) $(VENV) && \
	    PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --target "$$($(BIN)/python -c \
	        'import sysconfig; print(sysconfig.get_path("purelib"))')" pip; \
	else \
	    echo 'Python has neither venv nor pip: run apt-get install python3-venv' >&2; exit 1; \
	fi
	@touch $@

$(STAMP): setup.py setup.cfg $(PINS) | $(VENV)/created
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77'
	$(BIN)/python -m pip install --quiet --no-build-isolation $(PINS:%=--constraint %) --editable '.[dev]'
	@touch $@

format: $(STAMP) ## format the code
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

format-check: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)

lint: $(STAMP) ## check style
	$(BIN)/ruff check $(SOURCES)

types: $(STAMP) ## check types
	@numpy=$$($(BIN)/python -c 'import numpy; print(numpy.__version__)'); case $$numpy in \
	    2.4.*) echo '$(BIN)/mypy $(SOURCES)'; $(BIN)/mypy $(SOURCES);; \
	    *) echo "types: skipped, because they are checked against NumPy 2.4 and this is $$numpy";; \
	esac

resolve: $(STAMP) ## check that the robot profiles can be installed on 64-bit ARM
	$(BIN)/python requirements/resolve.py

# ROS brings pytest plugins that a newer pytest refuses; colcon test is where they run.
pytest: $(STAMP) ## run the tests with coverage, on all cores
	@$(MAKE) --no-print-directory torch || echo 'pytest: tests that need torch are skipped'
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest -p pytest_cov -p xdist \
	    --numprocesses auto --maxprocesses 8 --dist loadfile --cov --cov-fail-under=90

# One after the other, even under make -j; pytest's closing line stays the last.
test: $(STAMP) ## all checks: format, style, types, profiles, tests
	@for check in format-check lint types resolve pytest; do \
	    $(MAKE) --no-print-directory $$check || exit 1; \
	done

demo: $(STAMP) ## build a small map and localize in it; writes demo_out
	$(BIN)/feat_ros demo --out demo_out

torch: $(TORCH) ## add PyTorch for the CPU (training, export, benches)

$(TORCH): requirements/install_torch.py $(STAMP)
	$(BIN)/python requirements/install_torch.py
	@touch $@

clean: ## remove .venv, the demo's output and caches
	rm -rf $(VENV) demo_out build install log .coverage .mypy_cache .pytest_cache .ruff_cache *.egg-info
