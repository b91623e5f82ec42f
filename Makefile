# Everything runs in .venv, made on first use and reused after that.
#
#   make demo        derivatives of sin, three trainings, a picture and a table in demo/
#   make test        the whole test suite; T="-k tanh" passes options to pytest
#   make bench       the short suite of benchmarks, some minutes; B="--resume" passes options to benchmarks/run.py
#   make lint        ruff and clang-format, checking only, and what a compiler says to code for AVX-512 that this machine
#                    may lack;  make format  rewrites
#   make typecheck   pyright
#   make cuda-check  compile every CUDA source; needs nvcc, needs no GPU
#   make clean       remove what was built and written, .venv included
#
# Another torch:  make test TORCH="torch==2.11.0"

PYTHON ?= python3
TORCH ?= torch==2.13.0
T ?=
B ?=
# Tests run in as many processes as there are cores, those of a file in one; WORKERS=0: all in one.
WORKERS ?= auto

# Of the instruction sets, only what this machine has is compiled.
export TAYLORDERIV_AVX512 ?= auto

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.*)
CPP := $(filter-out %.txt %.md,$(wildcard csrc/*.* csrc/*/*.*))

# A stamp is touched when its step has succeeded, so an interrupted step is done again.
# The torch stamp carries a checksum of the requirement: another TORCH means another install and build.
TORCH_STAMP := $(VENV)/.torch-$(shell printf '%s' '$(TORCH)' | cksum | cut -d' ' -f1)

.PHONY: demo test bench lint typecheck format cuda-check clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(RUN) examples/sine.py

test: $(VENV)/.installed-test
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(T)

bench: $(VENV)/.installed-test
	$(RUN) benchmarks/run.py $(B)

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)
	$(CXX) -std=c++20 -fsyntax-only -Wno-psabi -DTD_X86 csrc/cpu/*avx512*.cpp

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

typecheck: $(VENV)/.installed-dev
	$(RUN) -m pyright --pythonpath $(RUN)

cuda-check:
	.ci/cuda-check

clean:
	rm -rf $(VENV) build dist demo *.egg-info taylorderiv/*.so .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone: whatever is installed later is compiled against it and must not replace it.
$(TORCH_STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "taylorderiv needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.torch-* $(VENV)/.installed-*
	$(PIP) $(TORCH)
	$(PIP) 'setuptools>=77' wheel ninja 'pybind11>=2.13'
	touch $@

# The objects stay in build/, so an install after a change recompiles only what changed.
$(VENV)/.installed-%: $(TORCH_STAMP) $(SOURCES)
	@echo 'Installing taylorderiv[$*]; the first time this compiles its kernels, for some minutes.'
	$(PIP) --no-build-isolation --editable '.[$*]'
	touch $@
