# Both `make demo` and `make test` set up everything they need in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# Tests may leave types of fixtures out and reach into modules of torch, which are Tensor | Module to mypy; a call whose
# signature moved is an error there, too.
TESTS_ARE_LOOSER := --allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls --implicit-reexport \
	--no-warn-return-any --no-warn-unused-ignores --namespace-packages --explicit-package-bases \
	$(foreach code,union-attr index operator func-returns-value,--disable-error-code=$(code))

# By its name the package is found from its own folder.
LINKED := .types/dptr

.PHONY: demo test lint types check site notebook clean

demo: $(READY)
	$(BIN)/dptr demo

# Two at a time, each on one thread: the tensors are tiny, and more threads would only wait for each other.
test: $(READY) $(LINKED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) $(LINKED)
	$(BIN)/mypy -m dptr -m dptr.cli -p dptr.cache -p dptr.pipeline -p dptr.trainer
	$(BIN)/mypy benchmarks/*.py
	$(BIN)/mypy examples/*.py
	$(BIN)/mypy examples/reader/*.py
	$(BIN)/mypy examples/ablations/*.py
	$(BIN)/mypy examples/train_clip/*.py
	$(BIN)/mypy docs/*.py
	$(BIN)/mypy $(TESTS_ARE_LOOSER) tests

check: lint types test

# build/site/index.html; nothing on it is fetched from elsewhere.
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# examples/notebook.ipynb, run from top to bottom and kept with what its cells gave.
notebook: $(READY)
	$(BIN)/python examples/execute_notebook.py

$(LINKED):
	mkdir -p .types && ln -sfn .. $@

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,export,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .types build dist *.egg-info
