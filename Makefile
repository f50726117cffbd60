# Each target sets up .venv on first use and refreshes it when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help book test check coverage gpu run sweep rerun named notebooks lab student letters colab address clean

help:
	@echo "make book                                build the site"
	@echo "make check                               the unit tests"
	@echo "make test                                every check"
	@echo "make coverage                            the unit tests, and which lines of lib they never run"
	@echo "make gpu                                 checks and throughput on a CUDA device  [DEVICE=cpu]"
	@echo "make run                                 run chapter 02 on embedded data, in less than a minute"
	@echo "make run CHAPTER=02_deepkde              run a chapter  [PARAMS=file.yaml] [OUT=copy.ipynb]"
	@echo "make sweep FILE=sweep.yaml               run a chapter with many values  [JOBS=2]"
	@echo "make rerun CHAPTER=02_deepkde            run it again and compare with its stored numbers  [NAME=..]"
	@echo "make notebooks                           regenerate and execute stale chapters  [CHAPTER=..]"
	@echo "make lab                                 open the chapters in JupyterLab"
	@echo "make student                             copies without solutions in _build/student"
	@echo "make letters                             the errata as letters to their authors in _build/letters"
	@echo "make colab                               the chapters inside Colab's package set"
	@echo "make address URL=https://github.com/..   change the public address, for a fork"
	@echo "make clean                               remove build output (.venv stays)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# The site shows stored outputs, so it is built without torch: the library comes without its needs.
$(VENV)/site.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python book/tools/requirements.py site > $(VENV)/site.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/site.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

$(VENV)/book.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[book]'
	@touch $@ $(VENV)/site.stamp

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[book,test,scale]'
	@touch $@ $(VENV)/book.stamp $(VENV)/site.stamp

book: $(VENV)/site.stamp
	@$(BIN)/python book/tools/build.py

# Two processes of one thread each; tests/conftest.py says which tests share a process.
PYTEST := -m pytest -n 2 --dist loadgroup

check: $(VENV)/test.stamp
	$(BIN)/python $(PYTEST) -m "not chapter and not site"

test: $(VENV)/test.stamp
	$(BIN)/python $(PYTEST)

# Fails below the floor that pyproject.toml sets.
coverage: $(VENV)/test.stamp
	@mkdir -p _build/coverage
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run $(PYTEST) -m "not chapter and not site"
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# What a caller sets reaches the shell as variables, whatever characters it holds.
export CHAPTER PARAMS OUT NAME URL FILE JOBS

# On a machine with CUDA: its own Python, with torch, numpy, pandas, scikit-learn and pytest, will do,
# as in `make gpu GPU_PYTHON=python3`. No data and no network are needed; nine minutes are enough.
DEVICE ?= cuda
GPU_PYTHON ?= $(BIN)/python

gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/test.stamp)
	DEVICE=$(DEVICE) PYTHONPATH=lib $(GPU_PYTHON) -m pytest -q -o addopts= -p no:cacheprovider tests/test_gpu.py
	PYTHONPATH=lib $(GPU_PYTHON) tests/benchmarks/gpu.py --device $(DEVICE) $(GPU_OPTIONS)

# Its other verbs: python -m latentspace.course --help
COURSE := $(BIN)/python -m latentspace.course

run: $(VENV)/book.stamp
	@$(COURSE) run $${CHAPTER:+"$$CHAPTER"} $${PARAMS:+--file "$$PARAMS"} $${OUT:+--out "$$OUT"}

sweep: $(VENV)/book.stamp
	@$(COURSE) sweep $${FILE:+"$$FILE"} $${JOBS:+--jobs "$$JOBS"}

rerun: named $(VENV)/book.stamp
	@$(BIN)/python book/tools/rerun.py "$$CHAPTER" $${NAME:+--name "$$NAME"}

named:
	@test -n "$$CHAPTER" || { echo "Say which chapter: make run CHAPTER=02_deepkde"; exit 2; }

notebooks: $(VENV)/book.stamp
	@$(BIN)/python book/tools/notebooks.py $${CHAPTER:+"$$CHAPTER"}

lab: $(VENV)/book.stamp
	@$(BIN)/jupyter trust notebooks/*.ipynb > /dev/null  # else JupyterLab hides their figures
	$(BIN)/jupyter lab notebooks

student: $(VENV)/book.stamp
	@$(COURSE) student _build/student

letters: $(VENV)/site.stamp
	@$(BIN)/python book/tools/letters.py _build/letters

colab:
	$(PYTHON) book/tools/colab.py _build/colab

address:
	@$(PYTHON) book/tools/address.py $${URL:+"$$URL"}

clean:
	rm -rf _build
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
