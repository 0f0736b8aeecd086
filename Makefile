# Everything a newcomer or CI needs; `make help` says what.
.DEFAULT_GOAL := help
.PHONY: help setup run test torture fuzz check bench clean qemu image test-tools test-peers

PYTHON ?= python3
BIN := .venv/bin
# One more than processors: those with the BOINC client mostly wait.
TESTS_AT_ONCE ?= $(shell expr $$(nproc) + 1)
INSTALL_QEMU := apt-get install -y --no-install-recommends qemu-system-x86 qemu-utils
INSTALL_TEST_TOOLS := apt-get install -y --no-install-recommends mmdebstrap grub-common grub-pc-bin e2fsprogs \
	boinc-client fuse3 binutils genisoimage openssl podman runc busybox-static golang-go golang-github-vmware-govmomi-dev \
	gcc flex bison bc xz-utils lz4 libelf-dev

help:  ## show this
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(BIN)/.ready qemu image  ## vmwrapper in .venv, QEMU, and the default guest

run: setup  ## run examples/job.xml in a virtual machine
	$(BIN)/vmwrapper run examples/job.xml
	@cat examples/hubble.out

test: setup test-tools test-peers  ## all tests; REQUIRE=qemu fails where those could not be run
	$(BIN)/pytest --numprocesses=$(TESTS_AT_ONCE) --dist=worksteal $(addprefix --require=,$(REQUIRE))

torture: setup test-tools test-peers  ## harm jobs at every moment: ROUNDS=200, CUTS=100 of power, CHECKPOINTS=2000, LIVES=50
	@mkdir -p build
	$(BIN)/python -m tests.torture --rounds $(or $(ROUNDS),200) $(addprefix --seed=,$(SEED)) --json build/torture.json
	$(BIN)/python -m tests.torture.power_cuts --cuts $(or $(CUTS),100) $(addprefix --seed=,$(SEED))
	$(BIN)/python -m tests.torture.long_run --checkpoints $(or $(CHECKPOINTS),2000) --json build/long-run.json
	$(BIN)/python -m tests.torture.virtualbox --lifecycles $(or $(LIVES),50) $(addprefix --seed=,$(SEED))

fuzz: $(BIN)/.ready-test  ## feed the parsers for an hour: FUZZ=100000 cases for each test
	FUZZ=$(or $(FUZZ),100000) $(BIN)/pytest -m fuzz

check: $(BIN)/.ready-test  ## style, types and the order of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup $(BIN)/.ready-test  ## measure against bare QEMU: a table, and build/bench.json; ONLY=virtualbox
	@mkdir -p build
	$(BIN)/python -m tests.bench --json build/bench.json $(addprefix --only=,$(ONLY))

clean:  ## remove what this file made here (the default guest stays in the cache folder)
	rm -rf .venv build .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	rm -f examples/hubble.out
	find vmwrapper tests -name __pycache__ -prune -exec rm -r {} +

$(BIN)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vmwrapper needs Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "Python's venv is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(BIN)/.ready-test: $(BIN)/.ready
	$(BIN)/pip install --quiet --editable '.[test,dev]'
	@touch $@

qemu:
	@command -v qemu-system-x86_64 >/dev/null && command -v qemu-img >/dev/null || \
	if [ "$$(id -u)" = 0 ]; then apt-get update && $(INSTALL_QEMU); \
	else echo "QEMU is missing. As root: $(INSTALL_QEMU)"; exit 1; fi

test-tools:
	@command -v mmdebstrap >/dev/null && command -v grub-mkimage >/dev/null && test -d /usr/lib/grub/i386-pc && \
	command -v boinc >/dev/null && command -v fusermount3 >/dev/null && \
	command -v ld >/dev/null && command -v genisoimage >/dev/null && command -v openssl >/dev/null && \
	command -v go >/dev/null && command -v podman >/dev/null && command -v runc >/dev/null && \
	command -v busybox >/dev/null && test -d /usr/share/gocode/src/github.com/vmware/govmomi && \
	command -v gcc >/dev/null && command -v flex >/dev/null && command -v bison >/dev/null && command -v bc >/dev/null && \
	command -v lz4 >/dev/null && command -v xz >/dev/null && test -e /usr/include/libelf.h || \
	if [ "$$(id -u)" = 0 ]; then apt-get update && $(INSTALL_TEST_TOOLS); \
	else echo "Tests with a Debian disk, the BOINC client, power cuts, VirtualBox or vSphere will be skipped. As root: $(INSTALL_TEST_TOOLS)"; fi

test-peers: test-tools $(BIN)/.ready-test
	@$(BIN)/python -m tests.peers.virtualbox_chroot >/dev/null
	@$(BIN)/python -m tests.peers.vcsim >/dev/null
	@$(BIN)/python -m tests.peers.virtualbox_linux >/dev/null

image: $(BIN)/.ready
	@$(BIN)/vmwrapper image build
