# Everything runs in .venv, installed from requirements/ on first use. PYTHON picks the interpreter that it is made with.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

# The server needs PyTorch only for an NVIDIA GPU. EXTRA=gpu or EXTRA=core decides otherwise, for instance gpu for a Mac's GPU.
EXTRA ?= $(shell { nvidia-smi -L || ldconfig -p | grep -q libcuda.so.1; } > /dev/null 2>&1 && echo gpu || echo core)

# The image: TARGET is cuda or cpu; DOCKER any program with its command line (podman, buildah).
TARGET ?= cuda
DOCKER ?= docker

.PHONY: serve train test screenshots check docs image lock clean

serve: .venv/installed-$(EXTRA)
	$(BIN)/python -m app serve $(ARGS)

train: .venv/installed-train
	$(BIN)/python -m app train $(ARGS)

# Two processes, each with whole test files, because the servers that a file's tests share take seconds to start.
test: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

screenshots: .venv/installed-test
	$(BIN)/python benchmarks/screenshots.py $(ARGS)

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The site of docs/, in build/site. mkdocs-material has an environment of its own, because nothing else needs it.
docs:
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/pip install --quiet "mkdocs-material>=9.6,<10"
	.venv/docs/bin/mkdocs build --strict

image:
	$(DOCKER) build --target $(TARGET) --tag oddigit:$(TARGET) $(ARGS) --build-arg REVISION=$$(git rev-parse HEAD) \
		--build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) .

clean:
	rm -rf .venv model_store/*/.checkpoints build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Each environment contains the ones before it, so that one .venv grows from core to test: they are all locked to the same versions.
core_contents := the server with ONNX Runtime, 260 MB
gpu_contents := the server with PyTorch and CUDA, 5.7 GB
train_contents := the server and the trainer with PyTorch and CUDA, 6.0 GB
test_contents := the server, the trainer and the test tools, 6.3 GB
core_installs := core
gpu_installs := core gpu
train_installs := core gpu train
test_installs := core gpu train test
# To compile 6 GB takes 40 s, and tests import a small part of it. A server may be started by a user who cannot write into .venv.
test_options := --no-compile

# Another program may install the packages; CI uses a faster one.
INSTALL ?= $(BIN)/pip install

.venv/installed-%: requirements/%.txt pyproject.toml
	@echo "Installing $($*_contents), into .venv"
	$(PYTHON) -m venv .venv
	$(INSTALL) $($*_options) --require-hashes --requirement requirements/$*.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(patsubst %,.venv/installed-%,$($*_installs))

# One resolution for everything first; the smaller files then take its versions. --universal: for all platforms and Python versions.
lock: LOCK = .venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-annotate --custom-compile-command "make lock" pyproject.toml requirements/build.in
lock: ARGS = --upgrade
lock:
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip install --quiet --upgrade uv
	$(LOCK) --extra test --constraint requirements/constraints.txt $(ARGS) --output-file requirements/test.txt
	$(LOCK) --constraint requirements/test.txt --upgrade --output-file requirements/core.txt
	$(LOCK) --extra gpu --constraint requirements/test.txt --upgrade --output-file requirements/gpu.txt
	$(LOCK) --extra train --constraint requirements/test.txt --upgrade --output-file requirements/train.txt
