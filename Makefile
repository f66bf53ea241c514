# make demo | test | test-all | lint | format | install | clean
#
#   BACKEND=cpu|cuda|cuda-torch211   which build of FBGEMM goes in (default cpu)
#   VENV=DIR           the environment (default .venv); one environment, one backend
#   PYTHON=python3     the interpreter that makes it (3.10 or newer)
#   PIP_FLAGS=...      passed on to pip install, for instance an --extra-index-url with CPU builds of torch
#   ARGS=...           passed on to the demo or to pytest

BACKEND ?= cpu
VENV    ?= .venv
PYTHON  ?= python3
PIP_FLAGS ?=
ARGS    ?=

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed-$(BACKEND)

ifeq ($(filter $(BACKEND),cpu cuda cuda-torch211),)
$(error BACKEND must be cpu, cuda or cuda-torch211, got '$(BACKEND)')
endif

# A data folder beside the repository is used where there is one and nothing else was said.
ifndef BET_TORCHREC_DATA
ifneq ($(wildcard ../shared/data),)
export BET_TORCHREC_DATA := $(abspath ../shared/data)
endif
endif

# A training step allocates and frees arrays of tens of MB. glibc maps each anew by default and the
# kernel clears every page: on Gowalla at d 128 that costs more than the arithmetic.
KEEP_FREED_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184

.PHONY: demo test test-all lint format install clean

demo: $(STAMP)
	$(KEEP_FREED_MEMORY) $(BIN)/python examples/demo.py $(ARGS)

# A file's tests stay in one process; a thread each, or their pools fight over the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

test: $(STAMP)
	$(PYTEST) $(ARGS)

test-all: $(STAMP)
	$(PYTEST) -m "slow or not slow" $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

$(STAMP): pyproject.toml
	@other=$$(ls $(VENV)/.installed-* 2>/dev/null | grep -v -- '-$(BACKEND)$$' | head -n 1); \
	if [ -n "$$other" ]; then \
	  echo "$(VENV) already holds the backend $${other##*-}; FBGEMM's two builds install over each other." >&2; \
	  echo "Run 'make clean' first, or keep both: make VENV=.venv-$(BACKEND) BACKEND=$(BACKEND) ..." >&2; \
	  exit 2; \
	fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than 3.10; name another one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "setting up $(VENV) for BACKEND=$(BACKEND), about a minute"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet $(PIP_FLAGS) -e '.[$(BACKEND),dev]'
ifeq ($(BACKEND),cpu)
	@# Without its metadata, which asks for the CUDA build of FBGEMM; its needs are in extra cpu.
	@$(PIP) install --quiet $(PIP_FLAGS) --no-deps torchrec==1.8.0
endif
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
