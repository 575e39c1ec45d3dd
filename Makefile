# `make` alone lists what there is.
PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/.ready
ARGS   ?=

VERSION    := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' job/__init__.py)
BASE_IMAGE ?= python:3.11-slim-bookworm
IMAGE      := job:$(VERSION)-cpu
IMAGE_CUDA := job:$(VERSION)-cuda
REVISION   := $(shell git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup train test lint lock image image-cuda image-name run smoke clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(READY)  ## make .venv/ from the hash-pinned lock

$(READY): requirements/install.py requirements/cpu.txt requirements/cuda.txt requirements/dev.txt
	@$(PYTHON) requirements/install.py $(VENV)
	@touch $@

train: $(READY)  ## run the job with job.yaml; ARGS="train.epochs=1" overrides a key
	@$(VENV)/bin/python -m job train $(ARGS)

test: $(READY)  ## run the whole test suite; ARGS="-k name" chooses
	@$(VENV)/bin/python -m pytest $(ARGS)

lint: $(READY)  ## ruff and mypy --strict
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

lock: $(READY)  ## resolve the locks again (needs uv)
	@$(VENV)/bin/python requirements/lock.py

image:  ## build the image for the CPU
	docker build --build-arg VARIANT=cpu --build-arg BASE_IMAGE=$(BASE_IMAGE) \
		--build-arg REVISION=$(REVISION) --tag $(IMAGE) .

image-cuda:  ## build the image for NVIDIA GPUs
	docker build --build-arg VARIANT=cuda --build-arg BASE_IMAGE=$(BASE_IMAGE) \
		--build-arg REVISION=$(REVISION) --tag $(IMAGE_CUDA) .

image-name:  ## print the CPU image's tag
	@echo $(IMAGE)

run:  ## run the CPU image; publishes under artifacts/
	@mkdir -p artifacts
	docker run --rm --user "$$(id -u):$$(id -g)" --volume "$(CURDIR)/artifacts:/artifacts" $(IMAGE) train $(ARGS)

smoke: $(READY)  ## test the built CPU image with real containers
	@$(VENV)/bin/python -m pytest tests/image $(ARGS)

clean:  ## remove .venv/ and caches, never artifacts/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage
