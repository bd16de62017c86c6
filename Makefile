# Two commands are all a newcomer needs: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
QUICKSTART ?= runs/quickstart

.PHONY: help quickstart test lint test-minimum gpu-check clean

help: ## Show these targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: hf_ssl needs Python 3.11 to 3.13, got $$($(PYTHON) --version). Name another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing hf_ssl and what it needs into $(VENV) (PyTorch is several GB: some minutes) ..."
	$(RUN) -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install --quiet --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed ## Install, pretrain a small encoder, evaluate and export it, show how to load it.
	$(VENV)/bin/hf-ssl pretrain --method directpred --recipe quickstart --dataset shapes \
		--output_dir $(QUICKSTART) --resume auto
	$(VENV)/bin/hf-ssl evaluate $(QUICKSTART) --dataset shapes --label_column all --baselines raw random

test: $(VENV)/.installed-dev ## Install what the tests need and run them.
	$(RUN) -m pytest -n auto --dist worksteal

# Without --pythonpath, pyright looks for the packages in whatever Python is first on PATH.
lint: $(VENV)/.installed-dev ## Check style and types.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(RUN)

test-minimum: ## Run the tests with the lowest versions that pyproject.toml allows, in an environment of their own.
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet --upgrade pip
	.venv-minimum/bin/python -m pip install --quiet --editable '.[dev]' --constraint .ci/minimum-versions.txt
	.venv-minimum/bin/python -m pytest -n auto --dist worksteal

# With the Python and the PyTorch of the machine: nothing is installed but wheels that are given.
gpu-check: ## Test and measure on a GPU in 8 minutes: make gpu-check GPU_CHECK="--dataset data/cifar10 --wheels wheels"
	$(PYTHON) scripts/gpu_check.py $(GPU_CHECK)

clean: ## Remove the environments; runs/ stays.
	rm -rf .venv .venv-minimum
