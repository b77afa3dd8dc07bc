# make demo   a character from nothing, rendered to build/demo.mp4
# make test   everything the tests need, then the tests
# make check  ruff and mypy --strict
# make faults 20 times as many faults as make test puts in
# make protos gpupipe/serve/grpc/*_pb2.py of the .proto files beside them
# make fuzz   10 000 spoiled inputs, other ones each time (make test tries 500, always the same)
# make dist   wheel, sdist and one executable file, in dist/ (docs/deploy.md)
PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check fuzz faults protos dist clean
demo: $(VENV)/installed-demo
	$(BIN)/gpupipe demo build/demo --overwrite
	$(BIN)/gpupipe render build/demo -o build/demo.mp4 --overwrite

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/installed-dev
	GPUPIPE_FUZZ=20 $(BIN)/python -X faulthandler -m pytest tests/test_fuzz.py -p no:cacheprovider --timeout 7200
	GPUPIPE_FUZZ=20 $(BIN)/python -X faulthandler -m pytest tests/test_serve_grpc.py -k spoiled -p no:cacheprovider

protos: $(VENV)/installed-dev
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. gpupipe/serve/grpc/avatar.proto gpupipe/serve/grpc/monolithic.proto

faults: $(VENV)/installed-dev
	GPUPIPE_FAULTS=20 $(BIN)/python -X faulthandler -m pytest tests/test_faults.py tests/test_faults_gpu.py -rP --timeout 7200

# ARGUMENTS: of deploy/dist.py, such as --again
dist: $(VENV)/installed-dist
	$(BIN)/python deploy/dist.py $(ARGUMENTS)

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit("gpupipe needs Python 3.11 or later, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@echo made > $@

$(VENV)/installed-demo: $(VENV)/created pyproject.toml
	$(PIP) -e '.[cpu,demo]'
	@echo made > $@

$(VENV)/installed-dev: $(VENV)/created pyproject.toml
	$(PIP) -e '.[cpu,dev]'
	@echo made > $@

$(VENV)/installed-dist: $(VENV)/created
	$(PIP) 'build>=1.2' 'hatchling>=1.25' 'pex>=2.40'
	@echo made > $@

clean:
	rm -rf build dist $(VENV)
