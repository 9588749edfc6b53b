# `make` prints the targets. Everything runs in .venv, which the first target makes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/made-in
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
BENCH  := .venv-bench
VDBB   := .venv-vectordbbench
TESTS  ?=
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-long crash damage histories fuzz overload audit check format stubs bench bench-index bench-gpu test-gpu bench-vectordbbench clean FORCE

help: ## Print this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

venv: $(STAMP) ## Make .venv with all three distributions, FAISS for the CPU, and the tools.

# A checkout that was copied elsewhere has environments that point back to the old place.
define moved
ifneq ($$(shell cat $(1) 2>/dev/null),$$(CURDIR))
$(1): FORCE
endif
endef
$(foreach made,$(STAMP) $(BENCH)/made-in $(VDBB)/made-in,$(eval $(call moved,$(made))))

# setuptools comes first and builds are not isolated: an isolated build would fetch whatever version
# of it is newest that day, because pip does not apply constraints there (since 25.3 not even those
# of PIP_CONSTRAINT).
$(STAMP): pyproject.toml server/pyproject.toml clients/python/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vecdb needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "making $(VENV) (once; takes a minute or two)"
	@rm -f $(STAMP)
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "no virtual environment could be made; on Debian and Ubuntu install python3-venv" >&2; \
	  exit 1; }
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e '.[cpu,dev]' -e clients/python -e server
	@printf '%s\n' '$(CURDIR)' > $(STAMP)

demo: $(STAMP) ## The main job on the sample: serve, load, query, update, restart, verify.
	@$(BIN)/python examples/demo.py

# Files are dealt out whole: what a file sets up for all its tests is set up once. The longest come first (tests/dealing.py).
# Processes that tests start take half a second longer without bytecode, which some environments (images of
# containers) do not let Python keep.
# Threads of FAISS that wait for each other must not spin: the other process of tests has no core meanwhile.
# A process that ends is not replaced: its successor would run the test that ended it again, and hang as long.
PYTEST = OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: $(STAMP) ## Run the tests, but for the long ones, in two processes. Some only, in one: make test TESTS=tests/test_cli.py ARGS='-n 0 -k import'
	@$(PYTEST) $(or $(TESTS),-m 'not long') $(ARGS)

test-long: $(STAMP) ## Run the long tests: sweeps over all kinds of index, pretended devices, planted damage, floods, kills, whole benchmarks.
	@$(PYTEST) -m long $(TESTS) $(ARGS)

crash: $(STAMP) ## Kill a writer of every verb again and again: make crash ARGS='--kills 2000 --seed 1'
	@PYTHONPATH=tests $(BIN)/python -m crash $(ARGS)

damage: $(STAMP) ## Damage a database again and again, check and repair it: make damage ARGS='--minutes 10 --seed 1'
	@PYTHONPATH=.:server:clients/python:tests $(BIN)/python tests/damage_campaign.py $(ARGS)

histories: $(STAMP) ## Play and judge histories of concurrent calls. Longer, or again: make histories ARGS='--seconds 600 --seed 7'
	@PYTHONPATH=tests $(BIN)/python tests/history_ways.py $(ARGS)

fuzz: $(STAMP) ## Strange input for the wire and the filters: make fuzz MINUTES=30. SEED=n replays.
	@PYTHONPATH=.:server:clients/python:tests MINUTES=$(MINUTES) SEED=$(SEED) $(BIN)/python tests/fuzzing.py

overload: $(STAMP) ## A minute of three times the calls that can be answered. Longer: make overload SECONDS=300
	VECDB_OVERLOAD_S=$(or $(SECONDS),60) $(BIN)/python -m pytest -q -s tests/test_overload.py -k three

# Strict: without it a package that the index does not know, or an index that is not there, is passed over and the end
# is 0. By the file, not by .venv, as strict takes our own distributions there for packages that nobody knows.
audit: $(STAMP) ## Known faults of the packages in constraints.txt. Without a network: make audit ADVISORIES=advisory-database
	@$(PIP) --no-build-isolation -e '.[audit]'
	$(if $(ADVISORIES),$(BIN)/python tools/advisories.py '$(ADVISORIES)' )$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

