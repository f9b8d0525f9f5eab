# Two commands do everything on a fresh machine: `make repro` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV = $(shell command -v uv || echo $(BIN)/uv)
# of one thread each, one more than two cores, as some tests wait; a fourth costs more imports than it saves
CORES = $(shell getconf _NPROCESSORS_ONLN)
WORKERS ?= 3
# compiled code is kept, whatever the surroundings say: without, each worker compiles all tests anew; hydra's
# plugin, which no test uses, takes half a second of each
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -p no:hydra_pytest -n $(WORKERS)
# what is compiled ahead are all modules of the packages but these: never imported, or by few tests
NEVER_IMPORTED = tests? testing _inductor _vendor/quack asyncssh celery Cython databricks distlib fontTools \
  google/(auth|oauth2) gunicorn huggingface_hub/(cli|inference) hypothesis identify mlflow/(demo|langchain) mypyc? narwhals \
  numba/cuda numpy/distutils onnx onnx_ir onnxruntime onnxscript openvino optuna/visualization pip \
  playwright/async_api pre_commit prompt_toolkit pyasn1(_modules)? pydantic_settings pygments \
  ray/(experimental|llm|rllib|serve|tune/examples) scipy setuptools sklearn skops \
  sympy/(holonomic|physics|stats|vector) tensorboardX timm/optim torch/ao/(ns|pruning|quantization/fx) \
  torch/distributed/(optim|pipelining) torchgen torchmetrics transformers virtualenv
SPACE := $(subst ,, )
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true

.PHONY: help setup repro test test-fast lint types unit gpu clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(READY)  ## make .venv with the versions of constraints.txt; nothing to do when it is current

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: kiloseg needs Python 3.11 or newer, found $$($(PYTHON) --version); try make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --group dev --editable .
	@$(BIN)/python -m compileall -qq -j 0 -x '/($(subst $(SPACE),|,$(NEVER_IMPORTED)))/' $(VENV)/lib || true
	@$(BIN)/python -m pipeline.report.plots_page
	@touch $@

repro: setup  ## run the whole pipeline on the embedded dataset
	@git rev-parse --git-dir >/dev/null 2>&1 || \
		{ echo "error: DVC works in a git repository: install git, and clone kiloseg or run git init in it" >&2; exit 2; }
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro

test: lint  ## everything that must hold before a pull request: lint, types, all tests
	@$(BIN)/mypy & types=$$!; $(PYTEST); unit=$$?; wait $$types && exit $$unit

test-fast: lint  ## the inner loop: lint, and the tests that start no process and train nothing
	KILOSEG_FAST=1 $(PYTEST) -n $(CORES) -m "not process and not training and not slow"

lint: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy
	$(BIN)/mypy

unit: setup  ## pytest
	$(PYTEST)

GPU_PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))
gpu:  ## on one GPU, 9 minutes: kernels' tests and benchmarks; needs torch, triton, timm, typer, numpy, pytest only
	$(GPU_PYTHON) -m benchmarks.gpu

clean:  ## remove what runs have made; the environment stays
	rm -rf data checkpoints evaluations results mlflow.db mlartifacts mlflow-unsent dvc_plots
