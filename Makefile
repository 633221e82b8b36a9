# Each target sets itself up in .venv on a machine that has nothing but Python (3.10 or newer), pip and make.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint

.DEFAULT_GOAL := help
.PHONY: help demo test lint types browser unit notebooks figures kept lens39 bench clean

help:            ## list the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

.venv/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) constraints.txt --editable .
	touch $@

.venv/test.stamp: .venv/run.stamp
	$(INSTALL) constraints.txt --editable '.[test,notebooks,export,eval]'
	touch $@

demo: .venv/run.stamp  ## the main job on the demo pair
	$(BIN)/taia-lens patch --component mlp --layer 12

test: lint types unit notebooks kept lens39  ## everything that CI runs

lint: .venv/test.stamp  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test.stamp  ## mypy
	$(BIN)/mypy

# Pages are looked at in the browser that is there, else in Debian's Chromium; a Chinese, an Arabic and a Hebrew prompt need letters.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable chrome
browser:         ## a browser and fonts for the tests of pages: 210 MB to download on a Debian that has only Python
	@missing=chromium; for name in $(BROWSERS); do if command -v $$name >/dev/null; then missing=; fi; done; \
	if ! fc-list :lang=zh 2>/dev/null | grep -q .; then missing="$$missing fonts-wqy-microhei"; fi; \
	if ! fc-list :lang=ar:lang=he 2>/dev/null | grep -q .; then missing="$$missing fonts-dejavu-core"; fi; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "tests of pages are skipped without a browser and fonts; install (Debian's names): $$missing"; fi

# Files in the order of their names: by the number of their tests, those of few long ones would come last, and one worker would wait.
unit: .venv/test.stamp browser  ## tests and doctests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --doctest-modules -m "not alone" tests taia_lens
	$(BIN)/python -m pytest -m alone $$(grep -l "mark.alone" tests/*.py)

notebooks: .venv/test.stamp  ## every notebook, from a clean kernel
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=180 notebooks

figures: .venv/test.stamp browser  ## figures/ and the README's tables again, from the saved results
	$(BIN)/python figures/make.py

kept: .venv/test.stamp  ## figures/ drawn again and what is quick computed again: as kept, or it fails
	$(BIN)/python figures/make.py --check

# TransformerLens 3.9 has the class HookedTransformer that 4 removed; the laws of patching also hold there. An environment
# that differs in this package (and one that it needs): it is laid over the other in front of the path.
.venv/lens39.stamp: .venv/test.stamp
	rm -rf .venv/lens39
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv/lens39 transformer-lens==3.9.0 better-abc==0.0.3
	touch $@

lens39: .venv/lens39.stamp  ## the patching laws under TransformerLens 3.9
	PYTHONPATH=.venv/lens39 $(BIN)/python -m pytest -m lens39 tests

.venv/bench.stamp: .venv/run.stamp
	$(INSTALL) constraints.txt --editable '.[bench,export]'
	touch $@

bench: .venv/bench.stamp  ## benchmarks/: sweeps side by side with the peers; hours, on a machine that does nothing else
	$(BIN)/python benchmarks/sweeps.py

clean:           ## remove what the targets made
	rm -rf .venv runs .screenshots
