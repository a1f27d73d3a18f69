# Two commands do everything: `make demo` and `make test`. Each sets up what it needs, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

KERNELS  := CMakeLists.txt $(wildcard kernels/*)
PACKAGES := ddpm_rt commands diffusion train export runtime benchmarks

.DEFAULT_GOAL := help
.PHONY: FORCE help demo test check build lint docs clean benchmark gpu-check gpu-check-long gpu-rehearsal planted-faults \
  kernel-coverage sanitizers fuzz mutants triton-check page-check

help:
	@echo "make demo       environment, build, train on digits, export, sample -> samples/grid.png"
	@echo "make test       environment, build, all tests, lint, types, import contracts"
	@echo "make check      lint, types and import contracts alone"
	@echo "make build      the environment and the compiled kernels"
	@echo "make docs       the documentation as a site -> build/site/index.html"
	@echo "make benchmark  ratios that the docs quote -> benchmarks/results/"
	@echo "make gpu-check  on a machine with an NVIDIA GPU: what is claimed of it, checked and measured, at most six minutes"
	@echo "make gpu-check-long  other batches, every timestep, ONNX Runtime and TensorRT, without that limit"
	@echo "make gpu-rehearsal   gpu-check as on a borrowed machine, on a device in software: from a bare folder to the report"
	@echo "make planted-faults   faults planted into the CUDA code, one at a time: which test catches each"
	@echo "make kernel-coverage  the lines of the CUDA sources that the tests run"
	@echo "make sanitizers   the compiled code under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer"
	@echo "make fuzz       atheris on every reader of files, FUZZ_SECONDS=600 each"
	@echo "make mutants    changes of the mathematics, the chain, the formats and the gates: which the tests notice, in half an hour"
	@echo "make torture    the long sweeps: kills and resumption of runs, 10,000 clients of a service, every variant of every operator"
	@echo "make triton-check  a model repository in the real Triton server, on the CPU"
	@echo "make page-check  the page of the service in a real Chromium, by keyboard -> build/page/"
	@echo "make clean      remove what was built; the environment, runs/ and samples/ stay"
	@echo "PYTHON=python3.12 chooses another interpreter for $(VENV)"

# The environment is made once and again only when what it is made from changes.
$(VENV)/.environment: pyproject.toml constraints/cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python constraints/requirements.py bench serve ray store sign rtx lean dev > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -c constraints/cpu.txt -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.environment $(KERNELS) $(VENV)/.packages
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

# An editable install remembers which names are packages: one that becomes a file, or ceases to be, is not found.
$(VENV)/.packages: FORCE | $(VENV)/.environment
	@find $(PACKAGES) -name __init__.py | sort > $@.now
	@cmp -s $@.now $@ && rm $@.now || mv $@.now $@
FORCE:

# Of other projects, what reads their checkpoints in tests: without dependencies, which would replace ours, and where
# nothing else imports it.
$(VENV)/.original_projects: $(VENV)/.environment constraints/original_projects.txt
	rm -rf $(VENV)/original_projects
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/original_projects -r constraints/original_projects.txt
	touch $@

build: $(VENV)/.built $(VENV)/.original_projects

# With --resume, training goes on where it was stopped, and is done at once where it was finished.
demo: build
	$(BIN)/python -m train.run --resume
	$(BIN)/python -m export.to_onnx
	$(BIN)/python -m runtime.sample

# A file is one worker's, so the files that take minutes begin first; xdist would begin with those of many tests.
LONG_TESTS := tests/test_docs.py tests/test_no_network.py tests/test_extras.py tests/test_wheel.py
# OpenVINO's threads have kept a worker of pytest-xdist from ending, so its tests run without workers.
OPENVINO_TESTS := tests/export/test_to_openvino.py tests/runtime/engines/test_openvino_cpu.py tests/fuzz
OTHER_TESTS := $(filter-out $(LONG_TESTS) tests/train/ tests/fuzz/ tests/__pycache__/,$(wildcard tests/*/ tests/test_*.py))
# What runs without workers comes first, two at a time: one core would idle beside each.
test: build
	$(MAKE) --jobs $(JOBS) --output-sync=target --no-print-directory check test-train test-openvino
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(addprefix --ignore=,$(OPENVINO_TESTS)) $(LONG_TESTS) $(OTHER_TESTS)

test-train: build
	$(BIN)/python -m pytest tests/train

test-openvino: build
	for file in $(OPENVINO_TESTS); do $(BIN)/python -m pytest $$file || exit 1; done

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lint: check

docs: build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmark: build
	$(BIN)/python -m benchmarks.kernels --out benchmarks/results/kernels.json
	$(BIN)/python -m benchmarks.chain --out benchmarks/results/chain.json

# On a machine with an NVIDIA GPU, with $(PYTHON) as it is: no environment is made, nothing is installed.
# GPU_CHECK="--out FILE --stages noise step" passes arguments on.
gpu-check:
	@$(PYTHON) -m benchmarks.gpu_check $(GPU_CHECK)

gpu-check-long:
	@$(PYTHON) -m benchmarks.gpu_check --long $(GPU_CHECK)

# GPU_REHEARSAL="--wheels .whl" installs carried wheels first.
gpu-rehearsal: build
	$(BIN)/python -m tests.gpu.rehearsal $(GPU_REHEARSAL)

# Both on the CUDA device in software: docs/decisions/software-device.md.
planted-faults: build
	$(BIN)/python -m tests.kernels.fault_runner

kernel-coverage: build
	$(BIN)/python -m tests.kernels.line_coverage

# atheris has wheels for few versions of Python, and nothing else needs it.
build/fuzz/atheris:
	$(BIN)/python -m pip install --quiet --no-deps --target $@ "atheris>=3,<4"

FUZZ_SECONDS ?= 600
fuzz: build build/fuzz/atheris
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m tests.reader_fuzz

MUTANT_MINUTES ?= 30
mutants: build
	MUTANT_MINUTES=$(MUTANT_MINUTES) $(BIN)/python -m tests.mutants --out benchmarks/results/mutants.json

sanitizers: build
	$(BIN)/python -m tests.kernels.sanitizers

torture: build
	$(BIN)/python -m tests.corpus.runner --out benchmarks/results/bad_inputs.json
	$(BIN)/python -m tests.corpus.runner --fresh --every 25
	$(BIN)/python -m tests.runtime.runs.torture
	$(BIN)/python -m tests.faults.sweep --out benchmarks/results/faults.json
	$(BIN)/python -m tests.changed_bytes --out benchmarks/results/byte_flips.json
	DDPM_RT_SOAK=170 $(BIN)/python -m pytest tests/runtime/serve/test_soak.py
	$(BIN)/python -m pytest -n $(JOBS) -m sweep tests/runtime/engines

# In an environment of its own, build/triton: the server is 55 MB.
triton-check: build
	$(BIN)/python -m tests.runtime.serve.triton_check

# In an environment of its own, build/chromium: 200 MB.
page-check: build
	$(BIN)/python -m tests.runtime.serve.page_check

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis $(VENV)/.built
