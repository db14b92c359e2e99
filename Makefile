# Two commands set up everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format slow mistakes long-ray gpu docs

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
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
