# Everything a newcomer needs: `make demo` and `make test` set up what they use.
PY ?= python3
BIN := .venv/bin

.PHONY: setup dev demo test test-slow docs notebooks browser lint bench chaos dist clean

# What training and reports need. The stamps stand inside .venv and are written last, so a broken install is never taken for a
# finished one. tools/set_up.py says what it installs, and about how long that takes.
.venv/.ok: pyproject.toml constraints.txt
	$(PY) tools/set_up.py use
	touch $@

# The same, and what tests, linters and notebooks need.
.venv/.dev: pyproject.toml constraints.txt
	$(PY) tools/set_up.py dev
	touch .venv/.ok $@

setup: .venv/.ok

dev: .venv/.dev

demo: setup
	$(BIN)/python -m lmablate.demo

test: dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: dev
	$(BIN)/python -m pytest -m slow

# The site: docs/_build/html/index.html. A warning is an error.
docs: dev
	$(BIN)/python tools/configuration.py docs/reference/configuration.md
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

# After a change to a notebook or to its text twin: the newer one is written to the other.
notebooks: dev
	$(BIN)/jupytext --sync analysis/*.ipynb

# Optional: what the slow tests of the report's page need. LMABLATE_BROWSER names another Chromium than the system's own.
browser: dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[browser]'
	command -v chromium || command -v google-chrome || $(BIN)/python -m playwright install chromium

lint: dev
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
chaos: dev
	$(BIN)/python tests/chaos $(CHAOS)

# Wheel and sdist of what git tracks, for a release. twine has an environment of its own, since nothing else here needs it.
dist: dev
	rm -rf build/release dist && mkdir -p build/release
	git archive HEAD | tar -x -C build/release
	$(BIN)/python -m build --no-isolation --outdir dist build/release
	$(PY) -m venv build/twine && build/twine/bin/python -m pip install -q --disable-pip-version-check twine==6.2.0
	build/twine/bin/twine check --strict dist/*

clean:
	rm -rf .venv build dist *.egg-info demo docs/_build
