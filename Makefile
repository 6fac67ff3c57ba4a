# Every target is what a person types; CI calls the same ones.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-faults test-fuzz test-browser test-gpu test-images bench bench-quick check fix compile openapi reference render images lock clean

PYTHON ?= python3
RUN := .venv/bin/python
# One torch thread per process: two that share two cores with a neighbour run ten times slower.
export OMP_NUM_THREADS ?= 1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON) is not Python 3.11 to 3.13; run for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	@echo "making the environment in .venv: some minutes the first time"
	$(RUN) -m uv pip install --quiet --compile-bytecode --python .venv/bin/python --requirement requirements.lock
	$(RUN) -m uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	@touch $@

setup: .venv/.ready ## make the environment in .venv from requirements.lock

data: .venv/.ready data.dvc
	$(RUN) -m dvc pull --quiet
	@touch data

demo: .venv/.ready data ## run the whole pipeline on the bundled data, serve the model, ask it (KEEP=1 leaves it running)
	@$(RUN) -m polarmask_pipelines demo

test: .venv/.ready data ## run all tests in two processes: real TorchServe, real S3, no network
	$(RUN) -m pytest --numprocesses 2 --dist loadfile

test-slow: .venv/.ready data ## run the tests that take minutes
	$(RUN) -m pytest -m slow

test-faults: .venv/.ready ## break a cluster on purpose, some seventy times (docs/reference/faults.md)
	$(RUN) -m pytest -m faults

test-fuzz: .venv/.ready data ## send ten thousand damaged images and requests to a real server, and what schemathesis makes up
	$(RUN) -m pytest -m fuzz -s

test-browser: .venv/.ready ## try the page at /demo in a real Chromium (Debian: chromium-headless-shell)
	$(RUN) -m pytest -m browser

test-gpu: .venv/.ready ## run the tests that need CUDA
	$(RUN) -m pytest -m gpu

test-images: .venv/.ready ## build the container images with Docker and run each: some minutes, 20 GB of disk
	$(RUN) -m pytest -m images

bench: .venv/.ready data ## measure everything anew: benchmarks/results.json and README's table (BENCH="rays feed": these only)
	$(RUN) benchmarks/run.py $(BENCH)

bench-quick: .venv/.ready data ## run every benchmark briefly; fails on wrong results only
	$(RUN) benchmarks/run.py --quick $(BENCH)

check: .venv/.ready ## format, lint, types, import rules
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	.venv/bin/lint-imports --no-cache

fix: .venv/.ready ## format and mend what can be mended
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

compile: .venv/.ready ## write the pipeline for a cluster to pipelines/compiled
	$(RUN) -m polarmask_pipelines compile

openapi: .venv/.ready ## write the HTTP interface as OpenAPI to docs/reference/openapi.json
	$(RUN) -m polarmask_serving.proxy.openapi > docs/reference/openapi.json

reference: .venv/.ready ## write the reference pages that come from the code to docs/reference
	$(RUN) docs/generate.py

render: ## write what `kubectl apply -k` would send to dist/k8s
	@command -v kubectl >/dev/null || { echo "kubectl is not installed; it renders k8s/"; exit 1; }
	@mkdir -p dist/k8s
	for overlay in kind gpu; do kubectl kustomize k8s/overlays/$$overlay --output dist/k8s/$$overlay.yaml || exit 1; done

images: ## build the container images with Docker; images/README.md says what can be set
	@images/build.sh

lock: .venv/.ready ## resolve pyproject.toml anew into requirements.lock
	$(RUN) -m uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	  --no-emit-index-url --no-annotate --no-header --upgrade --quiet --output-file requirements.lock

clean: ## stop the runs' server; remove the environment, caches and runs
	@[ ! -d runs/shared/server ] || [ ! -x $(RUN) ] || $(RUN) -m polarmask_pipelines stop runs/shared/server
	rm -rf .venv runs dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
