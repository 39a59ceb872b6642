# The commands for developers and CI. Each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
TASK ?=
CORPUS ?=
PROSE := README.md CONTRIBUTING.md CHANGELOG.md docs Makefile deploy benchmarks services tlm_client tlm_core tools

.PHONY: help setup demo test chaos chaos-bugs chaos-times soak check client evidence evidence-runs bench-gateway bench-gpu bench-quality bench-retrieval bench-studies bench-training lock clean test-gpu

help:
	@echo "make demo   start the local stack, train a classifier and compare it with baselines (TASK=, CORPUS=: your data)"
	@echo "make test   run all tests, except those that need a GPU"
	@echo "make chaos  break running processes at random, and check what clients saw (JOBS=, FAULTS=, SEED=, BUG=)"
	@echo "make chaos-bugs  plant each bug of docs/reliability.md, and fail unless the checker reports what it causes"
	@echo "make chaos-times  measure how soon the service notices faults and continues, and fail if a goal is missed"
	@echo "make soak   run mixed jobs for two hours (SECONDS=), and check that nothing grows"
	@echo "make test-gpu  run the tests that need a GPU"
	@echo "make check  check style, types, deployment files and documentation"
	@echo "make client generate the synchronous client from the asyncio client"
	@echo "make bench-gateway    measure the gateway, as JSON lines (BENCH=submit: one benchmark)"
	@echo "make bench-retrieval  measure retrieval, as JSON lines (BENCH=--three-million: add the long benchmark)"
	@echo "make bench-training   measure training, as JSON lines"
	@echo "make bench-gpu        measure training on a GPU, as JSON lines; without a GPU, they have the reason instead"
	@echo "make bench-studies    measure the BiLSTM's training and prediction speed, as JSON lines"
	@echo "make bench-quality    measure the quality of trained models and run all studies; takes many hours, resumes"
	@echo "make evidence      write the table of results from the records of the runs"
	@echo "make evidence-runs train the models that the records lack; takes many hours, resumes"
	@echo "make lock   update the pinned requirements"

setup: .venv/ready

.venv/ready: requirements-dev.txt pyproject.toml
	@$(eval START := $(shell date +%s))echo "Set-up: downloads 3.3 GB into .venv, mostly PyTorch and CUDA, and needs 6.5 GB of disk. At 100 Mbit/s it takes 5 minutes."
	@echo "Set-up, step 1 of 3: create .venv and install the installer uv"
	@$(BIN)/python -c 'import pip' 2> /dev/null || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r <(sed -n '/^uv==/,/^[a-z]/{/^uv==/p;/--hash/p}' requirements-dev.txt | sed '$$ s/ *\\$$//')
	@# Bytecode halves the time of imports, and each job starts several processes. sed removes the line of each package.
	@echo "Set-up, step 2 of 3: download and install the packages, and compile their bytecode"
	@set -o pipefail; $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements-dev.txt 2>&1 | sed -u '/^ [-+~] /d'
	@echo "Set-up, step 3 of 3: install this project"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
	@took=$$(($$(date +%s) - $(START))); printf 'Set-up took %d:%02d (minutes:seconds).\n' $$((took / 60)) $$((took % 60))

demo: setup
	@$(BIN)/python -m tlm_client.demo $(if $(TASK),--task "$(TASK)") $(if $(CORPUS),--corpus "$(CORPUS)")

test: setup
	@$(BIN)/python -m pytest -q --numprocesses 3 --dist loadscope --no-loadscope-reorder

chaos: setup
	@$(BIN)/python -m tests.chaos $(if $(JOBS),--jobs $(JOBS)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(SEED),--seed $(SEED)) $(if $(BUG),--bug $(BUG))
	@$(if $(BUG),:,$(BIN)/python -m tests.chaos --ray --jobs 50 --clients 8 --faults 30 --wait 3.5 $(if $(SEED),--seed $(SEED)))
	@$(if $(BUG),:,$(BIN)/python -m tests.chaos.streams)
	@$(if $(BUG),:,$(BIN)/python -m tests.chaos.resume --all)
	@$(if $(BUG),:,$(BIN)/python -m tests.chaos.resume --all --ray)

chaos-bugs: setup
	@$(BIN)/python -m tests.chaos --bugs

chaos-times: setup
	@$(BIN)/python -m tests.chaos.times

soak: setup
	@$(BIN)/python -m tests.chaos.soak $(SECONDS)

test-gpu: setup
	@$(BIN)/python -m pytest -q -m cuda tests/unit/training/test_cuda.py

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell $(PROSE)
	@$(BIN)/python -m tools.check_words
	@$(BIN)/python -m tools.code_figures
	@$(BIN)/python -m pytest -q tests/checks

client: setup
	@$(BIN)/python -m tools.generate_client

bench-gateway: setup
	@$(BIN)/python -m benchmarks.gateway $(BENCH)

bench-retrieval: setup
	@$(BIN)/python -m benchmarks.retrieval $(BENCH)

bench-training: setup
	@$(BIN)/python -m benchmarks.training

bench-gpu: setup
	@$(BIN)/python -m benchmarks.training gpu

bench-studies: setup
	@$(BIN)/python -m benchmarks.training bilstm

bench-quality: setup
	@$(BIN)/python -m benchmarks.quality.tasks sciie acl_arc
	@$(BIN)/python -m benchmarks.quality.selectors sciie acl_arc sci_cite
	@$(BIN)/python -m benchmarks.quality.ablations sciie
	@$(BIN)/python -m benchmarks.quality.time_to_quality sciie sci_cite
	@$(BIN)/python -m benchmarks.quality.suspects sci_cite csabstruct
	@$(BIN)/python -m benchmarks.quality.own_texts sci_cite:732 csabstruct:1133
	@$(BIN)/python -m benchmarks.quality.studies curve csabstruct sci_cite --minilm
	@$(BIN)/python -m benchmarks.quality.studies curve sources --lstm 1x128
	@$(BIN)/python -m benchmarks.quality.studies prune sciie sci_cite csabstruct
	@$(BIN)/python -m benchmarks.quality.studies prune sciie sci_cite csabstruct --minilm
	@$(BIN)/python -m benchmarks.quality.studies share sciie acl_arc sci_cite csabstruct

evidence: setup
	@$(BIN)/python -m benchmarks.quality.evidence table

evidence-runs: setup
	@$(BIN)/python -m benchmarks.quality.evidence run
	@$(BIN)/python -m benchmarks.quality.evidence splits

lock:
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra service pyproject.toml -o requirements.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra service --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt

clean:
	rm -rf build .venv
