# make quickstart: virtual environment, install, the whole pipeline.   make test: virtual environment, install, tests.
PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 5
BIN := $(VENV)/bin

.PHONY: install quickstart test lint lock clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/llmlab quickstart --minutes $(MINUTES)

test: install
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: install
	{ echo "# Exact versions, used as pip constraints. Renew with: make lock"; \
	  $(BIN)/pip freeze --exclude-editable | grep -v smollm2 | sed 's/+cpu//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
