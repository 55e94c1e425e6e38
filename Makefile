SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= 3.11
VENV := .venv
BIN := $(VENV)/bin
# uv does not byte-compile what it installs, and a first import would then take half a minute.
export UV_COMPILE_BYTECODE := 1
# Links to uv's cache instead of copies: the packages take their 7 GB once.
export UV_LINK_MODE ?= hardlink
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)

.PHONY: help setup demo test test-slurm golden test-minimal check docs bench lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

# Everything the other targets need, from the lock file; a changed lock or pyproject installs what is new.
# On Linux PyTorch brings CUDA (6 GB) even where there is no GPU: its packages for the CPU alone have the version "+cpu",
# which only PyTorch's own index holds, and the lock file has the hashes of the packages on PyPI.
$(BIN)/.ready: pyproject.toml requirements.lock $(filter .uv/bin/uv,$(UV))
	@echo "installing into $(VENV) (some gigabytes, a minute or more)"
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(BIN)/.ready  ## install into .venv everything that the other targets need
	@$(BIN)/dafw --version
	@echo "to use it in this shell: . $(BIN)/activate"

demo: $(BIN)/.ready  ## train the demo's table (7 to 15 minutes on two cores) and print it
	@$(BIN)/dafw table run digits --root runs
	@echo "to use dafw in this shell: . $(BIN)/activate"

test: $(BIN)/.ready  ## run all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slurm: $(BIN)/.ready  ## run a table on a SLURM cluster of one node (root; Debian's slurm-wlm and munge)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slurm tests/slurm $(ARGS)

golden: $(BIN)/.ready  ## run the tests that compare with reference vectors (those in DAFW_GOLDEN, or in tests/golden)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m golden $(ARGS)

# The oldest versions that pyproject.toml allows, in an environment of their own.
.venv-minimal/.ready: pyproject.toml $(filter .uv/bin/uv,$(UV))
	@echo "installing the oldest supported versions into .venv-minimal (some gigabytes)"
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv-minimal
	@$(UV) pip install --quiet --python .venv-minimal/bin/python --resolution lowest-direct --group minimal --editable '.[weights,slurm,tune]'
	@touch $@

MINIMAL := tests/oldest_versions.py tests/test_lightning_adapter.py tests/data/test_batch.py tests/data/test_sampler.py \
  tests/nn/test_norm.py tests/nn/test_network.py tests/problems/test_classification.py \
  tests/datamodules/test_digits.py::test_any_size

test-minimal: .venv-minimal/.ready  ## run a few dozen tests with the oldest supported versions
	@OMP_NUM_THREADS=1 .venv-minimal/bin/python -m pytest -q -p no:cacheprovider $(MINIMAL) $(ARGS)

check: $(BIN)/.ready  ## lint, format, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(BIN)/.ready  ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(BIN)/.ready  ## measure speed against hand-written loops (keep the machine quiet)
	@OMP_NUM_THREADS=1 $(BIN)/python experiments/benchmarks/run.py

lock: $(filter .uv/bin/uv,$(UV))  ## resolve the newest versions into requirements.lock
	@$(UV) pip compile --quiet --upgrade --universal --python-version $(PYTHON) --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --all-extras --group dev --group docs pyproject.toml -o requirements.lock

clean:  ## remove what the targets made, except runs/
	rm -rf $(VENV) .venv-minimal .uv site dist .pytest_cache .mypy_cache .ruff_cache
