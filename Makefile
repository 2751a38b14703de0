# Two commands do everything on a fresh machine:  make repro   and   make test
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
export DVC_NO_ANALYTICS := 1
# SciPy's matrix square roots: stages run side by side, one core each.
export OPENBLAS_NUM_THREADS ?= 1
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro pipeline test dry-run bench fleet lab book clean help
help:
	@echo "make repro   set up .venv and run the pipeline of params.yaml's profile (quick)"
	@echo "make test    set up .venv and run every test, the smoke pipeline and the notebooks included"
	@echo "make dry-run the paper profile, notebooks and all, on small generated files (5 minutes)"
	@echo "make bench   measure the speed of training updates on this machine (10 minutes at most)"
	@echo "make fleet   train what is pending within some minutes, for rented GPUs"
	@echo "make lab     open the notebooks in JupyterLab"
	@echo "make book    the notebooks, as saved, as HTML pages in results/book/"
	@echo "make clean   remove .venv and scratch files; results and artifacts stay"

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]}: expected 3.11 to 3.13; choose one with make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

# Stages of one kind do not depend on each other: JOBS of them run side by side, each on one core (one at a time where
# there is a GPU to share), in dvc.yaml's order, whose short ones stand last: no core waits for long. The last line runs
# what is left; alone, `dvc repro` does all of it one after the other.
JOBS ?= $(shell $(PYTHON) -c "import os, shutil; print(1 if shutil.which('nvidia-smi') else os.cpu_count())")
STAGES = $(PY) -m dvc stage list --names-only
repro: $(VENV)/.ready
	@if $(PY) -m dvc status -q; then echo "Nothing changed: results are up to date."; else $(MAKE) --no-print-directory pipeline; fi

TIMES = scratch/times-$$(date +%Y%m%d-%H%M%S).txt
pipeline:                # of `repro`, without the set-up: make pipeline PY=python, in an environment of your own
	@mkdir -p scratch && times=$(TIMES) && $(PY) -m dvc repro data notebook-01 && \
	echo "First pictures: notebooks/01_energies_in_2d.ipynb" && \
	for kind in train@ evaluate@ apply@ notebook-; do \
	    $(STAGES) | grep "^$$kind" | xargs -P $(JOBS) -I{} sh -c 'began=$$(date +%s); $(PY) -m dvc --wait-for-lock repro -s {} \
	        && echo {} $$(( $$(date +%s) - began )) >> '$$times || exit 1; \
	done && $(PY) -m dvc repro && awk '{split($$1, a, "@"); k = a[1] ~ /^notebook/ ? "notebook" : a[1]; n[k]++; s[k] += $$2; \
	    if ($$2 >= most[k]) {most[k] = $$2; name[k] = $$1}} END {for (k in n) \
	    printf "%-9s %3d stages %5d s in all, longest %4d s (%s)\n", k, n[k], s[k], most[k], name[k]}' $$times

test: $(VENV)/.ready
	$(PY) -m pytest

dry-run: $(VENV)/.ready
	$(PY) -m pytest -m paper tests/test_paper_profile.py

bench: $(VENV)/.ready
	$(PY) -m lib.bench $(BENCH)                          # e.g. make bench BENCH="--runs jempp-m10"

fleet: $(VENV)/.ready
	$(PY) -m lib.fleet $(FLEET)                          # e.g. make fleet FLEET="--profile gpu --minutes 25 --pack packed"

lab: $(VENV)/.ready
	$(PY) -m jupyterlab --notebook-dir=. $(LAB)          # e.g. make lab LAB="--no-browser --port 8899"

book: $(VENV)/.ready
	$(PY) -m nbconvert --to html --log-level WARN --output-dir results/book notebooks/*.ipynb
	@echo "results/book/00_map.html"

clean:
	rm -rf $(VENV) scratch *.egg-info
