# the oldest first: it is the one that every change is tested with
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do python$$v -c "" 2>/dev/null && command -v python$$v && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

PIP := $(BIN)/python -m pip install -c constraints.txt

.PHONY: install demo test test-fast test-full lint house docs

install: $(STAMP)

# A build of torchvision that does not fit torch breaks transformers and timm, which do without it.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { \
	    echo "vtx-scale needs Python 3.11, 3.12 or 3.13: install one, or say make PYTHON=/path/to/it."; exit 2; }
	@echo "Installing into $(VENV)/, once, in two or three minutes: torch, then vtx-scale and what it is tested with."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(PIP) torch==2.13.0
	$(PIP) -e '.[demo,dev,interop]'
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip uninstall -q -y torchvision
	@touch $(STAMP)

demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/vtx demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

# While working: what starts no training, Ray or more than two ranks.
test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow"

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
	$(BIN)/python tests/house.py --mypy --write

docs: $(STAMP)
	$(BIN)/mkdocs build -q
