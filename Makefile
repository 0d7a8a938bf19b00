# make demo    an environment in .venv, then: train on handwritten digits, draw what you ask for
# make test    the whole test suite
# Without make: pip install -e . && tinydiff demo

VENV   ?= .venv
PYTHON ?= python3
DEMO   ?=                   # its options, as in make demo DEMO="--seed 1"
UV     := $(shell command -v uv 2>/dev/null)
PY     := $(VENV)/bin/python

ifdef UV
  CREATE  = uv venv --quiet $(VENV)
  INSTALL = uv pip install --quiet --python $(PY)
else
  CREATE  = $(PYTHON) -m venv $(VENV)
  INSTALL = $(PY) -m pip install --quiet
endif

.PHONY: demo test lint bench bench-torch cuda-check gpu-check notebooks wheel clean

demo: $(VENV)/.installed
	$(PY) -m tinydiff demo $(DEMO)

test: $(VENV)/.installed-test
	$(PY) -m pytest -n auto

lint: $(VENV)/.installed-lint
	$(PY) -m ruff check .

bench: $(VENV)/.installed
	$(PY) benchmarks/autograd_overhead.py
	$(PY) benchmarks/import_time.py
	$(PY) benchmarks/digit_quality.py --n 100 1000
	$(PY) benchmarks/demo_time.py --threads 2 4
	$(PY) benchmarks/cpu_kernels.py

bench-torch: $(VENV)/.installed-parity
	$(PY) benchmarks/cpu_kernels.py --vs torch
	$(PY) benchmarks/cpu_page.py

cuda-check: $(VENV)/.installed-kernels
	$(PY) tools/compile_cuda.py

gpu-check:                          # where a GPU is, with CuPy, PyTorch and Numba
	$(PYTHON) tools/gpu_check.py --out benchmarks/gpu

notebooks: $(VENV)/.installed-notebooks
	$(PY) tools/notebooks.py

wheel: $(VENV)/.installed-lint
	rm -rf build dist
	$(PY) -m build --wheel
	$(PY) tools/check_wheel.py dist/*.whl

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis


# One stamp for each extra: it is installed again only when the packaging changed.

$(PY):
	$(CREATE)

$(VENV)/.installed: setup.cfg pyproject.toml | $(PY)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-%: setup.cfg pyproject.toml | $(PY)
	$(INSTALL) -e '.[$*]'
	@touch $@
