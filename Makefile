PYTHON ?= python3.11
UV ?= uv
# Asked for torch's CPU build alone, and only where pip's own settings do not lead to it: slow when it cannot be reached.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
MODEL ?= smollm2-135m-instruct

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
INPUTS := $(wildcard requirements/*.txt) requirements/vllm-shim/pyproject.toml requirements/editable_hook.py \
	pyproject.toml harness/lmeval/startup.py harness/lmeval/startup.pth

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test torture check fuzz bench docs format lock clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

setup: .venv/.installed ## make .venv with the pinned packages, and the embedded model (3 to 5 minutes, 5 GB; GPU: 10)
	@echo "setup 4/4: the model $(MODEL) (30 s, once)"
	@$(BIN)/stance models get $(MODEL)

demo: setup ## one small experiment end to end: reports/demo
	$(BIN)/stance run experiments/demo.yaml --out reports/demo

test: setup ## run the tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

torture: setup ## kill the demo's steps at 200 random points, carry them on, compare: build/torture.json (21 minutes)
	$(BIN)/python tests/torture

bench: setup ## every benchmark, peers beside ours in one run: tables, and benchmarks/results/*.json
	@for script in $(filter-out benchmarks/common.py benchmarks/gpu.py,$(sort $(wildcard benchmarks/*.py))); do \
		echo "$$script" && HF_HUB_OFFLINE=1 $(BIN)/python $$script || exit 1; done

check: .venv/.installed ## lint, formatting, types, and known vulnerabilities of the locked packages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/python requirements/audit.py

fuzz: .venv/.installed ## 10,000 damaged inputs of every format that is read: a table, and build/fuzz (25 minutes)
	$(BIN)/python tests/fuzz/run.py $(FUZZ)

docs: .venv/.installed ## the documentation as a site: build/docs/index.html
	@$(PIP) install --no-deps -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/.installed ## put imports and formatting right
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

lock: ## resolve requirements/*.in again, keeping pins that still fit (needs uv)
	cd requirements && $(UV) pip compile cpu.in --override exclude.txt -o cpu.txt $(LOCK)
	cd requirements && $(UV) pip compile gpu.in -o gpu.txt $(LOCK)
LOCK := --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock"

clean: ## remove .venv, caches and builds; reports and models stay
	rm -rf .venv dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@command -v "$(PYTHON)" >/dev/null || { echo >&2 "There is no '$(PYTHON)' here. Install Python 3.11 or 3.12," \
		"or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { echo >&2 \
		"'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), expected 3.11 or 3.12; name one: make PYTHON=/path/to/python3.12" \
		"$(MAKECMDGOALS)"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo >&2 "'$(PYTHON)' has no venv or ensurepip module." \
		"On Debian and Ubuntu: apt install $$("$(PYTHON)" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
		exit 1; }
	@echo "setup 1/4: .venv (10 s)"
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; exit 1; }

.venv/.installed: $(INPUTS) | .venv/bin/python
	@rm -f $@
	@if nvidia-smi >/dev/null 2>&1; then \
		echo "setup 2/4: a GPU: torch, vLLM and the rest of requirements/gpu.txt (5 to 10 minutes)" && \
		$(PIP) install --no-deps -r requirements/gpu.txt; \
	else \
		echo "setup 2/4: no GPU: torch for the CPU, then requirements/cpu.txt with vLLM (2 to 4 minutes)" && \
		{ $(PIP) install --no-deps -r requirements/torch-cpu.txt 2>/dev/null || $(PIP) install --no-deps \
			--retries 1 --extra-index-url $(TORCH_CPU_INDEX) -r requirements/torch-cpu.txt; } && \
		$(PIP) install --no-deps -r requirements/cpu.txt && \
		$(PIP) install --no-deps --no-build-isolation ./requirements/vllm-shim; \
	fi
	@echo "setup 3/4: this checkout, editable (5 s)"
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
