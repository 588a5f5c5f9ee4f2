# Two commands after a clone: `make demo` and `make test`. Both make .venv on their first run.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint clean
.DEFAULT_GOAL := demo

demo: $(VENV)/installed
	$(RUN) test.py

test: $(VENV)/installed
	$(RUN) -m pytest -n 2

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# elasticdeform is optional. Its wheel is built for numpy 1, so it is compiled here against the numpy that is installed.
$(VENV)/installed: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "superself needs Python 3.10 or newer and found $$($(PYTHON) --version); run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e ".[dev]"
	@$(RUN) -m pip install --quiet --no-binary elasticdeform "elasticdeform>=0.5.1" || \
		echo "note: elasticdeform could not be built (is there a C compiler?); the tests that compare with it are skipped."
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
