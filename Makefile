# Every command a person or CI needs. `make demo` and `make test` set up what they need themselves.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
TASK ?=
CORPUS ?=

.PHONY: help setup demo test check bench-gateway bench-quality bench-retrieval bench-studies bench-training lock clean

help:
	@echo "make demo   start the embedded stack, train a classifier, show what it gains (TASK=, CORPUS= for your own data)"
	@echo "make test   the whole test suite"
	@echo "make check  lint and types"
	@echo "make bench-gateway    what the gateway's claims rest on, as JSON lines (BENCH=submit: one part alone)"
	@echo "make bench-retrieval  what the retriever's claims rest on, as JSON lines (BENCH=--three-million: the long one too)"
	@echo "make bench-training   what the training engine's claims rest on, as JSON lines"
	@echo "make bench-studies    how fast the BiLSTM trains and predicts, as JSON lines"
	@echo "make bench-quality    what trained models are worth, all studies too; many hours, and goes on where it was stopped"
	@echo "make lock   pin the requirements anew"

setup: .venv/ready

.venv/ready: requirements-dev.txt pyproject.toml
	@echo "setting up .venv (once; a few minutes with a slow connection)"
	@$(BIN)/python -c 'import pip' 2> /dev/null || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r <(sed -n '/^uv==/,/^[a-z]/{/^uv==/p;/--hash/p}' requirements-dev.txt | sed '$$ s/ *\\$$//')
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@$(BIN)/python -m tlm_client.demo $(if $(TASK),--task "$(TASK)") $(if $(CORPUS),--corpus "$(CORPUS)")

test: setup
	@$(BIN)/python -m pytest -q

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench-gateway: setup
	@$(BIN)/python -m benchmarks.gateway $(BENCH)

bench-retrieval: setup
	@$(BIN)/python -m benchmarks.retrieval $(BENCH)

bench-training: setup
	@$(BIN)/python -m benchmarks.training

bench-studies: setup
	@$(BIN)/python -m benchmarks.studies

bench-quality: setup
	@$(BIN)/python -m benchmarks.quality.tasks sciie acl_arc
	@$(BIN)/python -m benchmarks.quality.selectors sciie acl_arc sci_cite
	@$(BIN)/python -m benchmarks.quality.ablations sciie
	@$(BIN)/python -m benchmarks.quality.time_to_quality sciie sci_cite
	@$(BIN)/python -m benchmarks.quality.pretrained sciie
	@$(BIN)/python -m benchmarks.quality.studies curve csabstruct sci_cite --minilm
	@$(BIN)/python -m benchmarks.quality.studies curve sources --lstm 1x128
	@$(BIN)/python -m benchmarks.quality.studies prune sciie sci_cite csabstruct
	@$(BIN)/python -m benchmarks.quality.studies prune sciie sci_cite csabstruct --minilm
	@$(BIN)/python -m benchmarks.quality.studies share sciie acl_arc sci_cite csabstruct

lock:
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt

clean:
	rm -rf build .venv
