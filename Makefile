# `make demo` and `make test` do all the set-up they need. One thread unless told otherwise: torch's default on a small
# shared machine can be thirty times slower.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGE ?=
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test attack check format clean

demo: $(VENV)/installed
	$(BIN)/rsmoe caption $(if $(IMAGE),"$(IMAGE)",--demo)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The whole attack corpus (docs/security.md); `make test` runs its short part.
attack: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/attack -m "" --durations 5

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
