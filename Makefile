# setup   the virtual environment, exactly as locked        demo    data, training, evaluation, report
# test    the tests (PYTEST_ARGS="-n 2 -k x")              check   style, types, who may import whom
# bench   how long a training step takes, as ratios
# lock    write requirements.lock anew                      clean   remove the environment and caches (never runs/)
# setup-tpu-plan   the TPU compiler, for `geminid plan compile` (large, optional, Linux on x86-64)
# setup-peers      what benchmarks/train_step.py measures beside us (large, optional)

SHELL := /bin/bash
VENV := .venv
# the first Python on the path that is new enough; `make PYTHON=... setup` chooses another
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
# two processes, each file of tests in one of them, in the order of tests/conftest.py
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder -m "not long"
export PYTHONUTF8 := 1

.PHONY: help setup setup-tpu-plan setup-peers demo test check bench lock clean
help:
	@sed -n '1,6s/^# //p' Makefile

setup:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup.sh

setup-tpu-plan: setup
	@VENV="$(VENV)" bash scripts/setup_tpu_plan.sh

setup-peers: setup
	@VENV="$(VENV)" bash scripts/setup_peers.sh

demo: setup
	@$(VENV)/bin/geminid demo

test: setup
	@$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

check: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo
	@$(VENV)/bin/pyrefly check --output-format min-text

bench: setup
	@$(VENV)/bin/python benchmarks/joint_step.py

lock:
	@uv --version >/dev/null || { echo "geminid: make lock needs uv (python -m pip install uv)" >&2; exit 1; }
	@uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links --no-header --quiet -o requirements.lock

clean:
	@rm -rf $(VENV) $(VENV)-tpu-plan $(VENV)-peers $(VENV)-levanter .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	@find geminid tests -name __pycache__ -type d -prune -exec rm -rf {} +
