# Two commands do everything on a fresh machine:  make repro   and   make test.  Without make: README, "Without make".
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
export DVC_NO_ANALYTICS := 1

.PHONY: repro pipeline test lint format dry-run bench fleet lab book clean help
help:
	@echo "make repro   set up .venv and run the pipeline of params.yaml's profile (quick); JOBS=n: n stages side by side"
	@echo "make test    set up .venv and run every test, the smoke pipeline and the notebooks included"
	@echo "make lint    set up .venv and check the code without running it: ruff's rules and layout, mypy's types"
	@echo "make format  lay the code out, and mend what ruff can mend by itself"
	@echo "make dry-run the paper profile, notebooks and all, on small generated files (5 minutes)"
	@echo "make bench   measure the speed of training updates on this machine (10 minutes at most)"
	@echo "make fleet   train what is pending within some minutes, for rented GPUs"
	@echo "make lab     open the notebooks in JupyterLab"
	@echo "make book    the notebooks, as saved, as HTML pages in results/book/"
	@echo "make clean   remove .venv and scratch files; results and artifacts stay"

$(VENV)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m lib.environment
	@touch $@

repro: $(VENV)/.ready
	@$(PY) -m lib.pipeline

pipeline:                                                # of `repro`, without the set-up: in an environment of your own
	@$(PYTHON) -m lib.pipeline

test: $(VENV)/.ready
	$(PY) -m pytest --durations=10

lint: $(VENV)/.ready
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: $(VENV)/.ready
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

dry-run: $(VENV)/.ready
	$(PY) -m pytest -n 0 -m paper tests/test_paper_profile.py

bench: $(VENV)/.ready
	$(PY) -m lib.bench $(BENCH)                          # e.g. make bench BENCH="--runs jempp-m10"

fleet: $(VENV)/.ready
	$(PY) -m lib.fleet $(FLEET)                          # e.g. make fleet FLEET="--profile gpu --minutes 25 --pack packed"

lab: $(VENV)/.ready
	$(PY) -m jupyterlab --notebook-dir=. $(LAB)          # e.g. make lab LAB="--no-browser --port 8899"

book: $(VENV)/.ready
	$(PY) -m lib.book html

clean:
	rm -rf $(VENV) scratch *.egg-info
