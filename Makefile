# make serve    a server with the demo model on ports 5555, 5556 and 8125 (HTTP)
# make test     all tests but the slow clients'
# make clients  the tests with other people's clients, each in an environment of its own, the slow ones too
# make check    format, lint, types     make bench    the benchmarks
# make clean    remove what these made
#
# PYTHON   the interpreter to start from            VENV   where the virtual environment goes
# ARGS     more flags for bert-serving-start, or for pytest
# TORCH    what to install as torch, with pip's options; the default is your index' own build
# BERT_SERVING_CLIENTS_CACHE   where the clients' environments stay (default: ~/.cache/bert-serving-test-clients)

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
TORCH  ?= torch

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: serve install test clients check bench clean

serve: $(VENV)/.serve
	$(BIN)/bert-serving-start -http_port 8125 $(ARGS)

install: $(VENV)/.serve

# pytest runs one process for each core. Unit and model tests compute with one thread each. A server computes with
# one thread for each core; its threads must not spin while they wait, because servers run side by side.
# tests/support/distribution.py says which tests share a process (--dist loadscope). pytest ends with 5 if ARGS
# select no test. Coverage is measured without ARGS only: that of a selection says nothing.
test: $(VENV)/.test
	@echo "tests: unit and model, about 2 minutes on two cores"
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/model \
		-n logical --maxprocesses 8 $(if $(ARGS),,--cov) $(ARGS) || [ $$? = 5 ]
	@echo "tests: servers and clients, about 4 minutes on two cores"
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest tests/service tests/clients tests/gpu \
		-n logical --maxprocesses 4 --dist loadscope $(ARGS) || [ $$? = 5 ]

# An empty -m takes back pyproject.toml's, which leaves out the slow ones.
clients: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/clients -m "" $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.encoder
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.encoder --shape base --texts 256
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.roofline --shape minilm
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.service $(ARGS)
	$(BIN)/python -m benchmarks.gateway

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

# torch goes first and alone: its build is chosen here, and what follows keeps it.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.serve: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[server,demo]'
	touch $@

$(VENV)/.test: $(VENV)/.serve | $(BIN)/promtool
	$(PIP) -e '.[server,demo,test]'
	touch $@

# Prometheus' checker of /metrics, out of Debian's package and without root. Elsewhere it is looked for on PATH;
# where it is missing, its test says so. The second try is for a machine that has no package lists yet.
$(BIN)/promtool: | $(VENV)/.torch
	-command -v promtool >/dev/null || { \
		mkdir -p $(VENV)/apt/lists/partial $(VENV)/apt/cache && cd $(VENV)/apt && \
		get="apt-get -qq -o APT::Sandbox::User=" && \
		own="-o Dir::State::Lists=$$PWD/lists -o Dir::Cache=$$PWD/cache" && \
		{ $$get download prometheus || { $$get $$own update && $$get $$own download prometheus; }; } && \
		dpkg-deb -x prometheus_*.deb . && mv usr/bin/promtool ../bin/ && rm -rf ../apt; \
	}
