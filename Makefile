# Everything runs in .venv, made from constraints.txt; nothing else is touched. What tests and CI run
# on is installed only if its hash is the one in .ci/hashes.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test errors lint hashes licences clean

demo: $(VENV)/demo.stamp
	$(BIN)/blockfold demo -o blockfold-demo.onnx

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

# All tests, and a list of the errors that none of them provokes.
errors: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --every-error

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(VENV)/src $(BIN)/mypy

# To be made again whenever constraints.txt or setup.cfg's requirements change.
hashes: | $(BIN)/python
	$(BIN)/python -m pip install --quiet packaging --constraint constraints.txt
	$(BIN)/python .ci/hashes.py

licences: $(VENV)/dev.stamp
	$(BIN)/python .ci/licences.py

# The demo needs no torch; the tests do.
$(VENV)/demo.stamp: setup.cfg constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	touch $@

$(VENV)/dev.stamp: setup.cfg constraints.txt .ci/hashes.txt .ci/hashes-torch.txt | $(BIN)/python
	$(BIN)/python .ci/hashes.py --check
	$(BIN)/python -m pip download --quiet --no-deps --dest $(VENV)/torch --constraint constraints.txt torch
	$(BIN)/python .ci/hashes.py --compare $(VENV)/torch
	$(BIN)/python -m pip install --quiet --no-deps $(VENV)/torch/*
	rm -r $(VENV)/torch
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement .ci/hashes.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]' --constraint constraints.txt
	mkdir -p $(VENV)/src
	ln -sfn ../.. $(VENV)/src/blockfold
	touch $@ $(VENV)/demo.stamp

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info blockfold-demo.*
