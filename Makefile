# make demo   the whole job on built-in data, one table at the end
# make test   the whole test suite
# make lint   style
# Each sets up .venv first, once.

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/python scripts/quickstart.py

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): requirements.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[test]'
	touch $@

clean:
	rm -rf .venv runs Dataset/demo pretrained_models/demo-bert
