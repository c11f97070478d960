# Every target runs in .venv; the first one that needs it makes it and installs the package there.
#   make test WORKERS=8            more test processes
#   make fuzz SEEDS=0:500          other random networks; ENGINES=torch,onnxruntime,openvino,onnx chooses what they go through
#   make demo PYTHON=python3.12    the interpreter that .venv is made with
#   make demo TORCH_INDEX=URL      PyTorch from this package index: its CPU-only one takes about half the space

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --no-input --disable-pip-version-check
USABLE := $(VENV)/.fastcnn-usable
INSTALLED := $(VENV)/.fastcnn-installed
UNFINISHED := $(VENV)/.fastcnn-unfinished
LOWEST := build/lowest
TYPECHECK := build/typecheck
# One thread for each test process: more of them would only take the cores from each other. glibc keeps freed memory for the next large tensor:
# asking the system for each one anew took a tenth of the time.
PYTEST = OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=536870912 $(PY) -m pytest -n $(WORKERS) --dist worksteal --benchmark-disable -m "not cuda"
PYTHON ?= python3 python3.13 python3.12 python3.11
TORCH_INDEX ?=
WORKERS ?= 2
PYTEST_ARGS ?=
SEEDS ?= 0:3000
MUTANTS ?= 0:1000
COMPAT ?= $(HOME)/.cache/fastcnn/compat
ENGINES ?= torch,onnxruntime,openvino,onnx
KILLS ?= 50
MINUTES ?= 60
SOAKED ?= torch onnxruntime openvino ncnn

.PHONY: help demo test quick durations fuzz mutate kill soak lowest compat cuda lint typecheck pytest format readme architecture clean
.DEFAULT_GOAL := help

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(USABLE) ## Export Inception-v3 to ONNX, verify it, and time it beside eager PyTorch
	$(PY) -m fastcnn.bench.demo

test: lint typecheck pytest ## Everything that CI runs: lint, types, tests

lint: $(INSTALLED) ## ruff: mistakes and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(INSTALLED) ## Let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Type checkers do not follow an editable install into export/, kernels/ and bench/, so the package is installed plainly beside
# the sources and checked there. That also proves that the wheel holds every module. build/lib would keep modules since deleted.
typecheck: $(INSTALLED) ## mypy on the package as a wheel installs it
	rm -rf build/lib build/bdist.* $(TYPECHECK)
	$(PY) -m pip install --quiet --no-input --disable-pip-version-check --no-deps --no-build-isolation --target $(TYPECHECK) .
	cd $(TYPECHECK) && "$(CURDIR)/$(PY)" -m mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" -p fastcnn
	cd $(TYPECHECK) && MYPYPATH="$(CURDIR)/tools" "$(CURDIR)/$(PY)" -m mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" -p architecture -p compat

pytest: $(INSTALLED) ## The tests, without those that need a GPU; the ten slowest are named
	$(PYTEST) --durations=10 $(PYTEST_ARGS)

quick: lint ## A verdict in a few minutes: lint, and the tests without those that measured slow
	$(PYTEST) --quick $(PYTEST_ARGS)

durations: $(INSTALLED) ## Measure all tests and note which ones make quick leaves out (on an idle machine)
	$(PYTEST) --write-slow $(PYTEST_ARGS)

mutate: $(INSTALLED) ## A thousand damaged files of each format, and a table of what became of them
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(PY) -m mutation --seeds $(MUTANTS)

kill: $(INSTALLED) ## Each writer killed fifty times and run again, and what was left
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(PY) -m kills --kills $(KILLS)

soak: $(INSTALLED) ## An hour on each engine, eight threads, every answer compared; memory over time
	@set -eu; for engine in $(SOAKED); do PYTHONPATH=tests $(PY) -m soak --engine $$engine --minutes $(MINUTES); done

# In a .venv of its own: PyTorch's lowest version takes 6 GB once more.
lowest: $(INSTALLED) ## The quick tests with the lowest versions that pyproject.toml allows
	$(PY) -m venv --clear $(LOWEST)
	$(PY) tools/lowest.py openvino ncnn scale test > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-input --disable-pip-version-check -c $(LOWEST)/lowest.txt -e '.[test]'
	$(subst $(PY),$(LOWEST)/bin/python,$(PYTEST)) --quick $(PYTEST_ARGS)

compat: $(INSTALLED) ## Our ONNX files in other runtimes, an environment each (4 GB below COMPAT), and docs/compatibility.md
	PYTHONPATH=tools $(PY) -m compat --environments $(COMPAT)

fuzz: $(INSTALLED) ## Thousands of random networks through every engine, and a table of what came out
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(PY) -m fuzz --seeds $(SEEDS) --engines $(ENGINES)

readme: $(INSTALLED) ## Make the README's results and pictures from the stored result that it names
	$(PY) -m fastcnn.bench.views.readme --write

architecture: $(INSTALLED) ## Make the picture and the table of docs/architecture.md from the code
	PYTHONPATH=tools $(PY) -m architecture --write

cuda: $(INSTALLED) ## The tests that need an NVIDIA GPU
	$(PY) -m pytest -m cuda --benchmark-disable $(PYTEST_ARGS)

clean: ## Remove what builds and tests left; exported models and .venv stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .benchmarks
	find fastcnn kernels export bench tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is younger than pyproject.toml when all is installed: the package with OpenVINO, which is all that a demo needs, and what developing
# it takes besides. A .venv that was interrupted while this rule made it is made afresh; one that was there before is kept and completed.
$(USABLE): pyproject.toml
	@set -eu; \
	if [ -e $(UNFINISHED) ]; then echo "removing the unfinished $(VENV)"; rm -rf $(VENV); fi; \
	if [ ! -x $(PY) ]; then \
	  found=; \
	  for candidate in $(PYTHON); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then echo "error: Python 3.11 or newer is needed; none of these is: $(PYTHON) (name one: make PYTHON=/path/to/python3)" >&2; exit 2; fi; \
	  echo "making $(VENV) with $$("$$found" --version)"; \
	  mkdir -p $(VENV); touch $(UNFINISHED); \
	  "$$found" -m venv $(VENV); \
	fi; \
	$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; \
	if [ -n "$(TORCH_INDEX)" ]; then \
	  echo "installing PyTorch from $(TORCH_INDEX) into $(VENV)"; \
	  $(PIP) --index-url "$(TORCH_INDEX)" torch torchvision; \
	fi; \
	if ! $(PY) -c 'import sys, importlib.util as find; sys.exit(find.find_spec("torch") is None)'; then \
	  echo "PyTorch's CUDA build comes with it: $(VENV) will take 6.2 GB on Linux (about 2.6 GB with TORCH_INDEX=<PyTorch's index of CPU-only builds>)"; \
	fi; \
	echo "installing fastcnn and what it runs with into $(VENV)"; \
	$(PIP) -e '.[openvino]'; \
	rm -f $(UNFINISHED); \
	touch $@

$(INSTALLED): $(USABLE)
	@echo "installing what developing fastcnn takes besides into $(VENV) (0.3 GB)"
	@$(PIP) -e '.[dev]'
	@touch $@
