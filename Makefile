# Every target sets up what it needs; a second call finds it done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup up down demo test test-long test-integration check fmt build serve clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh tests/node/package-lock.json
	PYTHON="$(PYTHON)" bash scripts/setup.sh "$(VENV)"
	touch $@

demo: setup
	$(BIN)/curvewatch demo

# The service with a Prometheus and an Alertmanager of its own; PORTS="8421 9091 9094" chooses others.
up: setup
	$(BIN)/python scripts/stack.py up $(if $(PORTS),--ports $(PORTS))

down:
	$(BIN)/python scripts/stack.py down

# Three at a time on two cores: many tests wait for processes that they start. A file's tests stay together, with its
# fixtures.
JOBS ?= 3
test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# What takes minutes, most of them waiting: the death of each part of a run and of a node, checkpoints over restarts.
test-long: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --long -m long tests/integration $(ARGS)

test-integration: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder tests/integration tests/e2e

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy service workers dashboards scripts
	$(BIN)/mypy tests examples benchmarks docs/howto
	$(BIN)/lint-imports
	$(BIN)/python -m curvewatch_dashboards.build --check

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: setup
	$(BIN)/python -m curvewatch_dashboards.build

serve: setup
	$(BIN)/curvewatch serve

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache tests/output tests/node/node_modules
