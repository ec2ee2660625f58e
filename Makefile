# One environment, .venv, made from pyproject.toml; every target stands on it.
# make run  = install and serve        make test = install and test (the README's two commands)
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# Processes that share the tests; what is written for one clock or one server stays in one of them.
WORKERS ?= 2
ALL_EXTRAS := mail,postgres,mysql,redis,zstd,relay,msgspec

# A step that fails half way must not look done next time.
.DELETE_ON_ERROR:

.PHONY: run test fmt lint types docs bench all clean

run: .venv/.run
	$(BIN)/mailpipe serve $(ARGS)

test: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

fmt: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: .venv/.dev
	$(BIN)/mypy
	$(BIN)/mypy tests/typing benchmarks

docs: .venv/.dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

bench: .venv/.dev
	$(BIN)/python -m benchmarks $(ARGS)

all: lint types test docs

clean:
	rm -rf .venv build dist

.venv/pyvenv.cfg:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is %d.%d" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip

.venv/.run: pyproject.toml | .venv/pyvenv.cfg
	$(BIN)/python -m pip install -e '.[mail]'
	touch $@

.venv/.dev: pyproject.toml | .venv/pyvenv.cfg
	$(BIN)/python -m pip install -e '.[$(ALL_EXTRAS)]' --group dev
	touch $@ .venv/.run
