# Needs git, make and Python 3.10 or newer; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: benchmark test torture mutants lint docs format clean

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

# The tests of reliability at length: counts in docs/reliability.md.
torture: $(INSTALLED)
	BANK_LOADS=10000 BANK_FLIPS=6204 EXCEPTION_EVERY=1 MAPS=5000 THREAD_CALLS=60 \
		RUN_KILLS=28 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest tests/captum_embed tests/benchmarks/runs tests/benchmarks/commands \
		-k "reader_sees or killed or single_byte or savers or threads or fails_leaves or interrupt \
		or no_trace or stays_flat" $(ARGS)

# Mutation testing of a drawn sample; what was tried is kept in runs/mutants.
mutants: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[mutants]"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation $(ARGS)

# The site, into docs/_build/html. Its notebooks run; a warning is an error.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs
