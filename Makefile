# make quickstart: virtual environment, install, the whole pipeline.   make test: virtual environment, install, lint, types, tests.
# make check: lint, types and the fast tests.   make docs: the pages of docs/ as a site.
PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 5
BIN := $(VENV)/bin
# a file stays in one worker, for what its tests share; long files are begun first (tests/conftest.py)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install quickstart check static test lint lock docs clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/llmlab quickstart --minutes $(MINUTES)

# what can be asked before every commit; the tests that take a second or more are left out
check: install
	$(MAKE) --no-print-directory static
	$(PYTEST) -m "not slow"

static: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

test: install
	$(MAKE) --no-print-directory static
	$(PYTEST)

lint: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: install
	{ echo "# Exact versions, used as pip constraints. Renew with: make lock"; \
	  $(BIN)/pip freeze --exclude-editable | grep -v smollm2 | sed 's/+cpu//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

# the pages of docs/ as a site
docs: install
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

clean:
	rm -rf $(VENV) build docs/_build *.egg-info
