# make reproduce [STUDY=cpu] [ARGS="--keep-going"]   run a study; print its verdicts and its page
# make reproduce ARGS=--verbose                      the same with Snakemake's own output, not a progress bar
# make test         run the tests of CI
# make bench        compare times with those of other programs, on an idle machine: minutes; .benchmarks/ keeps them
# make test-tf      run the tests of the Keras classes, in an environment of their own: 4 GB, minutes
# make test-engines test the optional engines and every way to int8, in an environment of its own: 5 GB, minutes
# make test-page    read the page in headless Chromium (apt, npm): layout, keyboard, screen readers; a minute
# make test-slurm   run the Slurm profile on a one-node Slurm (root; apt install slurm-wlm munge)
# make test-long    kill each training program 50 times, workflows until they end and an MLflow server 10
#                   times, compare two processes with one, simulate claims: an hour
PYTHON ?= python3
VENV ?= .venv
TF_VENV ?= .venv-tf
ENGINES_VENV ?= .venv-engines
STUDY ?= smoke
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
ARGS ?=

BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.installed
export PATH := $(BIN):$(PATH)
# Each job of a study is a process: without files of bytecode each compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: reproduce test bench test-long test-page test-engines test-slurm test-tf install

# Snakemake finds the progress bar, a logger plug-in, on Python's module path.
reproduce: export PYTHONPATH := $(CURDIR)/workflows/plugins$(if $(PYTHONPATH),:$(PYTHONPATH))
reproduce: $(READY)
	@snakemake $(if $(filter --verbose,$(ARGS)),,--logger mobilebert) --cores $(CORES) $(ARGS) --config study=$(STUDY); code=$$?; \
	out=results/$(notdir $(basename $(STUDY))); \
	if [ -d $$out ]; then echo; python -m mobilebert check --study $(STUDY); fi; \
	if [ -f $$out/report/index.html ]; then echo "page: $$out/report/index.html"; fi; exit $$code

# Tests run in one process a core, at most four, a file in one process; the folders with the
# longest files come first.
# Each benchmark runs once and compares results; `make bench` judges times.
test: $(READY)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflows/rules
	pyrefly check
	OMP_NUM_THREADS=1 pytest --benchmark-disable -n $(CORES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	  --durations 25 tests/workflow tests/bench tests/unit

bench: $(READY)
	OMP_NUM_THREADS=1 pytest -s tests/bench --benchmark-autosave

test-long: $(READY)
	python tests/long/kills.py 50
	python tests/long/workflow.py tests/workflow/mini.yaml 3 15
	python tests/long/workflow.py smoke 20 20
	python tests/long/shared.py 20
	python tests/long/parallel.py
	python tests/long/claims.py
	python tests/long/tracking.py 10

test-engines: $(ENGINES_VENV)/.installed
	OMP_NUM_THREADS=1 $(ENGINES_VENV)/bin/python -m pytest tests/engines

$(ENGINES_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ENGINES_VENV)
	$(ENGINES_VENV)/bin/pip install --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[workflow,deploy,openvino,litert,quanto,tensorflow,test]'
	@touch $@

test-page: $(READY)
	VENV=$(VENV) tests/page/install.sh
	pytest tests/page

test-slurm: $(READY)
	MOBILEBERT_SLURM=1 pytest tests/workflow/test_slurm.py

test-tf: $(TF_VENV)/.installed
	OMP_NUM_THREADS=2 $(TF_VENV)/bin/python -m pytest tests/tf tests/unit/modeling/test_from_tensorflow.py \
	  tests/unit/modeling/test_from_garden.py

$(TF_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TF_VENV)
	$(TF_VENV)/bin/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[workflow,deploy,tensorflow,litert,test]'
	@touch $@

install: $(READY)

# --no-compile: Python compiles a module when it is first imported, and most never are.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; make PYTHON=... names another" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	pip install --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[workflow,deploy,test]'
	@touch $@
