# Everything runs in .venv, which `make` builds on first use. PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pinned, and installed before anything that depends on it: any looser spelling can pull CUDA builds.
TORCH := torch==2.13.0
# onnxruntime-openvino installs the same package as onnxruntime, so it gets an environment of its own: what is written in
# .venv is run there. Python 3.11 or later.
OPENVINO_VENV := .venv-openvino
OPENVINO := onnxruntime-openvino==1.24.1
# The oldest that exported files are promised to run on.
OLDEST_VENV := .venv-oldest
OLDEST := onnxruntime==1.22.1
# onnxruntime-gpu, too, takes the place of onnxruntime; torch's own libraries of CUDA serve both.
CUDA_VENV := .venv-cuda
CUDA := 'onnxruntime-gpu>=1.24'

.PHONY: demo test test-slow test-cuda test-openvino test-runtimes test-web docs package fuzz lint format bench clean

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[hf,dev,docs]'
	touch $@

demo: $(VENV)/ready  ## a real model, end to end
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/minilm.sh

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint  ## lint, types, floor plan, tests, and which lines they ran
	$(BIN)/pytest --cov --cov-report=term:skip-covered

test-slow: $(VENV)/ready  ## more cases of what `make test` tries
	$(BIN)/pytest -m slow

# $(1): the environment; $(2): the runtime, which is alone in it but for numpy. Nothing that only its tools import, and
# nothing compiled beforehand: half of the time.
define venv_of_runtime
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-compile $(2) numpy
	touch $(1)/ready
endef

$(OPENVINO_VENV)/ready: Makefile
	$(call venv_of_runtime,$(OPENVINO_VENV),$(OPENVINO))

$(OLDEST_VENV)/ready: Makefile
	$(call venv_of_runtime,$(OLDEST_VENV),$(OLDEST))

test-openvino: $(VENV)/ready $(OPENVINO_VENV)/ready  ## every lowering on ONNX Runtime's OpenVINO provider
	OPENVINO_PYTHON=$(OPENVINO_VENV)/bin/python $(BIN)/pytest tests/openvino

# The browser is left out, with a word, where there is no npm or no Chromium. --numprocesses=0: all use the same files.
NPM := $(firstword $(wildcard $(addsuffix /npm,$(subst :, ,$(PATH)))))
test-runtimes: $(VENV)/ready $(OLDEST_VENV)/ready $(OPENVINO_VENV)/ready $(if $(NPM),examples/browser/node_modules)
test-runtimes:  ## files of few bits on the oldest and the current ONNX Runtime, as .ort, on OpenVINO and in Chromium
	OLDEST_PYTHON=$(OLDEST_VENV)/bin/python OPENVINO_PYTHON=$(OPENVINO_VENV)/bin/python \
		$(BIN)/pytest tests/runtimes --numprocesses=0

$(CUDA_VENV)/ready: pyproject.toml
	$(PYTHON) -m venv --clear $(CUDA_VENV)
	$(CUDA_VENV)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	$(CUDA_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(CUDA_VENV)/bin/pip uninstall --quiet --yes onnxruntime
	$(CUDA_VENV)/bin/pip install --quiet --disable-pip-version-check $(CUDA)
	touch $@

test-cuda: $(CUDA_VENV)/ready  ## every lowering on ONNX Runtime's CUDA provider, and the compiled kernels; needs a GPU
	$(CUDA_VENV)/bin/python -c "import onnxruntime, torch; torch.ones(1, device='cuda'); \
		assert 'CUDAExecutionProvider' in onnxruntime.get_available_providers(), 'this onnxruntime has no CUDA'"
	$(CUDA_VENV)/bin/pytest tests/export/test_providers.py tests/layers

examples/browser/node_modules: examples/browser/package-lock.json
	cd examples/browser && npm ci --ignore-scripts --no-audit --no-fund --silent
	touch $@

test-web: $(VENV)/ready examples/browser/node_modules  ## the exported MiniLM and its report in headless Chromium
	$(BIN)/pytest tests/web --numprocesses=0 --capture=no

# The sdist is built from the checkout, the wheel from the sdist; both are installed where nothing else is.
package: $(VENV)/ready  ## wheel and sdist, and each tried in a clean environment
	rm -rf dist .venv-package
	$(BIN)/python -m build --quiet --outdir dist
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-package/bin/pip install --quiet --disable-pip-version-check "$$(echo dist/*.whl)[report]"
	cd dist && ../.venv-package/bin/python ../tests/package/try_it.py
	.venv-package/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.tar.gz
	cd dist && ../.venv-package/bin/python ../tests/package/try_it.py

# Broken links, anchors and references are errors. NO_MKDOCS_2_WARNING: the theme advertises its successor.
docs: $(VENV)/ready  ## the documentation as a site, in build/docs, and every command on its pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	$(BIN)/pytest tests/docs

# atheris has wheels for Linux only, so it is no part of [dev].
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/ready  ## random files against the readers, FUZZ_SECONDS each
	$(BIN)/pip install --quiet --disable-pip-version-check 'atheris>=2.3'
	for reader in safetensors manifest onnx torch program gguf; do \
		$(BIN)/python tests/fuzz/fuzz.py $$reader -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/ready  ## the figures of docs/measurements.md
	$(BIN)/python benchmarks/fit_minilm.py
	$(BIN)/python benchmarks/design_choices.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/fit_quality.py
	$(BIN)/python benchmarks/fit_speed.py
	$(BIN)/python benchmarks/recovery.py --train all
	$(BIN)/python benchmarks/bits.py
	$(BIN)/python benchmarks/bits.py --calibration 400
	$(BIN)/python benchmarks/bits_quality.py
	$(BIN)/python benchmarks/below_one_bit.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf $(VENV) $(OPENVINO_VENV) $(CUDA_VENV) $(OLDEST_VENV) .venv-package examples/browser/node_modules build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
