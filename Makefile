PYTHON ?= python3
ARGS ?=
PYTEST = .venv/bin/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile
.PHONY: help run test quick check clean
.DEFAULT_GOAL := help

help:
	@echo 'make run ARGS="--env-id Pendulum-v1 --total-timesteps 20000"   trains SAC (default: Hopper-v4)'
	@echo 'make check      style and types'
	@echo 'make quick      the tests without the slow ones, about a minute'
	@echo 'make test       all tests'
	@echo 'make clean      removes .venv'

run: .venv/installed
	.venv/bin/python cleanrl_maxent/sac.py $(ARGS)

check: .venv/installed-test
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m pyright

quick: .venv/installed-test
	$(PYTEST) -m "not slow"

test: .venv/installed-test
	$(PYTEST)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/pip install --quiet -e . -c constraints.txt
	@touch $@

.venv/installed-test: .venv/installed
	.venv/bin/pip install --quiet -e '.[test,plots]' -c constraints.txt
	@touch $@

clean:
	rm -rf .venv
