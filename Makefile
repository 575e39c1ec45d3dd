# `make` alone lists what there is.
PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/.ready
TOOLS  := .tools
ARGS   ?=

VERSION    := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' job/__init__.py)
BASE_IMAGE ?= python:3.11-slim-bookworm
IMAGE      := job:$(VERSION)-cpu
IMAGE_CUDA := job:$(VERSION)-cuda
BUILD      := docker build --build-arg BASE_IMAGE=$(BASE_IMAGE)
KUBECTL    ?= kubectl
KUBE       ?= ../shared/docker
REVISION   := $(shell git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow bench lint docs lock image image-cuda image-name run run-gpu shell size sbom \
	smoke test-in-image k8s-validate k8s-smoke clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

setup: $(READY)  ## make .venv/ from the hash-pinned lock

$(READY): requirements/install.py requirements/cpu.txt requirements/cuda.txt requirements/dev.txt
	@$(PYTHON) requirements/install.py $(VENV)

train: $(READY)  ## run the job with job.yaml; ARGS="train.epochs=1" overrides a key
	@$(VENV)/bin/python -m job train $(ARGS)

test: $(READY)  ## run the test suite but for the long campaigns; ARGS="-k name" chooses
	@$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(READY)  ## run the long fault campaigns, hours; FAULTS_SEED=1 FAULTS_SHARE=0.1 for less
	@$(VENV)/bin/python -m pytest -m slow -s tests/faults $(ARGS)

bench: $(READY)  ## measure the training's speed beside other libraries; writes docs/performance.md
	@test -d .venv-peers || { $(PYTHON) requirements/install.py .venv-peers --runtime \
		&& .venv-peers/bin/pip install -q --disable-pip-version-check -r benchmarks/requirements-peers.txt; }
	@$(VENV)/bin/python -m benchmarks.speed $(ARGS)
	@.venv-peers/bin/python -m benchmarks.speed --write

lint: $(READY) $(TOOLS)/.ready  ## ruff, mypy --strict and hadolint
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(TOOLS)/bin/hadolint Dockerfile tests/image/Dockerfile

$(TOOLS)/.ready: requirements/tools.txt
	@$(PYTHON) -m venv --clear $(TOOLS)
	@$(TOOLS)/bin/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

docs: $(READY)  ## write the JSON Schema and docs/configuration.md again
	@$(VENV)/bin/python -m job schema > docs/job.schema.json
	@$(VENV)/bin/python docs/configuration.py

lock: $(READY)  ## resolve the locks again (needs uv)
	@$(VENV)/bin/python requirements/lock.py

image:  ## build the image for the CPU
	$(BUILD) --build-arg VARIANT=cpu --build-arg REVISION=$(REVISION) --tag $(IMAGE) .

image-cuda:  ## build the image for NVIDIA GPUs
	$(BUILD) --build-arg VARIANT=cuda --build-arg REVISION=$(REVISION) --tag $(IMAGE_CUDA) .

image-name:  ## print the CPU image's tag
	@echo $(IMAGE)

# The caller's folder and uid, so that the caller owns what is published.
RUN = @mkdir -p artifacts
RUN += && docker run --rm --user "$$(id -u):$$(id -g)" --volume "$(CURDIR)/artifacts:/artifacts"

run:  ## run the CPU image; publishes under artifacts/
	$(RUN) $(IMAGE) train $(ARGS)

run-gpu:  ## run the CUDA image on all GPUs (needs NVIDIA's container toolkit)
	$(RUN) --gpus all $(IMAGE_CUDA) train $(ARGS)

shell:  ## a shell in the CPU image, with artifacts/ mounted
	$(RUN) --interactive --tty --entrypoint bash $(IMAGE)

size:  ## megabytes of the CPU image by layer; IMAGE=... names another
	@docker history --human=false --no-trunc --format '{{.Size}} {{.CreatedBy}}' $(IMAGE) | awk '\
		$$1 > 0 { bytes = $$1; $$1 = ""; printf "%8.1f MB %s\n", bytes / 1e6, substr($$0, 1, 90); sum += bytes } \
		END { printf "%8.1f MB in all\n", sum / 1e6 }'

sbom:  ## list the CPU image's packages in sbom.cdx.json (CycloneDX)
	$(BUILD) --build-arg VARIANT=cpu --target sbom --output . .

smoke: $(READY)  ## test the built CPU image with real containers
	@$(VENV)/bin/python -m pytest tests/image $(ARGS)

test-in-image: image  ## run the test suite with the image's own packages
	docker build --build-arg IMAGE=$(IMAGE) --tag $(IMAGE)-test --file tests/image/Dockerfile requirements
	docker run --rm --init --network none --hostname test --add-host test:127.0.0.1 \
		--volume "$(CURDIR):/checkout:ro" $(IMAGE)-test $(ARGS)

k8s-validate: $(TOOLS)/.ready  ## check the manifests strictly against Kubernetes 1.30 and the newest
	@command -v $(KUBECTL) >/dev/null || { echo "k8s-validate: there is no $(KUBECTL), which builds the overlays; \
	install it, 1.30 or later, or name it: make k8s-validate KUBECTL=..." >&2; exit 1; }
	@test -f $(KUBE)/kube-validate || { echo "k8s-validate: there is no $(KUBE)/kube-validate, which checks them; \
	name its folder: make k8s-validate KUBE=..." >&2; exit 1; }
	@for overlay in deploy/kubernetes/overlays/*; do \
		built=$$($(KUBECTL) kustomize $$overlay) || exit 1; \
		echo "$$overlay"; \
		echo "$$built" | $(TOOLS)/bin/python $(KUBE)/kube-validate - || exit 1; \
	done

k8s-smoke: $(READY)  ## run the job on a real one-node Kubernetes; its first start builds it, 7 to 15 minutes
	@test -f $(KUBE)/kube-up || { echo "k8s-smoke: there is no $(KUBE)/kube-up, which starts a cluster; \
	name its folder: make k8s-smoke KUBE=..." >&2; exit 1; }
	@kubeconfig=$$($(KUBE)/kube-up) && KUBECONFIG=$$kubeconfig KUBE=$(KUBE) \
		$(VENV)/bin/python -m pytest -m slow -s tests/image/test_cluster.py $(ARGS)

clean:  ## remove .venv/ and caches, never artifacts/
	rm -rf $(VENV) $(TOOLS) .pytest_cache .mypy_cache .ruff_cache .coverage
