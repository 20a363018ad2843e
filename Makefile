# The only door a newcomer needs: `make demo`, `make test`, `make help`.
#
# Everything Python goes into .venv, which the first call makes and later calls
# reuse. A stamp in it says that lowbit is built and that the extra of that
# name in pyproject.toml is installed; it is renewed when the Rust sources or
# pyproject.toml change. Python sources are used in place.

PYTHON ?= python3
VENV ?= .venv
CARGO ?= cargo

BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
PY := $(BIN)/python
SOURCES := pyproject.toml Cargo.toml Cargo.lock $(shell find rust -path '*/target' -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print)
TARGET := $(shell rustc -vV 2>/dev/null | sed -n "s/^host: //p")
DIST := dist

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-rust test-python bench build wheel lint format fuzz fuzz-rust fuzz-readers asan valgrind neon emulate clean

help: ## what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## build, then an int8 sentence encoder beside fp32, bf16 and the peers that are installed
	$(BIN)/lowbit demo

test: test-rust test-python ## build, then the Rust and the Python tests

test-rust: | rust
	$(CARGO) test --workspace -- --show-output

test-python: $(VENV)/.test
	$(PY) -m pytest -q

# Into an empty environment, where PATH has its Python and nothing else: no compiler.
wheel: | $(BIN)/maturin rust ## build the wheel into dist/, check it and try it in an empty environment
	rm -rf $(DIST)
	$(BIN)/maturin build --release --locked --out $(DIST)
	$(PY) tests/check_module.py $(DIST)/*.whl
	$(PYTHON) -m venv $(DIST)/empty
	cd $(DIST)/empty && export PATH="$$PWD/bin" && \
	  pip install --quiet --only-binary :all: "$$(echo ../*.whl)[cli]" && \
	  python -c 'import lowbit; print("lowbit", lowbit.__version__, "on", lowbit.isa())' && \
	  lowbit doctor && \
	  lowbit demo kernels

lint: $(VENV)/.test ## formatting, clippy, ruff, mypy, and _core.pyi against the built module
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	echo 'lowbit\._core\.__all__' | $(PY) -m mypy.stubtest --concise --mypy-config-file pyproject.toml --allowlist /dev/stdin lowbit._core

format: $(VENV)/.test ## put the sources into the form that lint asks for
	$(CARGO) fmt
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

BENCH ?=

bench: $(VENV)/.bench ## install the peers, measure every family beside them, keep the tables; BENCH=--quick in minutes
	$(PY) benches/record.py $(BENCH)

# Sanitizers are unstable; RUSTC_BOOTSTRAP lets the stable compiler have them.
UNSTABLE = RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/sanitizers

asan: | rust ## the kernels' tests under AddressSanitizer, on every instruction set of this CPU
	$(UNSTABLE) RUSTFLAGS=-Zsanitizer=address $(CARGO) test --package lowbit-kernels --lib --target $(TARGET) -- --show-output

valgrind: | rust ## the kernels' tests under valgrind, which has no AVX-512
	LOWBIT_CASES=$${LOWBIT_CASES:-40} CARGO_TARGET_$(shell echo $(TARGET) | tr a-z- A-Z_)_RUNNER="valgrind --quiet --error-exitcode=97 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite" \
	  $(CARGO) test --package lowbit-kernels --lib --target $(TARGET) -- --show-output --test-threads=1

# AArch64's standard library is the compiler's in use (rustup), or that of Debian's rustc-web.
ARM := aarch64-unknown-linux-gnu
ARM_CPUS ?= max neoverse-n1 cortex-a53
arm_std = $(wildcard $(shell $(1) --print sysroot 2>/dev/null)/lib/rustlib/$(ARM)/lib/libstd-*.rlib)
arm_rustc = $(firstword $(foreach rustc,rustc /usr/bin/rustc,$(if $(call arm_std,$(rustc)),$(rustc))))
# The cross compiler's libc beside Debian's own for arm64 would be two halves that do not fit.
ARM_LIBC := $(if $(wildcard /lib/ld-linux-aarch64.so.1),,-L /usr/aarch64-linux-gnu)
ARM_CARGO = PATH=$(if $(filter /%,$(arm_rustc)),/usr/bin:)$$PATH CARGO_TARGET_DIR=target/neon \
  LOWBIT_CASES=$${LOWBIT_CASES:-60} CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc $(CARGO)

neon: | rust ## the kernels' clippy and tests for AArch64, on emulated CPUs with dot products (max, neoverse-n1) and without
	@test -n "$(arm_rustc)" || { echo "make: no standard library for $(ARM): rustup target add $(ARM), or Debian's packages in CONTRIBUTING.md" >&2; exit 1; }
	@for tool in aarch64-linux-gnu-gcc qemu-aarch64 $(if $(filter /%,$(arm_rustc)),/usr/bin/cargo /usr/bin/clippy-driver); do \
	  command -v $$tool >/dev/null || { echo "make: $$tool not found: CONTRIBUTING.md names its package" >&2; exit 1; }; done
	$(ARM_CARGO) clippy --package lowbit-kernels --all-targets --target $(ARM) -- -D warnings
	for cpu in $(ARM_CPUS); do echo "== $$cpu"; \
	  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $$cpu $(ARM_LIBC)"; \
	  $(ARM_CARGO) test --package lowbit-kernels --lib --target $(ARM) -- --show-output || exit 1; \
	done

EMULATE ?= groups_that_just_fit wider_products bytes_hold rules_hold

emulate: | rust ## the kernels' tests of these names (EMULATE=) on an emulated CPU with AVX-512 VNNI
	CARGO_TARGET_$(shell echo $(TARGET) | tr a-z- A-Z_)_RUNNER="$(CURDIR)/tests/emulate.sh" \
	  $(CARGO) test --package lowbit-kernels --lib --target $(TARGET) -- --show-output --test-threads=1 $(EMULATE)

FUZZ_SECONDS ?= 60

fuzz: fuzz-rust fuzz-readers ## every fuzz target and the readers of files for FUZZ_SECONDS (60) each; needs cargo-fuzz

fuzz-rust: | rust
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo "make: cargo-fuzz not found: cargo install cargo-fuzz --locked" >&2; exit 1; }
	for target in $$(RUSTC_BOOTSTRAP=1 $(CARGO) fuzz list --fuzz-dir rust/kernels/fuzz); do \
	  RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir rust/kernels/fuzz $$target -- -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=4096 || exit 1; \
	done

fuzz-readers: $(VENV)/.test
	$(PY) tests/fuzz_readers.py --seconds $(FUZZ_SECONDS)

build: $(VENV)/.build ## the environment and the module alone

# Editable: the module is put beside the Python sources, and those are used in place.
install = $(PY) -m pip install --quiet --no-build-isolation --editable

$(VENV)/.build: $(SOURCES) | $(BIN)/maturin rust
	$(install) .
	@touch $@

# spikingjelly asks for a torchaudio, which is built for another CUDA than torch is and then lets no
# transformers load; its neurons do without, and with loguru and torchvision, which the extras have.
$(VENV)/.demo $(VENV)/.test $(VENV)/.bench: $(VENV)/.%: $(SOURCES) | $(BIN)/maturin rust
	@echo "installing the extra '$*' into $(VENV) and building lowbit; the first time takes some minutes"
	$(install) '.[$*]'
	$(if $(filter demo,$*),,$(PY) -m pip install --quiet --no-deps spikingjelly)
	@touch $@ $(VENV)/.build

# hqq's setup asks for torch, which has to be there first.
$(VENV)/.bench: | $(VENV)/.test

# Without isolation builds use what is here: maturin for lowbit, the others for norse and hqq.
$(BIN)/maturin: | $(PY)
	$(PY) -m pip install --quiet 'maturin>=1.9,<2' 'setuptools>=70.1' 'setuptools_scm>=8'

$(PY):
	$(PYTHON) -m venv $(VENV)

.PHONY: rust
rust:
	@command -v $(CARGO) >/dev/null || { echo "make: cargo not found: install Rust $$(sed -n 's/^rust-version = //p' Cargo.toml) or later" >&2; exit 1; }

clean: ## remove what was built, .venv too
	rm -rf $(VENV) target $(DIST) python/lowbit/_core*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python tests -name __pycache__ -type d -prune -exec rm -rf {} +
