PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: install demo test test-full lint house docs

install: $(STAMP)

# A build of torchvision that does not fit torch breaks transformers and timm, which do without it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo,dev,interop]'
	$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip uninstall -q -y torchvision
	touch $(STAMP)

demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/vtx demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

# The long forms: hours. One of them: make test-full T="tests/promises -k every_step"
T ?= tests
test-full: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --full -m full $(T)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

house: $(STAMP)
	$(BIN)/python tests/house.py --write

docs: $(STAMP)
	$(BIN)/mkdocs build -q
