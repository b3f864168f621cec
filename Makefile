# The two commands of the README do their own set-up: `make quickstart`, `make test`.
PYTHON ?= python3
CONSTRAINTS ?= constraints-cpu.txt
TORCH_INDEX ?=  # a package index for torch alone, such as the one for CPU builds; empty: the default
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: consumers real quickstart test lint types docs bench conformance torture writers bombs fuzz flips clean
INPUTS ?= 20000
FLIPS ?= 2000
ROUNDS ?= 50

$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

quickstart: $(STAMP)
	$(BIN)/python benchmarks/quickstart.py

test: $(STAMP)
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 -m 'not slow'

lint: $(STAMP) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typed && ../../$(BIN)/lint-imports --no-cache --no-logo ../../pyproject.toml

# Where the installed names are also the paths.
types: $(STAMP)
	rm -rf build/typed && mkdir -p build/typed && cp -r koffkit build/typed && cp -r exporters recipes build/typed/koffkit
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml

docs: $(STAMP)
	$(BIN)/python -m mkdocs build --strict --site-dir build/site

conformance: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.parity.table

torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture $(TORTURE)  # TORTURE="--all": hours; "--seed 1 --points 500"

writers: $(STAMP)  # two writers at once on one run, one export and one memory
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture --writers $(ROUNDS)

bombs: $(STAMP)  # what unfolds or never ends, under 3 GB of address space
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bombs

fuzz: $(STAMP)  # make fuzz INPUTS=100000
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run --inputs $(INPUTS)

flips: $(STAMP)  # make flips FLIPS=10000
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.flips --flips $(FLIPS)

# Other software that runs our exports, each in an environment of its own under build/consumers.
consumers: $(STAMP)  # CONSUMERS="--only llama_cpp --real FOLDER"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.consumers --constraints $(CONSTRAINTS) $(if $(strip $(TORCH_INDEX)),--torch-index $(TORCH_INDEX)) $(CONSUMERS)

real: $(STAMP)  # make real CORPUS=folder: history.txt and science.txt
	$(BIN)/python benchmarks/real/prepare.py
	$(BIN)/python benchmarks/real/smoke.py --corpus $(CORPUS)

bench: $(STAMP)  # make bench BENCH="--export FOLDER --model FOLDER"
	$(BIN)/python benchmarks/bench.py $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
