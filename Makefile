# The oldest that runs: every change is tested with it. A shim of pyenv may lead to none.
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do python$$v -c "" 2>/dev/null && command -v python$$v && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
SERVICES := $(VENV)/.services

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt

.PHONY: install demo test test-fast test-full test-services lint house docs

install: $(STAMP)

# A build of torchvision that does not fit torch breaks transformers and timm, which do without it.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { \
	    echo "vtx-scale needs Python 3.11, 3.12 or 3.13: install one, or say make PYTHON=/path/to/it."; exit 2; }
	@echo "Installing into $(VENV)/, once, in a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip
	@echo "1 of 2: torch 2.13.0 and what it needs, the largest part by far"
	$(PIP) torch==2.13.0
	@echo "2 of 2: vtx-scale and what it is tested with: ray, transformers, timm, open_clip"
	$(PIP) -e '.[cluster,demo,dev,interop,s3]'
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip uninstall -q -y torchvision
	@touch $(STAMP)

demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/vtx demo

# All but the long forms and the services, under fifteen minutes on two cores.
test: $(STAMP)
	$(PYTEST) -m "not services"

# While working, under three minutes on two cores: units, data, parity with other libraries, and the
# commands where they only show or refuse. Nothing that is marked slow: trainings, kills, Ray, builds
# and installations, more than two ranks.
test-fast: $(STAMP)
	$(PYTEST) -m "not slow and not services"

# What needs more than an installation has: DeepSpeed, fairscale, an S3 server, PyAV and onnxruntime,
# which come from the extras, and jpegtran (apt-get install libjpeg-turbo-progs), without which its tests are
# skipped.
# Under twelve minutes.
test-services: $(SERVICES)
	$(PYTEST) -m services

$(SERVICES): $(STAMP)
	@echo "Installing DeepSpeed, fairscale, SeaweedFS, PyAV, pyarrow, datasets and onnxruntime into $(VENV)/, once"
	$(PIP) -q -e '.[deepspeed,fairscale,huggingface,onnx,parquet,services,video]'
	@touch $@

# The long forms: hours. One of them: make test-full T="tests/promises -k every_step"
T ?= tests
test-full: $(STAMP)
	$(PYTEST) --full -m full $(T)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin  # what Linux alone has is guarded
	$(BIN)/lint-imports

house: $(STAMP)
	$(BIN)/python tests/house.py --mypy --write --check

docs: $(STAMP)
	$(BIN)/mkdocs build -q
