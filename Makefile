PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-quick lint docs lock clean

demo: .venv/ready
	$(BIN)/python demo.py
	$(BIN)/python eval_all.py --datasets sanity --methods CLIP ClearCLIP --pretrained auto

test: .venv/ready lint
	$(PYTEST)

# Under 90 seconds on two cores: no test that starts a program or compiles.
test-quick: .venv/ready
	$(PYTEST) -m "not slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# The site of docs/, into site/. A broken link is an error. Its environment is its own.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

.venv-docs/ready: requirements/docs.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: --requirement requirements/docs.lock
	touch $@

# Needs uv. A lock for Python 3.11 to 3.13 on Linux, macOS and Windows, wheels only.
lock:
	uv pip compile --universal --python-version 3.11 --only-binary :all: --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header \
		requirements/dev.txt --output-file requirements.lock
	uv pip compile --universal --python-version 3.11 --only-binary :all: --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header \
		requirements/docs.txt --output-file requirements/docs.lock

clean:
	rm -rf .venv .venv-docs site .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info work_dirs demo_output results.xlsx results.xlsx.lock
