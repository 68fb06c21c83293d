# Each target makes what it needs: a virtual environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
OUT ?= demo
SEARCH_ROUNDS ?= 4

.PHONY: demo test search soak mutate check clean

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[demo,dev,nir,interop]"
	$(BIN)/python -m pip install --quiet --no-deps spikingjelly==2.0.0 neurobench==2.3.0
	touch $(STAMP)

demo: $(STAMP)  ## train, prune, remove, export, verify, compare: about 9 minutes on 2 cores
	$(BIN)/soul-deploy demo --output $(OUT)

test: $(STAMP)  ## all tests, the same draws at every run; then the kernel tests once more without compilation
	$(BIN)/python -m pytest -q -n 2 --dist loadfile
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/runtime/kernels/test_kernels.py tests/runtime/kernels/test_merging.py

search: $(STAMP)  ## property tests and the fuzzer on new draws, SEARCH_ROUNDS times (4: an hour)
	for round in $$(seq $(SEARCH_ROUNDS)); do \
	    HYPOTHESIS_PROFILE=new $(BIN)/python -m pytest -q -n 2 --dist loadfile \
	        -m "hypothesis and not soak" tests && \
	    FUZZ_SEED=$$(date +%s) $(BIN)/python -m pytest -q -s tests/base/test_fuzz.py || exit 1; \
	done

soak: $(STAMP)  ## hours: damaged files and random networks by the thousand (docs/reliability.md)
	$(BIN)/python -m pytest -q -s -m soak tests

mutate: $(STAMP)  ## how many of 60 small faults in MODULE its TESTS (if given) see; again: goes on
	$(BIN)/python -m pip install --quiet -e ".[mutate]"
	$(BIN)/python benchmarks/mutate.py $(MODULE) $(if $(TESTS),--tests $(TESTS))

check: $(STAMP)  ## formatting, lint, types, the floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info demo
