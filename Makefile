PYTHON ?= python3
BUDGET ?= 25cpu-minutes
RUN := .venv/bin
STAMP := .venv/.installed

.PHONY: search test lint slow commands bench-teacher bench-recipe bench-latency bench-search bench-overhead bench-gpu bench-fuzz bench-survive bench-deploy install clean

search: install
	$(RUN)/srlnas search --space edge --finalists 6 --budget $(BUDGET)

test: lint
	$(RUN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

slow: install
	$(RUN)/python -m pytest -q -m slow

commands: install
	$(RUN)/python tests/commands/commands.py > tests/commands/commands.txt

bench-teacher: install
	$(RUN)/python tests/benchmarks/bench_teacher.py

bench-recipe: install
	$(RUN)/python tests/benchmarks/bench_recipe.py $(SPEECH)

bench-latency: install
	$(RUN)/python tests/benchmarks/bench_latency.py

bench-search: install
	OMP_NUM_THREADS=1 $(RUN)/python tests/benchmarks/bench_search.py

bench-overhead: install
	$(RUN)/python tests/benchmarks/bench_overhead.py

bench-gpu: install
	$(RUN)/python tests/benchmarks/bench_gpu.py

bench-fuzz: install
	$(RUN)/python tests/benchmarks/bench_fuzz.py

bench-deploy: install
	$(RUN)/python -P tests/benchmarks/bench_deploy.py $(STUDY)

bench-survive: install
	$(RUN)/python -P tests/benchmarks/bench_survive.py

lint: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "srlnas needs Python 3.11 or newer, this is " + sys.version.split()[0]'
	$(PYTHON) -m venv .venv
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