check: $(STAMP) ## Format, lint, faults of safety (bandit), types, contract, generated files, house rules.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/bandit -q -r -c pyproject.toml vecdb server/vecdb_server clients/python/vecdb_client tools
	$(BIN)/mypy
	$(BIN)/buf lint proto
	$(BIN)/python tools/generate.py --check
	$(BIN)/python tools/kernels.py --check
	$(BIN)/python tools/dashboard.py --check
	$(BIN)/python -m pytest -q tests/test_house.py

format: $(STAMP) ## Format the code and mend what the linter can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stubs: $(STAMP) ## Make the generated files anew from proto/, vecdb/ and the kernels for GPUs.
	$(BIN)/python tools/generate.py
	$(BIN)/python tools/kernels.py
	$(BIN)/python tools/dashboard.py

# Systems and their versions are those of bench/requirements.txt; hnswlib is compiled, and left out where it cannot be.
$(BENCH)/made-in: bench/requirements.txt pyproject.toml server/pyproject.toml clients/python/pyproject.toml constraints.txt
	@echo "making $(BENCH) (once; takes some minutes)"
	@$(PYTHON) -m venv --clear $(BENCH)
	@$(BENCH)/bin/python -m pip --disable-pip-version-check install -q -r bench/requirements.txt
	@$(BENCH)/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-build-isolation -e . -e clients/python -e server
	@$(BENCH)/bin/python -m pip --disable-pip-version-check install -q --no-deps hnswlib==0.8.0 || \
	  echo "hnswlib could not be compiled and is left out" >&2
	@printf '%s\n' '$(CURDIR)' > $@

bench: $(BENCH)/made-in ## Measure vecdb beside other systems. Smaller: make bench ARGS='--rows 5000 --systems vecdb,chroma'
	$(BENCH)/bin/python -m bench run $(ARGS)

# Its packages do not resolve together with those of .venv-bench.
$(VDBB)/made-in: bench/vectordbbench/requirements.txt pyproject.toml server/pyproject.toml clients/python/pyproject.toml
	@echo "making $(VDBB) (once; takes some minutes)"
	@$(PYTHON) -m venv --clear $(VDBB)
	@$(VDBB)/bin/python -m pip --disable-pip-version-check install -q -r bench/vectordbbench/requirements.txt
	@$(VDBB)/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-build-isolation -e . -e clients/python -e server
	@printf '%s\n' '$(CURDIR)' > $@

bench-vectordbbench: $(VDBB)/made-in ## Measure vecdb by VectorDBBench. Smaller: make bench-vectordbbench ARGS='--dataset clusters --rows 20000'
	$(VDBB)/bin/python -m bench vectordbbench $(ARGS)

bench-index: $(STAMP) ## Measure the index; writes to bench/results. Smaller: make bench-index ARGS='--rows 5000'
	@$(PIP) --no-build-isolation -e '.[cpu,bench]'
	$(BIN)/python -m bench index $(ARGS)

# A card wants a Python with vecdb[gpu] or vecdb[gpu-cuvs], the server, the client and, to measure its limits, torch: PYTHON. What its tests need
# beside is installed there, where it lacks. What pretends one runs
# in .venv, which holds FAISS for the CPU.
DRY := $(strip $(findstring --backend cpu,$(ARGS)) $(findstring --backend=cpu,$(ARGS)) $(findstring stand-in,$(ARGS)))
CARD = $(if $(DRY),$(BIN)/python,$(PYTHON))

bench-gpu: $(if $(DRY),$(STAMP)) ## Measure a card in under 8 minutes. No card: make bench-gpu ARGS='--backend cpu'
	$(CARD) -m bench gpu $(ARGS)

test-gpu: $(if $(DRY),$(STAMP)) ## Run the tests that need a GPU, the long ones too. No GPU: make test-gpu ARGS='--device=stand-in'
	@$(CARD) -c 'import hypothesis, pytest' 2>/dev/null || \
	  $(CARD) -m pip --disable-pip-version-check install -q -c constraints.txt hypothesis pytest
	$(CARD) -m pytest -q $(or $(TESTS),tests) -m gpu $(ARGS)

clean: ## Remove .venv, .venv-bench, .venv-vectordbbench and everything that can be made again.
	rm -rf $(VENV) $(BENCH) $(VDBB) build server/build clients/python/build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name '*.egg-info' -prune -exec rm -rf {} +

FORCE:
