# Every target first installs the environment in .venv, so `make repro` and `make test` are all a fresh clone needs.
# Written for GNU make 3.81, which is what macOS has. Without make, or on Windows: docs/troubleshooting.md.

STAMP := .venv/.installed
RUN := .venv/bin/python -m
PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)

# DVC runs the stages' `python` from PATH: it must be the environment's, whether that is activated or not.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Before anything in .venv goes: whether it is an environment at all.
OWN_VENV = if test -d .venv && test -n "$$(ls -A .venv)" && ! test -e .venv/pyvenv.cfg && ! test -e .venv/.installing; \
	then echo "The folder .venv is no environment of Python, and what is in it may be yours: move it away" >&2; exit 1; fi

# A line a minute where no progress bar is shown, so that nobody takes a slow line for a hanging one.
TICKER = if ! test -t 1; then ( minutes=0; while sleep 60 >/dev/null 2>&1; do minutes=$$((minutes + 1)); \
	echo "installing for $$minutes min, $$(du -sm .venv | cut -f1) MB so far"; done ) & \
	ticker=$$!; trap 'kill $$ticker 2>/dev/null' EXIT; fi

# An upgrade of the system's Python (Homebrew's, say) can leave the environment without one: then it is made again.
ifneq ($(shell .venv/bin/python -c 'print("works")' 2>/dev/null),works)
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help install repository repro test test-all lint bench lock clean

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## the environment in .venv, with the exact versions of requirements.lock (PYTHON=... chooses a Python)

repro: repository $(STAMP) ## run what changed of the pipeline; the first time all of it, on the embedded sample data
	@said="$$($(RUN) exp_tools.cli data check 2>&1)"; status=$$?; test $$status = 0 || echo "$$said"; test $$status != 3
	@$(RUN) dvc repro
	@echo
	@echo "Scores: metrics/evaluate.json   Figures: plots/   Model: models/model.safetensors"
	@echo "Next:   source .venv/bin/activate, then dvc metrics show | dvc plots show | dvc exp run -S model.name=timm"
	@git diff --quiet HEAD -- params.yaml dvc.yaml stages exp_tools && { git diff --quiet HEAD -- metrics MODEL_CARD.md || \
		echo "Note:   results differ from the committed ones, as they do on another kind of CPU" \
			"(docs/troubleshooting.md). Back to those: git checkout HEAD -- metrics plots MODEL_CARD.md dvc.lock"; } || true

repository: # DVC needs a Git repository with a commit; a downloaded ZIP is none
	@test -e .git || { echo "This folder is not a Git repository, which DVC needs. Here: git init && git add -A &&" \
		"git commit -m start" >&2; exit 1; }
	@git rev-parse --quiet --verify HEAD >/dev/null || { echo "Git has no commit here yet, which DVC needs:" \
		"git add -A && git commit -m start" >&2; exit 1; }

test: lint ## lint, then the tests, in two processes (PYTEST_ARGS="-k splits" passes arguments to pytest)
	@$(RUN) pytest -n 2 --dist worksteal --durations=10 -m "not sweep" $(PYTEST_ARGS)

test-all: lint ## lint, then every test, the long sweeps too, whose results it writes to tests/sweeps.csv
	@$(RUN) pytest -n 2 --dist worksteal --record-sweeps tests/sweeps.csv $(PYTEST_ARGS)

lint: $(STAMP) ## style and likely mistakes, by ruff
	@$(RUN) ruff check --no-cache .
	@$(RUN) ruff format --no-cache --check .

bench: $(STAMP) ## speed as ratios against limits (BENCH_ARGS="..." passes arguments)
	@$(RUN) benchmarks.run $(BENCH_ARGS)

lock: ## rewrite requirements.lock from pyproject.toml, with uv (LOCK_ARGS=--upgrade takes the newest versions)
	@command -v uv >/dev/null || { echo "make lock needs uv, which is not installed: pip install uv" >&2; exit 1; }
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --all-extras \
		--no-emit-index-url --no-emit-find-links $(LOCK_ARGS) pyproject.toml -o requirements.lock

clean: ## remove the environment and caches of tools (never data, models or results)
	@$(OWN_VENV)
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis skin_lesion_experiments.egg-info

# `.venv/.installing` lives from the first to the last step, so that an installation that was interrupted is started
# afresh. The stamp keeps its time of birth: an edit made meanwhile is newer and installs again.
$(STAMP): pyproject.toml requirements.lock
	@rm -f $@
	@$(OWN_VENV)
	@if test -d .venv && { test -e .venv/.installing || ! .venv/bin/python -c '' 2>/dev/null; }; then \
		test ! -L .venv || { echo ".venv is a link to an environment that does not work: rm .venv" >&2; exit 1; }; \
		echo "The environment in .venv is incomplete or its Python is gone: installing afresh."; \
		find .venv/ -mindepth 1 -maxdepth 1 ! -name .installing -exec rm -rf {} +; \
	fi
	@mkdir -p .venv && touch .venv/.installing
	@.venv/bin/python -c 'import pip' 2>/dev/null && exit; \
	for python in $(PYTHONS); do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Installing into .venv with $$("$$python" --version): minutes and up to 7 GB the first time"; \
			exec "$$python" -m venv .venv; \
		fi; \
	done; \
	echo "No Python 3.11 or newer with the venv module among: $(PYTHONS)" >&2; \
	echo "Install one (python.org, Homebrew, or your system's packages python3 and python3-venv)," >&2; \
	echo "or name it: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.12" >&2; \
	rm -f .venv/.installing; rmdir .venv 2>/dev/null; exit 1
	@$(TICKER); \
	if command -v uv >/dev/null && \
		uv pip install --quiet --compile-bytecode --python .venv/bin/python --no-deps --requirement requirements.lock; \
	then exit; fi; \
	if test -t 1; then quiet=; else quiet=--quiet; fi; \
	$(RUN) pip install $$quiet --disable-pip-version-check --no-deps --requirement requirements.lock
	@$(RUN) pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@mv .venv/.installing $@
