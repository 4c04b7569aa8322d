# Each target sets up what it needs; on a fresh machine all it takes is make and Python 3.11.

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
# One process for all tests of a file: they share what it takes long to start.
PYTEST := $(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadfile

# Nothing is fetched but what the lock names, and no interpreter but the one asked for.
export UV_PYTHON_DOWNLOADS := never
export UV_NO_PROGRESS := 1
# The system's certificates, where it has any: a network may have a CA of its own.
export UV_SYSTEM_CERTS := $(if $(wildcard /etc/ssl/certs/ca-certificates.crt),true,false)

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: run
run: $(STAMP) ## Start the relay; ARGS="--https-port 9443" are passed on
	$(BIN)/relay up $(ARGS)

.PHONY: test
test: lint node ## Check the code, run the unit tests, and show each guarantee once
	$(PYTEST) -m "guarantee or not (system or slow)"

.PHONY: test-unit
test-unit: $(STAMP) ## The unit tests alone
	$(PYTEST) -m "not system" $(ARGS)

# The system tests in groups, each of which runs alone. tools/groups.toml says what is in which.
SYSTEM_GROUPS := test-system test-clients test-peers test-hub test-launchers test-browser

.PHONY: $(SYSTEM_GROUPS)
$(SYSTEM_GROUPS): $(STAMP) node
	$(PYTEST) $$($(BIN)/python -m tools.groups $(@:test-%=%)) $(ARGS)

test-system: ## The relay as a whole: whatever is in no other group
test-clients: ## Clients: JupyterLab's library, Jupyter Server, nbclient, VS Code's requests, …
test-peers: ## Other kernels, proxies and Prometheus, the Autobahn suite, storms of clients
test-hub: ## A real JupyterHub and an OpenID provider
test-launchers: ## Kernels as other OS users (as root)
test-browser: ## JupyterLab and other pages in Chromium

.PHONY: test-docs
test-docs: $(STAMP) ## The examples and links in the documentation
	$(BIN)/python -m tools.lint doc_links guarantees
	$(PYTEST) $$($(BIN)/python -m tools.groups docs) $(ARGS)

.PHONY: coverage
coverage: $(STAMP) ## What the unit tests cover, and its floors; ARGS=--write-floors sets them
	$(PYTEST) -m "not system" --cov --cov-report=
	$(BIN)/python -m tools.coverage $(ARGS)

.PHONY: test-all
test-all: $(STAMP) node ## Run every group, `demo` and `chaos`, and write docs/tests.md
	$(BIN)/python -m tools.whole_run

# Some of the clients that the tests use are JavaScript. The tests install their packages.
.PHONY: node
node:
	@command -v node >/dev/null && command -v npm >/dev/null || { \
	  echo "The tests need node and npm. On Debian: apt-get install -y nodejs npm" >&2; exit 2; }

.PHONY: lint
lint: $(STAMP) ## Check style, types, layers and the rules of tools/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tools.lint

.PHONY: format
format: $(STAMP) ## Put the code into the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: demo
demo: $(STAMP) ## Real notebooks through the relay while its agents are killed
	$(BIN)/python -m tests.system.demo $(ARGS)

.PHONY: chaos
chaos: $(STAMP) node ## Kill every part under every client and count; ARGS="--write" for the docs
	$(BIN)/python -m tests.chaos $(ARGS)

MINUTES ?= 5
.PHONY: soak
soak: $(STAMP) ## Come and go and kill for MINUTES=5, then look for what leaked
	$(BIN)/python -m tests.chaos.soak --minutes $(MINUTES) $(ARGS)

.PHONY: lock
lock: $(STAMP) ## Choose the newest dependencies and write requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra test --output-file requirements.lock --upgrade \
	  --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url
	@! grep -n '://' requirements.lock || { echo "requirements.lock names a host"; exit 1; }

.PHONY: clean
clean: ## Remove the environment, caches and whatever was built
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache \
	  .coverage tests/system/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. pip installs uv, by its hashes in the lock; uv installs the rest.
$(BIN)/uv:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no $(PYTHON). On Debian: apt-get install -y python3 python3-venv" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The relay needs Python 3.11; this is $$($(PYTHON) --version)." \
	    "Another: make PYTHON=python3.12 …" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments." \
	    "On Debian: apt-get install -y python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock

$(STAMP): requirements.lock pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
