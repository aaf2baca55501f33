# make run, make test, make lint: each sets up what it needs (Python 3.11 and make suffice).
# PYTHON=/path/to/python chooses the interpreter that .venv is made from. make run fails where the
# sitting's exit code is not 0 (README, "Exit codes"); the report is written all the same.

PYTHON = python3.11 python3 python3.12 python3.13
PY = .venv/bin/python
# A stamp, not a folder: it exists only after every pinned requirement was installed.
READY = .venv/.installed

# On any machine the same: two runs at a time on the CPU, and at most eight pairs in stage 4.
SMALL = --num_gpus 0 --parallel_runs 2 --validation_runs 8

.PHONY: help run test lint

help:
	@echo "make run    the staged ablation at the mini profile, minutes on any machine: report and figures"
	@echo "make test   all tests"
	@echo "make lint   ruff and mypy"

run: $(READY)
	$(PY) data/prepare.py
	@$(PY) run_aux.py --staged --profile mini --plan adaptive $(SMALL); code=$$?; \
	case $$code in 1|2) exit $$code;; esac; \
	$(PY) analyze_aux.py || exit; \
	exit $$code

test: $(READY)
	$(PY) data/prepare.py
	$(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m mypy

# An environment that works is kept; half of one, or one of another Python, is made anew.
$(READY): requirements.txt
	@rm -f $@
	@fit='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PY) -c "import pip; $$fit" 2>/dev/null; then \
	  for python in $(PYTHON) none; do \
	    if "$$python" -c "$$fit" 2>/dev/null; then break; fi; \
	  done; \
	  if [ "$$python" = none ]; then \
	    echo "make: error: no Python 3.11 or later with venv and pip among: $(PYTHON);" \
	      "install one, or name it: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "making .venv with $$python"; \
	  "$$python" -m venv --clear .venv; \
	fi
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@
