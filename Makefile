# Needs Python 3.11 or later and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Target web alone needs npm; without it, its tests say so and are skipped.
NPM := $(shell command -v npm)
# A checkout must be installed to be imported; SAFEPATH keeps the folder names export, quant, ... from shadowing it.
export PYTHONSAFEPATH := 1

.PHONY: install demo test test-slow support targets foreign passes lint types clean
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test]"
	$(if $(NPM),$(NPM) install --silent --no-fund --no-audit --prefix $(VENV) onnxruntime-web@1.30)
	touch $@

demo: install ## the whole pipeline on the embedded model: a table and demo-out/report.html
	$(BIN)/edgevit demo -o demo-out

# Two halves side by side on two cores: tensors in one, and whatever measures or locks the machine in the other.
HALF := tests/tokens tests/adapters tests/trained tests/quant tests/export tests/from_onnx
both = $(BIN)/pytest -m "$(1)" $(HALF) & half=$$!; \
	$(BIN)/pytest -m "$(1)" $(addprefix --ignore=,$(HALF)); rest=$$?; wait $$half && exit $$rest

test: install ## the default suite, minutes
	$(call both,not slow)

test-slow: install ## what takes longer
	$(call both,slow)

support: install ## docs/support.md: every method on every family, exported and verified
	$(BIN)/python tests/support.py

targets: install ## docs/targets.md: the cells (model, target, precision) it lacks; ASSETS is the folder of real weights
	$(BIN)/python tests/targets.py $(ASSETS) -o runs/targets --onto

foreign: install ## the table of docs/foreign-onnx.md: files of every exporter, imported
	$(BIN)/python tests/foreign.py -o runs/foreign

passes: install ## docs/foreign-onnx-passes.md: each pass on foreign ONNX, drawn by running it
	$(BIN)/python tests/passes.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## import-hook editables are invisible to mypy, so it reads a strict one
	rm -rf $(VENV)/types && $(PYTHON) tests/typed_tree.py $(VENV)/types
	cd $(VENV)/types && MYPYPATH=. ../bin/mypy --config-file ../../pyproject.toml -p edgevit

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out
