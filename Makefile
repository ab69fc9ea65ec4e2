# make serve    start a server with the demo model on ports 5555, 5556 and 8125 (HTTP)
# make install  install what `make serve` needs, without starting a server
# make check    check formatting, lint rules and types, and whether the files that are built are current
# make format   format the code and apply the linter's safe fixes
# make test     run all tests except those that install large client packages
# make clients  run the tests with third-party clients, including the slow ones; with Node, also those of JavaScript
# make examples run examples/applications and the database of examples/pipelines with all of their data; more than an hour
# make docs     build what docs/ and deploy/ have from the code, and the documentation as a site into site/
# make bench    compare this service with other embedding servers and libraries; an hour, and some GB for the others
# make bench-encode  measure the memory of bert-serving-encode with 5,000,000 lines, and its rate; half an hour
# make neighbours  measure what bad neighbours do to another user; 15 minutes
# make garbage  send a million random messages and 20,000 random connections; some minutes
# make chaos    harm processes of a server in five ways, a minute each, while clients check every reply
# make soak     serve clients for half an hour and check that nothing grows
# make clean    remove what these commands created
#
# PYTHON   the Python interpreter that creates the virtual environment
# VENV     the folder of the virtual environment
# ARGS     more flags for bert-serving-start, for pytest, for benchmarks.arena, or for the scripts in tests/hostile/
# TORCH    what pip installs as torch, with options of pip; the default is the build in your package index
# BERT_SERVING_CLIENTS_CACHE   the folder that keeps the environments of the clients and of the arena's peers
#                              (default: ~/.cache/bert-serving-test-clients)

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
TORCH  ?= torch

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: serve install check format test clients examples docs bench bench-encode neighbours garbage chaos soak clean

serve: $(VENV)/.serve
	$(BIN)/bert-serving-start -http_port 8125 $(ARGS)

install: $(VENV)/.serve

# Model and unit tests run in one process for each core, with one thread each. The tests of a file run in one process,
# and the long files start first. Service tests often wait, so there is one more process than cores. A server computes
# with one thread for each core. Its threads must not spin while they wait, because servers run side by side.
# tests/support/distribution.py says which tests share a process (--dist loadscope), and which start first. Coverage is
# measured without ARGS only, since that of a selection is meaningless. pytest ends with 5 if ARGS select no test.
test: $(VENV)/.test
	@echo "tests: models and units, about 10 minutes on two cores"
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/model tests/unit -n logical --maxprocesses 8 \
		--dist loadfile --no-loadscope-reorder $(if $(ARGS),,--cov) $(ARGS) || [ $$? = 5 ]
	@echo "tests: servers and clients, about 20 minutes on two cores"
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest tests/service tests/hostile tests/clients \
		tests/gpu -n $$(($$(nproc) + 1)) --maxprocesses 5 --dist loadscope --no-loadscope-reorder $(ARGS) || [ $$? = 5 ]

# The empty -m overrides the one in pyproject.toml, which deselects the slow tests.
clients: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/clients -m "" $(ARGS)

examples: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/service/test_applications.py \
		tests/service/test_pipelines.py -m "" $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python docs/build_reference.py --check
	$(BIN)/python docs/build_metrics.py --check
	$(BIN)/python scripts/vendor_page.py --check
	$(BIN)/python deploy/grafana/build_dashboards.py --check

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site needs a server, if only for its search; any one will do, such as that of Python. The variable turns off an
# advertisement.
docs: $(VENV)/.test
	$(BIN)/python docs/build_reference.py
	$(BIN)/python docs/build_metrics.py
	$(BIN)/python deploy/grafana/build_dashboards.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "docs: see them with: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000"

bench: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.arena $(ARGS)
	$(BIN)/python -m benchmarks.broker

bench-encode: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.encode_files $(ARGS)

neighbours garbage soak: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.hostile.$@ $(ARGS)

chaos: $(VENV)/.test
	for how in $(if $(ARGS),"$(ARGS)","--reload" "--signal STOP" "--files 256" "--disk-full" "--clock-jumps"); do \
		HF_HUB_OFFLINE=1 $(BIN)/python -m tests.hostile.chaos $$how || exit 1; done

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

# torch is installed first: TORCH chooses its build, and the later steps keep it.
$(VENV)/.torch: constraints.txt
	@echo "install: packages into $(VENV), a minute or two after their download"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.serve: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[server,demo]'
	touch $@

$(VENV)/.test: $(VENV)/.serve | $(BIN)/prometheus
	$(PIP) -e '.[server,files,demo,docs,otel,ray,examples,train,test]'
	touch $@

# Tests use two programs of Prometheus: promtool checks the format of /metrics, and prometheus scrapes a server. If they
# are not on PATH, they are extracted from Debian's package, which needs no root. If this fails too, the tests that need
# them fail with a message that names the program. On a machine without package lists, the first `download` fails; then
# `update` fetches the lists into $(VENV) for the second one.
$(BIN)/prometheus: | $(VENV)/.torch
	-{ command -v promtool && command -v prometheus; } >/dev/null || { \
		mkdir -p $(VENV)/apt/lists/partial $(VENV)/apt/cache && cd $(VENV)/apt && \
		get="apt-get -qq -o APT::Sandbox::User=" && \
		own="-o Dir::State::Lists=$$PWD/lists -o Dir::Cache=$$PWD/cache" && \
		{ $$get download prometheus || { $$get $$own update && $$get $$own download prometheus; }; } && \
		dpkg-deb -x prometheus_*.deb . && mv usr/bin/promtool usr/bin/prometheus ../bin/ && rm -rf ../apt; \
	}
