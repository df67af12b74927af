# Two commands do everything on a fresh machine (Linux or macOS) with Python 3.11 or later and make:
#   make demo    makes $(VENV), installs, grows a network on real digits and leaves runs/digits
#   make test    the same environment, all tests
# make quick is the unit tests, make check the linter, the formatter and the type checker, make docs the site.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# onnxruntime for CUDA and for the CPU are one package under two names: never both.
RUNTIME ?= $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
# The versions to install: what was tested, or constraints-lowest.txt.
CONSTRAINTS ?= constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS)

.PHONY: demo test quick check docs format clean

demo: $(VENV)/.demo
	$(BIN)/growpipe run digits --out runs/digits

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not distributed"

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# mypy reads an installed copy: the folders of a checkout are a package only once they are installed.
	@# All of build goes, since a module that was deleted would stay in build/lib and be installed again.
	rm -rf build
	$(PIP) --no-deps --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy -p growpipe

docs: $(VENV)/.docs
	rm -rf build
	$(PIP) --no-deps --target build/typed .
	$(BIN)/python docs/site/stage.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.demo: pyproject.toml $(CONSTRAINTS)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[train,$(RUNTIME)]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable '.[train,$(RUNTIME),dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(PIP) --editable '.[train,$(RUNTIME),docs]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
