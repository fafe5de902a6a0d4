# AGMM: `make demo` and `make test` do all the set-up they need, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# FFCV compiles against these; its own wish for opencv-python is met by the headless build
APT := build-essential python3-dev python3-venv libopencv-dev libturbojpeg0-dev pkg-config
FFCV := ffcv==1.0.2 fastargs assertpy terminaltables pytorch-pfn-extras
# its own wish for audio libraries and data sets is of no use to its metrics
NEUROBENCH := neurobench

.PHONY: help setup test chaos cluster-test test-peers lint demo clean

help:
	@echo "make demo   train a binary spiking ResNet on Fashion-MNIST through the whole stack (about six minutes)"
	@echo "make test   linters, types, import contract and all tests but the long ones"
	@echo "make chaos  the long tests: kills, damage, faults and losses, again and again (about an hour)"
	@echo "make cluster-test  three hosts in network namespaces, of which one loses its line in the middle of a run (root, Linux)"
	@echo "make test-peers  neurons against SpikingJelly and snnTorch, which are downloaded into a folder of the test's own"
	@echo "make setup  system packages, virtual environment, pinned dependencies"
	@echo "make clean  remove the environment and local results"

setup: $(VENV)/.ready

$(VENV)/.system:
	@mkdir -p $(VENV)
	@pkg-config --exists opencv4 libturbojpeg 2>/dev/null || pkg-config --exists opencv libturbojpeg 2>/dev/null \
	  || { echo "installing system packages: $(APT)"; $(SUDO) apt-get update -qq \
	       && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(APT) >/dev/null; }
	@touch $@

$(VENV)/.ready: pyproject.toml constraints.txt $(wildcard agmm/packed/native/* agmm/kernels/native/*) | $(VENV)/.system
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned Python packages (two minutes the first time)"
	@rm -f agmm/*/_kernels*.so pipelines/data/_pixels*.so # where one does not compile, pip is silent and an old one would stay
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[service,dev]' numba
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps $(FFCV) $(NEUROBENCH)
	@$(BIN)/python -c "import sys; from agmm.kernels import native as fused; from agmm.packed import native; sys.exit(native.why_not() or fused.why_not() or None)"
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What starts Ray or services has processes enough of its own; the rest takes two, file by file.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not ray and not s3"
	$(BIN)/python -m pytest -m "not slow and (ray or s3)"

chaos: setup
	$(BIN)/python -m pytest -m slow

cluster-test: setup
	$(BIN)/python -m pytest -m cluster -s tests/integration/test_hosts.py

test-peers: setup
	AGMM_TEST_PEERS=1 $(BIN)/python -m pytest -m peers tests/agmm

demo: setup
	$(BIN)/python -m pipelines.demo

clean:
	rm -rf $(VENV) .agmm build dist *.egg-info
