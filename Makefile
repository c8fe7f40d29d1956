PYTHON ?= python3
BUDGET ?= 25cpu-minutes
RUN := .venv/bin
# To compile all 24,000 files takes minutes; what is imported, 6,000, is compiled when it is imported first, and kept: where the
# environment says that Python keeps nothing, as images of containers do, every worker of Ray would compile them again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(RUN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable

.PHONY: search test lint slow commands bench-teacher bench-recipe bench-latency bench-search bench-overhead bench-gpu bench-fuzz bench-survive bench-deploy install develop clean

search: install
	$(RUN)/srlnas search --space edge --finalists 6 --budget $(BUDGET)

test: lint
	$(RUN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

slow: develop
	$(RUN)/python -m pytest -q -m slow

commands: develop
	$(RUN)/python tests/commands/commands.py > tests/commands/commands.txt

bench-teacher: develop
	$(RUN)/python tests/benchmarks/bench_teacher.py

bench-recipe: develop
	$(RUN)/python tests/benchmarks/bench_recipe.py $(SPEECH)

bench-latency: develop
	$(RUN)/python tests/benchmarks/bench_latency.py

bench-search: develop
	OMP_NUM_THREADS=1 $(RUN)/python tests/benchmarks/bench_search.py

bench-overhead: develop
	$(RUN)/python tests/benchmarks/bench_overhead.py

bench-gpu: develop
	$(RUN)/python tests/benchmarks/bench_gpu.py

bench-fuzz: develop
	$(RUN)/python tests/benchmarks/bench_fuzz.py

bench-deploy: develop
	$(RUN)/python -P tests/benchmarks/bench_deploy.py $(STUDY)

bench-survive: develop
	$(RUN)/python -P tests/benchmarks/bench_survive.py

lint: develop
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

install: .venv/.installed

develop: .venv/.developed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "srlnas needs Python 3.11 or newer, this is " + sys.version.split()[0]'
	$(PYTHON) -m venv .venv
	$(PIP) .
	$(RUN)/python -c "import nas.api, nas.worker.evaluate, ray.tune"
	touch $@

.venv/.developed: .venv/.installed
	$(PIP) ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
