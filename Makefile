# Needs git, make and Python 3.10 or newer; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: benchmark test torture lint docs format clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[benchmarks,test]"
	touch $(INSTALLED)

benchmark: $(INSTALLED)
	$(BIN)/python -m benchmarks quickstart --output runs/quickstart

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Kills, flipped bytes, readers against writers, threads: the tests of reliability, at length.
torture: $(INSTALLED)
	BANK_LOADS=10000 $(BIN)/python -m pytest tests/captum_embed tests/benchmarks/runs \
		-k "reader_sees or killed or single_byte or savers or threads or fails_leaves or interrupt" $(ARGS)

# The site, into docs/_build/html. Its notebooks run; a warning is an error.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs
