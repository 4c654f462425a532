# Everything a newcomer needs: `make demo` and `make test` set up what they use.
PY ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow docs notebooks browser lint bench chaos clean

# The stamp stands inside .venv and is written last, so a broken install is never taken for a finished one.
.venv/.ok: pyproject.toml constraints.txt
	$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "lmablate needs Python 3.11 to 3.13; choose one with: make setup PY=python3.12"; exit 1; }
	@echo "Installing some 160 packages (2 GB) into .venv: about five minutes, with few lines in between."
	$(PY) -m venv .venv || { echo "On Debian and Ubuntu, first: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

setup: .venv/.ok

demo: setup
	$(BIN)/python -m lmablate.demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

# The site: docs/_build/html/index.html. A warning is an error.
docs: setup
	$(BIN)/python tools/configuration.py docs/reference/configuration.md
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

# After a change to a notebook or to its text twin: the newer one is written to the other.
notebooks: setup
	$(BIN)/jupytext --sync analysis/*.ipynb

# Optional: what the slow tests of the report's page need. LMABLATE_BROWSER names another Chromium than the system's own.
browser: setup
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[browser]'
	command -v chromium || command -v google-chrome || $(BIN)/python -m playwright install chromium

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/audit.py

# The peers have an environment of their own, with lmablate in it, so that all train in one process.
.venv-bench/.ok: pyproject.toml constraints.txt benchmarks/requirements.txt benchmarks/requirements-no-deps.txt
	$(PY) -m venv .venv-bench
	echo '*' > .venv-bench/.gitignore
	.venv-bench/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/requirements.txt
	.venv-bench/bin/python -m pip install -q --disable-pip-version-check --no-deps -r benchmarks/requirements-no-deps.txt -e .
	touch $@

# About an hour on two cores; `make bench BENCH=--quick` is a few minutes. Writes docs/benchmarks.md.
# Its table of losses comes from benchmarks/quality.py, which takes hours and a checkout of nanoGPT, and is run by hand.
bench: .venv-bench/.ok
	.venv-bench/bin/python benchmarks/single_run.py $(BENCH)
	.venv-bench/bin/python benchmarks/gang.py $(BENCH)
	.venv-bench/bin/python benchmarks/sweep.py $(BENCH)
	.venv-bench/bin/python benchmarks/conclusions.py $(BENCH)
	.venv-bench/bin/python benchmarks/diagnostics.py $(BENCH)
	.venv-bench/bin/python benchmarks/report.py

# Some minutes; `make chaos CHAOS=--full` is 200 random SIGKILLs and more, and takes longer.
chaos: setup
	$(BIN)/python tests/chaos $(CHAOS)

clean:
	rm -rf .venv build dist *.egg-info demo docs/_build
