# Two commands do all the set-up on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-stock-feast lint bench bench-data bench-features \
  bench-training soak-control soak-data soak-features soak-training clean lock

install: $(STAMP)

# The stamp is written last: an install that was killed half way is done again.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make $@ PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	# The lock names every package, so nothing is resolved. Modules are compiled by all cores at once; without
	# that, where PYTHONDONTWRITEBYTECODE is set, every process would compile what it imports. What does not
	# compile is of another Python and imported by none.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile -r requirements.lock
	-@$(BIN)/python -m compileall -q -q -j 0 $(VENV)/lib
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: install
	@$(BIN)/manta demo .

# tests/project is run in a copy of the project, by tests/integration/platform.
test: lint
	$(BIN)/pytest --numprocesses 2 --no-loadscope-reorder --ignore tests/project

test-stock-feast: install # a Feast of its own, without manta, reads through the look-up door
	MANTA_STOCK_FEAST=venv $(BIN)/pytest tests/integration/features/test_stock_client.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m tests.benchmarks

soak-control: install # SOAK="--kills 10 --parts server --seed 1" for less
	$(BIN)/python -m tests.soak.control $(SOAK)

soak-data: install # SOAK="--kills 5 --lanes files --seed 1" for less
	$(BIN)/python -m tests.soak.data $(SOAK)

soak-features: install # SOAK="--kills 5 --stores sqlite --seed 1" for less
	$(BIN)/python -m tests.soak.features $(SOAK)

bench-data: install # MANTA_BENCH_MB=100 for less
	$(BIN)/python -m tests.benchmarks data

bench-training: install # MANTA_BENCH_ROWS=100000 MANTA_BENCH_ROUNDS=1 for less
	$(BIN)/python -m tests.benchmarks training training_trees

soak-training: install # SOAK="--kills 5 --seed 1" for less
	$(BIN)/python -m tests.soak.training $(SOAK)

bench-features: install # MANTA_BENCH_KEYS=20000 MANTA_BENCH_LARGE=0 for less
	$(BIN)/python -m tests.benchmarks features_join features_write features_read features_http

lock: install
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --all-extras --allow-unsafe --strip-extras --no-annotate --no-header \
	  --no-emit-find-links --no-emit-index-url --no-emit-options -o requirements.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock # the public version: a local build is no one else's

clean:
	@if [ -x $(BIN)/manta ]; then $(BIN)/manta down; fi
	rm -rf $(VENV) .manta build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
