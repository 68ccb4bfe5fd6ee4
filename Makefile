# `make help` lists the targets. Everything is installed into .venv, nothing outside this folder.

# The first Python on the PATH that can run the course (see requires-python in pyproject.toml).
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# Naming one (PYTHON=python3.13 make test) gives it an environment of its own, .venv-3.13,
# so that trying another Python never takes the first environment away.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(SUITABLE)' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
else
VENV := .venv-$(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
NOTEBOOKS = $(wildcard chapters/*.ipynb)
# Two test processes, each with one thread of its own: as fast as two cores allow.
TWO = OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1
CORE = test_keras_contract.py blocks freezing optimizers inputs plans display features runs \
	training
# Compiling takes most of the time on JAX, and the same small steps come again and again.
ON_JAX = KERAS_BACKEND=jax JAX_COMPILATION_CACHE_DIR=build/jax \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: lab
lab: $(STAMP) ## JupyterLab on the chapters (LAB_ARGS=--no-browser on a machine with no screen)
	@$(RUN) -m jupyterlab --ip=127.0.0.1 $(LAB_ARGS) chapters

.PHONY: demo
demo: $(STAMP) ## the main job with nothing to click: tlkeras fit digits
	@$(VENV)/bin/tlkeras fit digits

.PHONY: test
test: lint ## lint, library tests, chapters
	$(TWO) $(RUN) -m pytest -n 2 --dist worksteal tests --ignore=tests/course
	$(RUN) tools/build_chapters.py --check
	$(TWO) $(RUN) -m pytest -n 2 --dist loadfile --nbval-lax tests/course $(NOTEBOOKS)

.PHONY: lint
lint: $(STAMP) ## style (ruff) and types (mypy)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

.PHONY: coverage
coverage: $(STAMP) ## which lines of the library the tests run
	$(TWO) $(RUN) -m pytest -n 2 --dist worksteal --cov=tlkeras --cov-report=term tests

.PHONY: test-oldest
test-oldest: .venv-oldest/.installed ## the library's tests on the lower bounds of pyproject.toml
	$(TWO) .venv-oldest/bin/python -m pytest -n 2 --dist worksteal tests

.PHONY: test-jax
test-jax: $(STAMP) ## the tests of the library's core with Keras on JAX
	$(ON_JAX) $(TWO) $(RUN) -m pytest -n 2 --dist worksteal $(CORE:%=tests/%)

.PHONY: test-processes
test-processes: $(STAMP) ## two processes train one model, one is killed (docs/scale.md)
	$(RUN) -m pytest tests/devices/test_processes.py tests/devices/test_join.py

.PHONY: test-nightly
test-nightly: .venv-nightly/.installed ## the library's tests on tomorrow's Keras (keras-nightly)
	$(TWO) .venv-nightly/bin/python -m pytest -n 2 --dist worksteal tests

.PHONY: chapters
chapters: $(STAMP) ## rebuild the executed notebooks (ONLY=06 for one)
	@$(RUN) tools/build_chapters.py $(if $(ONLY),--only $(ONLY))

.PHONY: experiments
experiments: $(STAMP) ## measure what chapters and cards quote from data/results (hours)
	@for script in tools/measure_*.py; do echo "$$script"; $(RUN) $$script || exit 1; done

.PHONY: bench
bench: $(STAMP) ## every benchmark, and their picture (half an hour on a quiet machine)
	$(RUN) benchmarks/pairs.py
	$(RUN) benchmarks/parity.py
	$(RUN) benchmarks/memory.py
	$(RUN) benchmarks/growth.py
	$(RUN) benchmarks/crash.py
	$(RUN) benchmarks/draw.py

.PHONY: fuzz
fuzz: $(STAMP) ## 10,000 random trainings with the cache, without it, by hand (hours; can go on)
	$(TWO) $(RUN) benchmarks/fuzz.py --cases 10000 --processes 2

.PHONY: badges
badges: $(STAMP) ## Colab badges for a fork: make badges REPO=https://github.com/you/your-fork
	@$(RUN) tools/build_chapters.py --repository "$(REPO)"

.PHONY: wheel
wheel: $(STAMP) ## build the wheel into dist/
	@$(RUN) -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

.PHONY: clean
clean: ## remove caches and built files (environments, prepared data and runs/ stay)
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	@find tlkeras tests tools data chapters \( -name __pycache__ -o -name .ipynb_checkpoints \) \
		-prune -exec rm -rf {} + 2>/dev/null || true

# A stamp is written last and holds the folder it was made in: an interrupted install has none, and
# an environment that was copied, moved or has lost its Python does not read its own folder back.
INSTALLED_IN := $(shell $(RUN) -c 'print(open("$(STAMP)").read())' 2>/dev/null)
ifneq "$(INSTALLED_IN)" "$(CURDIR)"
$(STAMP): reinstall
endif
.PHONY: reinstall
reinstall:

%/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo >&2 "No Python 3.11, 3.12 or 3.13 found on the PATH." \
		"Install one, or name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" -c '$(SUITABLE)' || { echo >&2 "PYTHON=$(PYTHON) is missing, or is not" \
		"Python 3.11, 3.12 or 3.13."; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo >&2 "$(PYTHON) has no venv" \
		"module (Debian, Ubuntu: apt install python3-venv)."; exit 1; }
	@echo "Installing into $* (about 3 GB, a few minutes the first time) ..."
	@rm -f $@
	@$*/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $*
	@$*/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
		--editable '.[test]'
	@test -z "$(INSTEAD)" || { $*/bin/python -m pip uninstall --quiet --yes keras && \
		$*/bin/python -m pip install --quiet --no-deps --upgrade $(INSTEAD); }
	@printf %s "$(CURDIR)" > $@

.venv-nightly/.installed: INSTEAD = keras-nightly

.venv-oldest/.installed: build/oldest.txt
.venv-oldest/.installed: PIP_ARGS = --constraint build/oldest.txt
build/oldest.txt: pyproject.toml
	@mkdir -p build
	@sed -n '/^dependencies/,/^]/s/.*"\([a-z-]*\)>=\([0-9.]*\)".*/\1==\2/p' pyproject.toml > $@
