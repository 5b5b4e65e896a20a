# Every target makes the virtual environment that it needs.  GPU machines: make TORCH= demo
PYTHON ?= python3.11
TORCH ?= -c constraints-cpu.txt
VENV ?= .venv
WORKERS ?= 2
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ok

.PHONY: help setup demo test test-long test-s3 chaos lint fuzz bench bench-rd bench-dataset bench-peers clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints-cpu.txt
	@echo "Creating $(VENV) with every dependency (1.7 GB, about two minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --upgrade pip
	@$(PY) -m pip install --quiet $(TORCH) -e '.[dev,eval,perceptual]'
	@touch $@

setup: $(STAMP)  ## create the virtual environment

demo: $(STAMP)  ## encode the example shards, verify, decode, and write demo/index.html
	@$(PY) -m examples.demo

# A file stays on one worker, for its fixtures; in their order, so that the clusters are begun first.
PYTEST = $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(STAMP)  ## run the tests (WORKERS=2)
	@$(PYTEST)

test-long: $(STAMP)  ## what takes longer: the real demo, many examples a property, Ray Train
	@$(PYTEST) --maxfail=1 --hypothesis-profile=long -m '(long or words or hypothesis) and not chaos'

test-s3: $(STAMP)  ## run the tests against a real S3 server (needs Ceph's RADOS Gateway)
	@$(PY) -m pytest -m s3

chaos: $(STAMP)  ## the long forms of the fault tests (over an hour)
	@$(PY) -m pytest -m chaos

lint: $(STAMP)  ## ruff and mypy
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

fuzz: $(STAMP)  ## mutate compressed files for five minutes
	@$(PY) -m tests.fuzz_bitstream --minutes 5

bench: $(STAMP)  ## speed of the job against its parts alone; engines and forms of the entropy model
	@$(PY) -m benchmarks.encode
	@$(PY) -m benchmarks.prior

bench-rd: $(STAMP)  ## rate-distortion beside JPEG, WebP, AVIF, JXL and published curves: KODAK=folder
	@$(PY) -m pqmim eval $(KODAK) --published default --output build/rd
	@$(PY) -m pqmim eval $(KODAK) --rates

bench-dataset: $(STAMP)  ## reading codes for training, beside the usual layouts
	@$(PY) -m benchmarks.dataset

bench-peers: $(STAMP)  ## our job beside Ray Data, Daft, a clip-retrieval-style loop, a LlamaGen-style script
	@$(PY) -m benchmarks.peers

clean:  ## remove the environment and everything that was produced
	rm -rf $(VENV) demo .run build *.egg-info
