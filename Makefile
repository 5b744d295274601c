# Every target is one command that can be typed on any system: see README.md, "Commands".
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
  BIN := Scripts
else
  BIN := bin
endif
PY := .venv/$(BIN)/python
# The book needs no torch: without the full environment a small one does.
BOOK_PY = $(if $(wildcard .venv/medlm-lock.txt),$(PY),.venv-book/$(BIN)/python)

.PHONY: help book html publish notebooks exercises test test-fast test-browser lint lab lock env clean

help:            ## say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## */\t/' | expand -t 16

env:             ## create the environment from the lock, if needed
	@$(PYTHON) tools/setup_env.py

book: env        ## execute every notebook on this machine and build the book from these runs
	@$(PY) tools/run_notebooks.py --build
	@$(PY) tools/build_book.py --executed

html:            ## build the book from the committed outputs, without torch
	@test -f .venv/medlm-lock.txt || $(PYTHON) tools/setup_env.py --book
	@$(BOOK_PY) tools/build_book.py

publish:         ## build from the committed outputs and copy into public/, ready to be served
	@test -f .venv/medlm-lock.txt || $(PYTHON) tools/setup_env.py --book
	@$(BOOK_PY) tools/build_book.py --out public

notebooks: env   ## re-run in place the notebooks that are stale: this is what authors commit
	@$(PY) tools/run_notebooks.py

exercises: env   ## derive the chapters' exercises from notebooks/solutions
	@$(PY) tools/exercises.py

test: env        ## every test: the unit tests, then nbval over every notebook
	@$(PY) -m pytest tests -n 2 --dist loadfile
	@$(PY) tools/run_notebooks.py --validate

test-fast: env   ## the tests that take seconds
	@$(PY) -m pytest tests -m "not slow" -x -q

test-browser: env ## the built book in headless Chromium
	@$(PY) -m pytest tests/browser -n 2

lint: env        ## ruff, types, spelling, notebook structure, links inside the book
	@$(PY) tools/lint.py

lab: env         ## JupyterLab on the notebooks, with the pages that they link to
	@$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks

lock: env        ## pin the dependencies of pyproject.toml anew
	@$(PY) tools/lock.py

clean:           ## remove what was built; the environment stays
	@$(PYTHON) -c "import shutil; [shutil.rmtree(d, True) for d in ('_build', 'public', 'build', 'dist')]"
