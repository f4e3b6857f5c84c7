# What a newcomer types: `make serve`, `make check`, `make test`.
#   make serve MODEL=path/or/hub-id ARGS="--tp 2" HTTP_PORT=8000
#   TORCH= another version, TORCH_INDEX= the package index of another build of it.
PYTHON ?= python3
TORCH ?= torch>=2.11
# A build for CUDA brings its own Triton. For the CPU's kernels are interpreted, by the version tests know.
TRITON ?= triton==3.6.0
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check
# Without a GPU the CPU's build of torch, which is a tenth in size, where its index can be reached.
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_FOR_CPU = $(PIP) '$(TORCH)' --index-url $(CPU_INDEX) --timeout 10 --retries 1 2>/dev/null
HTTP_PORT ?= 8000
# Tests start many processes, which start in less time when what they import has been compiled.
unexport PYTHONDONTWRITEBYTECODE
PROTOS := $(wildcard proto/switchyard/*/*.proto proto/switchyard/*/*/*.proto)

.PHONY: serve check test lint soak fuzz bench protos

# Without a MODEL, the demo on what this machine has: one GPU, two GPUs, or two ranks on the CPU.
ARGS ?= $(if $(MODEL),,$(if $(filter 1,$(GPUS)),--tp 1,--tp 2))

serve: .venv/installed
	$(BIN)/switchyard serve $(MODEL) --http-port $(HTTP_PORT) $(ARGS)

# While working: what starts no process and interprets no kernel, in a minute on two cores.
check: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal \
	  -m 'not (gpu or grid or netns or podman or processes or interpreter or slow)'

# What CI runs: everything that needs neither GPU, root nor containers.
test: lint .venv/clients
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Half an hour of traffic and kills; tests/faults/soak.py says what must hold.
soak: .venv/installed
	$(BIN)/python -m tests.faults.soak $(SOAK)

# Coverage-guided, about 40 minutes; a finding is told and the run goes on. The fuzzer is for this
# alone, so it is no dependency: it is installed here when it is missing.
#   make fuzz FUZZ="http --seconds 60"
fuzz: .venv/installed
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) --quiet 'atheris>=3,<4'
	$(BIN)/python -m tests.faults.fuzz $(FUZZ)

bench: .venv/installed
	$(BIN)/python -m benchmarks.scheduler
	$(BIN)/python -m benchmarks.offline
	$(BIN)/python -m benchmarks.sanity

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) --quiet --upgrade pip
	$(if $(TORCH_INDEX)$(filter-out 0,$(GPUS)),,$(TORCH_FOR_CPU) ||) \
	  $(PIP) '$(TORCH)' $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) '$(TRITON)'
	$(PIP) --editable '.[dev]'
	touch $@

# Other people's clients, which tests/clients/ try; without npm, or its registry, those of JavaScript
# are left out.
.venv/clients: .venv/installed tests/clients/node/package.json
	$(PIP) --editable '.[clients,dev]'
	-npm install --prefix tests/clients/node --no-package-lock --no-audit --no-fund
	touch $@

# Needed only after a change to a .proto file; the stubs are committed, and a test checks them.
# The linter comes with npm, so it is not part of `make test`.
protos: .venv/installed
	npx --yes @bufbuild/buf lint
	npx --yes @bufbuild/buf format --diff --exit-code
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto --grpc_python_out=proto --pyi_out=proto $(PROTOS)
