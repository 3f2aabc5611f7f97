# make reproduce [STUDY=cpu] [ARGS="--keep-going"]     run a study; print its verdicts and where its page is
# make test                                            what CI runs
# make test-slurm                                      the Slurm profile against a Slurm of one node (root; apt install slurm-wlm munge)
# make test-long                                       50 kills of each training program, two processes against one: minutes
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

# The unit tests take a process a core. The others time something or start processes of their own.
test: $(READY)
	ruff check .
	ruff format --check .
	OMP_NUM_THREADS=1 pytest -n $(CORES) --dist loadgroup tests/unit
	pytest tests/workflow tests/bench

test-long: $(READY)
	python tests/long/kills.py 50
	python tests/long/shared.py 20
	python tests/long/parallel.py

test-slurm: $(READY)
	MOBILEBERT_SLURM=1 pytest tests/workflow/test_slurm.py

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; make PYTHON=... names another" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	pip install --disable-pip-version-check --constraint constraints.txt --editable '.[workflow,deploy,test]'
	@touch $@
