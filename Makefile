# Tenfold. `make help` lists the targets; the logic lives in `python -m lib`, so that a notebook user can call it too.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
PROFILE ?= cpu
PAPERS ?=
PAPER ?=
NAMES ?=
MODEL ?= qwen2.5-coder-0.5b-instruct
SEED ?=
DRY_RUN ?=
PORT ?= 8888
SEEDS ?= 0 1 2
WORKERS ?= 2
SCHEDULER ?=
COVERAGE ?=

# Memory of large tensors stays with the process between uses (glibc): about a seventh less processor time in training.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

VENV := .venv
PY := $(VENV)/bin/python
RUN := $(PY) -m lib
TEST_ENV := HF_HUB_OFFLINE=1 MPLBACKEND=Agg
STAMP := $(VENV)/.tenfold-installed
SELECT := --profile="$(PROFILE)" --papers="$(PAPERS)"
OPTIONS := $(SELECT) $(if $(SEED),--seed="$(SEED)") $(if $(filter-out 0,$(DRY_RUN)),--dry-run)
PAPER_NAMES := $(patsubst lib/%/paper.toml,%,$(wildcard lib/*/paper.toml))

.PHONY: help env lab assets reproduce $(addprefix reproduce-,$(PAPER_NAMES)) claims doctor record mutants rehearse serve train replies bench sweep replicate new docs test lint format clean clean-cache

help: ## list the targets and variables
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-18s %s\n", $$1, $$2}'
	@printf '  make %-18s %s\n' 'reproduce-<paper>' 'one paper: $(PAPER_NAMES)'
	@printf '\n  variables: PROFILE=smoke|cpu|gpu  PAPERS="lorc …"  SEED=0  DRY_RUN=1  PORT=8888\n'

env: $(STAMP) ## make .venv with the pinned packages
$(STAMP): pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "tenfold: $(PYTHON) is not here: install Python 3.11 to 3.13, or say which one to use: make env PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "tenfold: $(PYTHON) is not Python 3.11, 3.12 or 3.13, for which the packages are pinned: make env PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV) (about 1 GB to fetch, a minute or more) …"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock 'pip>=25.1'
	@$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[all]'
	@touch $@

lab: $(STAMP) ## open JupyterLab on the notebooks
	@echo "What you change and save there is yours to explore; 'make reproduce' takes its values from notebooks/profiles/<profile>.toml."
	$(PY) -m jupyterlab --notebook-dir=notebooks --port=$(PORT) $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_OPTIONS)

assets: $(STAMP) ## bring the models and data (260 MB), or NAMES="qwen2.5-coder-0.5b-instruct …"
	@$(RUN) assets $(NAMES)

reproduce: $(STAMP) ## run all notebooks (or PAPERS="…") and judge their claims
	@$(RUN) reproduce $(OPTIONS)

$(addprefix reproduce-,$(PAPER_NAMES)): reproduce-%:
	@$(MAKE) --no-print-directory reproduce PAPERS=$*

claims: $(STAMP) ## print the verdict table, and write README and claims page anew
	@$(RUN) claims $(SELECT)

doctor: $(STAMP) ## say what is here, what is missing and how to get it
	@$(RUN) doctor

record: $(STAMP) ## record golden results of the smoke profile (clean commits only)
	@$(RUN) record --papers "$(PAPERS)"

mutants: $(STAMP) ## break each core formula once in a copy, and see that its test fails (some minutes)
	@$(RUN) mutants --papers="$(PAPERS)"

rehearse: $(STAMP) ## run the gpu profile's notebooks to their last cell on tiny stand-ins, without a GPU
	@$(RUN) assets
	@$(TEST_ENV) $(RUN) rehearse --papers="$(PAPERS)"

train: $(STAMP) ## make the shipped weights of one paper again: PAPER=multilora (hours; goes on where it stopped)
	@$(RUN) train "$(PAPER)" $(if $(SEED),--seed="$(SEED)")

replies: $(STAMP) ## record again the replies that a notebook replays: PAPER=autoinstruct (MODEL=…, URL=… of an endpoint)
	@$(RUN) replies "$(PAPER)" $(if $(URL),--url="$(URL)") $(if $(filter file,$(origin MODEL)),,--model="$(MODEL)")

serve: $(STAMP) ## an OpenAI-compatible server of a model, on this machine: MODEL=qwen2.5-coder-0.5b-instruct (PORT=8000)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock 'transformers[serving]'
	@$(RUN) serve "$(MODEL)" --port=$(if $(filter file,$(origin PORT)),8000,$(PORT))

bench: $(STAMP) ## measure the methods against their peers, in turn
	@$(RUN) bench $(SELECT)

sweep: $(STAMP) ## papers x SEEDS="0 1 2" on WORKERS=2 local processes, or on the Dask SCHEDULER=address
	@$(RUN) sweep $(SELECT) --seeds="$(SEEDS)" --workers="$(WORKERS)" --scheduler="$(SCHEDULER)"

replicate: $(STAMP) ## judge the claims (or those of PAPERS="…") again: SEED=1, INSTRUCTIONS=avx512, avx2 or native
	@$(RUN) replicate $(SELECT) $(if $(SEED),--seed="$(SEED)") $(if $(INSTRUCTIONS),--instructions="$(INSTRUCTIONS)")

new: $(STAMP) ## write the first files of a new paper: PAPER=name
	@$(RUN) new "$(PAPER)"

docs: $(STAMP) ## build the site in build/site from the results, offline
	@$(RUN) docs

test: $(STAMP) lint ## lint, unit tests, and every notebook in the smoke profile (COVERAGE=1 measures, in nearly twice the time)
	@$(RUN) assets
	$(TEST_ENV) OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal -m "not alone" $(if $(filter-out 0,$(COVERAGE)),--cov --cov-report=) --durations=30 --durations-min=5 $(TEST_OPTIONS)
	$(TEST_ENV) $(PY) -m pytest -m alone $(TEST_OPTIONS)

lint: $(STAMP) ## ruff, import contracts, types
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports --no-cache
	@$(VENV)/bin/basedpyright --level error --threads 2

format: $(STAMP) ## format the sources and notebooks
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

clean: ## remove what runs leave outside git (results of other profiles, failed notebooks)
	rm -rf figures/smoke figures/gpu figures/rehearsal figures/interactive figures/*/.*.running figures/*/*.failed.ipynb .pytest_cache .ruff_cache

clean-cache: ## remove cached stages and converted models (they are computed again)
	rm -rf data/cache
