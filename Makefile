# Commands for people; CI calls the same ones.
.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' Makefile)

PYTHON ?= python3
RUN := .venv/bin/python
TEST := $(RUN) -m pytest
# One torch thread per process: two that share two cores with a neighbour run ten times slower.
export OMP_NUM_THREADS ?= 1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' Makefile

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON) is not Python 3.11 to 3.13; run for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	@echo "creating the environment in .venv: this takes minutes the first time"
	$(RUN) -m uv pip install --quiet --compile-bytecode --python .venv/bin/python --requirement requirements.lock
	$(RUN) -m uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	@touch $@

setup: .venv/.ready ## create the environment in .venv from requirements.lock

data: .venv/.ready data.dvc
	$(RUN) -m dvc pull --quiet
	@touch data

demo: .venv/.ready data ## train, deploy and query a model on the bundled data (KEEP=1: leave the server running)
	@$(RUN) -m polarmask_pipelines demo

test: .venv/.ready data ## run all tests but the slow ones in two processes: real TorchServe, real S3, no network
	$(TEST) --numprocesses 2 --dist loadfile

test-fast: .venv/.ready data ## run the tests that start no process and train nothing: about 2 minutes
	$(TEST) --numprocesses 2 --dist loadfile -m fast

test-model: .venv/.ready data ## run the tests of model/
	$(TEST) tests/model

test-serving: .venv/.ready data ## run the tests of serving/
	$(TEST) tests/serving

test-components: .venv/.ready data ## run the tests of components/ and k8s/
	$(TEST) tests/components tests/k8s

test-pipelines: .venv/.ready data ## run the tests of pipelines/
	$(TEST) tests/pipelines

test-slow: .venv/.ready data ## run the tests that take minutes
	$(TEST) -m slow

test-faults: .venv/.ready ## break a cluster on purpose, once for each fault of docs/reference/faults.md
	$(TEST) -m faults

test-fuzz: .venv/.ready data ## send ten thousand damaged images and requests to a real server (FUZZ=300: fewer)
	$(TEST) -m fuzz -s

test-load: .venv/.ready ## three minutes of load on a pod whose worker and Java are killed
	$(TEST) -m slow -s tests/e2e/test_load.py

test-browser: .venv/.ready ## test the page at /demo in a real Chromium (Debian: chromium-headless-shell)
	$(TEST) -m browser

test-gpu: .venv/.ready ## run the tests that need CUDA
	$(TEST) -m gpu

test-images: .venv/.ready ## build and run the container images with Docker: takes minutes and 20 GB of disk
	$(TEST) -m images

bench: .venv/.ready data ## run all benchmarks, or some (BENCH="rays feed"), and write their results
	$(RUN) benchmarks/run.py $(BENCH)

bench-quick: .venv/.ready data ## run every benchmark briefly; only wrong results fail
	$(RUN) benchmarks/run.py --quick $(BENCH)

check: .venv/.ready ## check formatting, lint, types and import rules
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	.venv/bin/lint-imports --no-cache

fix: .venv/.ready ## format the code and fix what ruff can fix
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

compile: .venv/.ready ## compile the pipeline for a cluster to pipelines/compiled
	$(RUN) -m polarmask_pipelines compile

reference: .venv/.ready ## write the generated pages of docs/reference, and openapi.json
	$(RUN) docs/generate.py
	$(RUN) -m polarmask_serving.proxy.openapi > docs/reference/openapi.json

render: ## render the manifests of k8s/overlays to dist/k8s
	@command -v kubectl >/dev/null || { echo "install kubectl: it renders k8s/overlays"; exit 1; }
	@mkdir -p dist/k8s
	for overlay in kind gpu; do kubectl kustomize k8s/overlays/$$overlay --output dist/k8s/$$overlay.yaml || exit 1; done

images: ## build the container images with Docker (settings: images/README.md)
	@images/build.sh

lock: .venv/.ready ## upgrade requirements.lock to the newest versions that pyproject.toml allows
	$(RUN) -m uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	  --no-emit-index-url --no-annotate --no-header --upgrade --quiet --output-file requirements.lock

clean: ## stop the server of the runs; remove the environment, caches and runs
	@[ ! -d runs/shared/server ] || [ ! -x $(RUN) ] || $(RUN) -m polarmask_pipelines stop runs/shared/server
	rm -rf .venv runs dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
