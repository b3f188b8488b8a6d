# Everything runs in .venv, made on first use from the pinned requirements.txt.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Idle OpenMP threads sleep instead of spinning: a busy neighbour then costs no factor of ten.
export GOMP_SPINCOUNT ?= 0

SANITIZED := $(addprefix tests/ops/test_,$(addsuffix .py,nt_xent nt_xent_ids nt_xent_inputs nt_xent_weights \
    contract info_nce info_nce_inputs info_nce_joint info_nce_masks clip_loss sup_con cpc_loss \
    sigmoid_loss sigmoid_loss_inputs ema ema_modules ema_rounding queue queue_module offsets pitfalls))

.PHONY: help setup demo test quick nightly fuzz peers lint types bench figures gpu sanitize docs doctor wheel clean
help:    ## list the targets
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'
setup: $(VENV)/.built ## environment, pinned packages, compiled kernels
demo: setup ## train SimCLR on the embedded digits and write runs/demo/report.html
	$(BIN)/sslops train simclr --data digits --out runs/demo --overwrite
quick: setup ## in a minute: what a change to a method or an op most likely breaks
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=quick $(BIN)/python -m pytest -n 2 -m "not slow" --isa best \
	    tests/ops tests/training tests/packaging tests/compat
test: setup ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
nightly: setup ## the whole suite on every instruction set, sanitized C++, new examples
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --isa all
	$(MAKE) sanitize fuzz
peers: .venv-peers/.installed ## compare sslops.compat with the packages it stands in for
	rm -rf build/peers
	SSLOPS_BUILD=cpu .venv-peers/bin/python setup.py -q build --build-base build/peers-tmp --build-lib build/peers
	OMP_NUM_THREADS=1 PYTHONPATH=build/peers:. .venv-peers/bin/python -P -m pytest --import-mode=importlib \
	    -m peer -rs $(wildcard tests/compat/test_compat_peer*.py)
fuzz: setup ## the property tests of every op with 2,000 new examples each
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n 2 --isa all -k fuzz
lint: setup ## ruff and clang-format, nothing is changed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/clang-format --dry-run -Werror $$(find csrc -type f)
types: setup ## mypy, strict
	$(BIN)/mypy -p sslops -p bench
bench: setup ## measure against PyTorch on this machine, append to bench/results
	$(BIN)/python -m pytest bench --benchmark-only -s
sanitize: setup ## the op tests on C++ built with address and undefined-behaviour sanitizers
	rm -rf build/sanitize
	SSLOPS_SANITIZE=1 SSLOPS_BUILD=cpu $(BIN)/python setup.py -q build --build-base build/sanitize-tmp --build-lib build/sanitize
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 PYTHONPATH=build/sanitize:. $(BIN)/python -P -m pytest \
	    --import-mode=importlib --capture=sys --isa all -k "not fullgraph" $(SANITIZED)
figures: setup ## draw bench/results into docs/figures
	$(BIN)/python -m bench.plots bench/results/losses.jsonl --out docs/figures
gpu: setup ## build, test and measure on the GPU of this machine, in nine minutes
	$(BIN)/python bench/gpu_check.py --out runs/gpu
docs: setup ## run the examples of README and docstrings, check that every link leads somewhere
	$(BIN)/python -m pytest tests/packaging/test_docs.py
doctor: setup ## versions, back ends, and what each op runs here
	$(BIN)/sslops doctor
wheel: setup ## build dist/*.whl with the compiled kernels
	$(BIN)/python -m build --wheel --no-isolation
clean:   ## remove what was built, keep the environment
	rm -rf build dist *.egg-info sslops/*.so $(VENV)/.built

$(VENV)/.installed: requirements.txt
	@echo "sslops: installing the pinned packages into $(VENV): minutes, most of it the download of torch"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
.venv-peers/.installed: tests/compat/peers.txt
	@echo "sslops: installing the packages that are compared with: several minutes and GB"
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/compat/peers.txt
	@touch $@
# pip is not quiet here: its lines are the only sign of life until the compiler is done.
$(VENV)/.built: $(VENV)/.installed setup.py pyproject.toml $(shell find csrc -type f)
	@echo "sslops: compiling the C++ kernels: half a minute to one on two idle cores, several on busy ones"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
