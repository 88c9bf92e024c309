# make train | test | test-all | lint | bench | setup. Everything installs itself into .venv; a second call installs nothing.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: train test test-all lint bench setup clean

train: $(VENV)/.train
	$(BIN)/python -m mcd_jax.train --config=configs/mcd_emoji.py --workdir=runs/mcd_emoji
	$(BIN)/python -m mcd_jax.report --workdir=runs/mcd_emoji

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "not full" tests

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m full tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .

bench: $(VENV)/.train
	$(BIN)/python -m mcd_jax.bench.input
	$(BIN)/python -m mcd_jax.bench.step

setup: $(VENV)/.dev

$(VENV)/.train: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .cache
