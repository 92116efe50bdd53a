# make demo       the whole job on built-in data, one table at the end
# make test       the test suite
# make test-long  the tests that it leaves out: slow ones, and the same over more backbones
# make lint       style and types
# make docs       the documentation of every module as HTML, in runs/docs
# make test-gpu   what only a GPU shows, in eight minutes; skipped where there is none
# make test-slurm studies in a SLURM of one node that it sets up, a quarter of an hour; skipped where slurm-wlm is not installed
# make bench      what runs cost here, beside straightforward implementations; results in runs/bench
# make bench-gpu  the same on a GPU, in nine minutes; skipped where there is none
# make faults     runs that are killed, starved of room and fed nonsense, twenty minutes of it
# make clean      removes .venv and all that these made; other runs and data stay
#
# Each but the last sets up .venv first, once, with the first Python of 3.11 or newer that is there, or with
#     make demo PYTHON=/path/to/python
# On Linux PyPI's torch brings CUDA's libraries, several gigabytes; without a GPU a much smaller one does:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The tests of a GPU and of faults, and the benchmarks, take an interpreter that has all they need, without a .venv:
#     make test-gpu INTERPRETER=python3

PYTHONS := python3.13 python3.12 python3.11 python3 python
PYTHON ?= $(firstword $(foreach each,$(PYTHONS),$(if $(call unfit,$(each)),,$(each))))
BIN := .venv/bin
READY := .venv/.ready

# What keeps a Python from making .venv; nothing if it can.
CHECK := import sys; from importlib.util import find_spec as find; \
	print("older than 3.11" if sys.version_info < (3, 11) else "" if find("venv") and find("ensurepip") else \
	"without its venv module (on Debian and Ubuntu: apt install python3-venv)")
unfit = $(shell $(1) -c '$(CHECK)' 2>/dev/null || echo not there)

# Named by the user, it finds the checkout as an installed package would be found.
INTERPRETER ?=
SETUP := $(if $(INTERPRETER),,$(READY))
RUN := PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(or $(INTERPRETER),$(BIN)/python)

.PHONY: demo test test-long test-gpu test-slurm bench bench-gpu faults lint docs clean

demo: $(READY)
	$(BIN)/python scripts/quickstart.py

# Two at a time, each on a core of its own.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-long: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long --numprocesses 2 --dist worksteal

# pytest leaves with 5 where all of it is skipped.
test-gpu: $(SETUP)
	$(RUN) -m pytest tests/gpu -ra --tb=short --junitxml "$${TRANSREC_GPU_REPORT:-runs/gpu}/tests.xml" || [ $$? = 5 ]

test-slurm: $(SETUP)
	$(RUN) -m pytest tests/slurm -m long -ra --tb=short || [ $$? = 5 ]

bench: $(SETUP)
	$(RUN) benchmarks/bench.py --device cpu

bench-gpu: $(SETUP)
	$(RUN) benchmarks/bench.py --device cuda --out "$${TRANSREC_GPU_REPORT:-runs/bench}"

faults: $(SETUP)
	$(RUN) tests/faults/campaign.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python scripts/api_docs.py --out runs/docs

# The first line looks once, for all that follow. Python compiles the modules that it imports; pip would compile all.
$(READY): requirements.txt setup.py
	$(eval PYTHON := $(PYTHON))
	$(if $(PYTHON),,$(error no Python that can be used: $(foreach each,$(PYTHONS),$(each) is $(call unfit,$(each)),) \
		install Python 3.11 or newer, or name one with PYTHON=/path/to/python))
	$(if $(call unfit,$(PYTHON)),$(error $(PYTHON) is $(call unfit,$(PYTHON)); \
		name another Python with PYTHON=/path/to/python))
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --no-compile --index-url $(TORCH_INDEX) $$(grep '^torch' requirements.txt))
	$(BIN)/python -m pip install --no-compile --editable '.[test]'
	touch $@

clean:
	rm -rf .venv transrec.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -rf runs/quickstart runs/gpu runs/bench runs/faults runs/docs Dataset/demo pretrained_models/demo-bert pretrained_models/demo-vit
	find transrec tests -name __pycache__ -prune -exec rm -rf {} +
	@rmdir runs 2>/dev/null || true
