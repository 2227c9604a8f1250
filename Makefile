PYTHON ?= python3
ARGS ?=
CONSTRAINTS ?= -c constraints.txt
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' cleanrl_maxent/__init__.py)
FIRST = --env-id Pendulum-v1 --total-timesteps 10000 --learning-starts 1000
PIP = quiet=--quiet; [ ! -t 1 ] || quiet=; .venv/bin/pip install $$quiet --disable-pip-version-check
PYTEST = .venv/bin/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile
.PHONY: help run test quick check docs wheel release clean
.DEFAULT_GOAL := help

help:
	@echo 'make run        trains SAC on Pendulum-v1, about two minutes'
	@echo 'make run ARGS="--env-id Hopper-v4"   the same with other flags: a million steps on Hopper-v4, hours'
	@echo 'make check      style and types'
	@echo 'make quick      the tests without the slow ones, about a minute'
	@echo 'make test       all tests'
	@echo 'make docs       the documentation as a site, in .site'
	@echo 'make wheel      builds dist/*.whl, and tries it in an empty environment'
	@echo 'make release    all of these, then the tag of the version in cleanrl_maxent/__init__.py'
	@echo 'make clean      removes what these made: .venv, .site, dist'

run: .venv/installed
	@echo "starting: importing JAX"
	.venv/bin/python cleanrl_maxent/sac.py $(or $(ARGS),$(FIRST))

check: .venv/installed-test
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m codespell_lib
	.venv/bin/python -m pyright

quick: .venv/installed-test
	$(PYTEST) -m "not slow"

test: .venv/installed-test
	$(PYTEST)

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo "open .site/index.html"

wheel:
	.ci/wheel $(PYTHON)

release: check test docs wheel
	@git diff --quiet HEAD || { echo "error: commit your changes first"; exit 2; }
	@grep -q '^## $(VERSION)' CHANGELOG.md || { echo "error: CHANGELOG.md has no part on $(VERSION)"; exit 2; }
	git tag -a v$(VERSION) -m 'Version $(VERSION)'
	@echo "publish it: git push origin v$(VERSION)"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing, or older than 3.11; name another: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv: about 1 GB, a few minutes"
	@$(PIP) -e . $(CONSTRAINTS)
	@touch $@

.venv/installed-test: .venv/installed
	@echo "installing what the tests need: about 0.5 GB more"
	@$(PIP) -e '.[test,plots,hub,video]' $(CONSTRAINTS)
	@touch $@

.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt
	@$(PIP) 'mkdocs-material>=9.6' 'latex2mathml>=3.78' $(CONSTRAINTS)
	@touch $@

clean:
	rm -rf .venv .site dist
