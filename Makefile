PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint lock clean

demo: .venv/ready
	$(BIN)/python demo.py
	$(BIN)/python eval_all.py --datasets sanity --methods CLIP ClearCLIP --pretrained auto

test: .venv/ready lint
	$(BIN)/python -m pytest -q

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

# Needs uv. One lock for Python 3.11 to 3.13 on Linux, macOS and Windows.
lock:
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header \
		requirements-dev.txt --output-file requirements.lock

clean:
	rm -rf .venv work_dirs demo_output results.xlsx results.xlsx.lock
