# Every target works on a machine with Python 3.11 or later, pip and make: the first one run makes .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := test
.PHONY: demo test test-all coverage lint docs bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: export OMP_NUM_THREADS = 2
demo: $(READY)
	$(BIN)/hoplon demo --out hoplon-demo

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m "slow or not slow"

coverage: $(READY)
	$(PYTEST) --cov=hoplon --cov=hoplon_studies --cov-branch --cov-report=term:skip-covered

docs: $(READY)
	$(BIN)/python docs/api_index.py
	$(BIN)/python docs/picture.py

# The injectors that benchmarks compare with are older than the torch tested here, so they come without dependencies.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt pytorchfi mrfi pyyaml
	@set -e; for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" --quick; done

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis hoplon-demo
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
