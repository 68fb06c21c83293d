# Each target makes what it needs: a virtual environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
OUT ?= demo
SEARCH_ROUNDS ?= 4

FLOOR := .venv-floor
PYTHONS ?= python3.12 python3.13
# The ways through the product, in a few minutes; what they need to run.
FAST := tests/cli/test_smoke.py tests/runtime/test_runtime_without_torch.py \
    "tests/cli/test_output.py::test_what_an_encoding_lacks_is_shown_in_ascii[cp1252]" \
    tests/runtime/test_container.py tests/runtime/kernels/test_kernelcache.py
FAST_NEEDS := "pytest>=8" "hypothesis==6.170.17"

.PHONY: demo demo-events test search soak networks check docs wheels floor pythons mutate clean

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[demo,dev,nir,interop]"
	$(BIN)/python -m pip install --quiet --no-deps spikingjelly==2.0.0 neurobench==2.3.0
	touch $(STAMP)

demo: $(STAMP)  ## train, prune, remove, export, verify, compare: about 12 minutes on 2 cores
	$(BIN)/soul-deploy demo --output $(OUT)
	@echo "The command is $(BIN)/soul-deploy; after '. $(BIN)/activate' it is soul-deploy."

demo-events: $(STAMP)  ## the same on frames of events of a camera
	$(BIN)/soul-deploy demo --events --output $(OUT)-events

test: $(STAMP)  ## all tests, the same draws at every run; then the kernel tests once more without compilation
	$(BIN)/python -m pytest -q -n 2 --dist loadfile
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/runtime/kernels/test_kernels.py tests/runtime/kernels/test_merging.py tests/runtime/kernels/test_bit_planes.py tests/runtime/kernels/test_program.py

search: $(STAMP)  ## property tests and the fuzzer on new draws, SEARCH_ROUNDS times (4: an hour)
	for round in $$(seq $(SEARCH_ROUNDS)); do \
	    HYPOTHESIS_PROFILE=new $(BIN)/python -m pytest -q -n 2 --dist loadfile \
	        -m "hypothesis and not soak" tests && \
	    FUZZ_SEED=$$(date +%s) $(BIN)/python -m pytest -q -s tests/base/test_fuzz.py || exit 1; \
	done

soak: $(STAMP)  ## hours: damaged files and random networks by the thousand (docs/reliability.md)
	$(BIN)/python -m pytest -q -s -m soak tests

networks: $(STAMP)  ## docs/networks.md: other tools' networks, each tool in an environment of its own (.venv-networks)
	$(BIN)/python tests/networks/make_table.py

mutate: $(STAMP)  ## how many of 60 small faults in MODULE its TESTS (if given) see; again: goes on
	$(BIN)/python -m pip install --quiet -e ".[mutate]"
	$(BIN)/python benchmarks/mutate.py $(MODULE) $(if $(TESTS),--tests $(TESTS))

check: $(STAMP)  ## formatting, lint, types, the floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)  ## the site in build/site; a link that leads nowhere is an error
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheels: $(STAMP)  ## source distributions and wheels of soul-deploy and soul-deploy-runtime in dist/
	rm -rf dist build/runtime
	$(BIN)/python .ci/runtime_tree.py build/runtime
	$(BIN)/python -m build --no-isolation --outdir dist . > build/log
	$(BIN)/python -m build --no-isolation --outdir dist build/runtime > build/log
	$(BIN)/twine check --strict dist/*

floor:  ## exactly the minimum versions that setup.cfg promises, and the fast tests on them
	rm -rf $(FLOOR)
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python .ci/floor.py nir report > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --quiet --no-compile -c $(FLOOR)/constraints.txt -e ".[nir,report]" $(FAST_NEEDS)
	$(FLOOR)/bin/python -m pytest -q $(FAST)

pythons:  ## the newest versions on PYTHONS that are installed here, and the fast tests on them
	for python in $(PYTHONS); do \
	    if ! $$python -c "" 2>/dev/null; then echo "$$python is not here: not tried"; continue; fi; \
	    rm -rf .venv-other && $$python -m venv .venv-other && \
	    .venv-other/bin/python -m pip install --quiet --no-compile -e ".[nir,report]" $(FAST_NEEDS) && \
	    .venv-other/bin/python -m pytest -q $(FAST) || exit 1; \
	done

clean:
	rm -rf $(VENV) $(FLOOR) .venv-other build dist *.egg-info demo
