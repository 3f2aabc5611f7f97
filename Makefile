# make reproduce [STUDY=cpu] [ARGS="--keep-going"]   run a study; print its verdicts and its page
# make test         run the tests of CI
# make test-slurm   run the Slurm profile on a one-node Slurm (root; apt install slurm-wlm munge)
# make test-long    kill each training program 50 times, compare two processes with one, simulate claims: minutes
PYTHON ?= python3
VENV ?= .venv
STUDY ?= smoke
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
ARGS ?=

BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.installed
export PATH := $(BIN):$(PATH)

.PHONY: reproduce test test-long test-slurm install

reproduce: $(READY)
	@snakemake --cores $(CORES) $(ARGS) --config study=$(STUDY); code=$$?; \
	out=results/$(notdir $(basename $(STUDY))); \
	if [ -d $$out ]; then echo; python -m mobilebert check --study $(STUDY); fi; \
	if [ -f $$out/report/index.html ]; then echo "page: $$out/report/index.html"; fi; exit $$code

# Tests run in one process a core, at most four, a file in one process; the longest files come first.
# Benchmarks measure times, so they run alone.
test: $(READY)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflows/rules
	basedpyright --level error --threads 2
	OMP_NUM_THREADS=1 pytest -n $(CORES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests/workflow tests/unit
	pytest tests/bench

test-long: $(READY)
	python tests/long/kills.py 50
	python tests/long/shared.py 20
	python tests/long/parallel.py
	python tests/long/claims.py

test-slurm: $(READY)
	MOBILEBERT_SLURM=1 pytest tests/workflow/test_slurm.py

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; make PYTHON=... names another" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	pip install --disable-pip-version-check --constraint constraints.txt --editable '.[workflow,deploy,test]'
	@touch $@
