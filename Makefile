# make book   set everything up, build the pages, serve them on this machine
# make site   the same without serving: the pages are in _docs/
# make test   set everything up, run every test
#
# Needs Python 3.11 or newer; choose one with `make test PYTHON=python3.12`.
# After the first set-up nothing needs a network.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
export OMP_NUM_THREADS ?= 1# notebooks run side by side, one core each

.PHONY: help book site test notebooks wheel prepare clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

book: $(READY)
	@$(BIN)/python tools/site.py --serve

site: $(READY)
	@$(BIN)/python tools/site.py

test: $(READY) notebooks
	$(BIN)/python -m pytest tests

# Each notebook twice: with nbdev's own command, as a test, and in full, to
# see whether what it prints is still what is stored in it.
notebooks: $(READY)
	$(BIN)/nbdev_test --timing
	$(BIN)/python tools/outputs.py check

# The package alone: built, installed with the newest release of all it needs
# into an empty environment, and used from another folder.
wheel: $(READY)
	@sh tools/try_wheel.sh $(BIN)/python

# Before a commit: modules, their stubs, clean notebooks, README.
prepare: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/python tools/stubs.py
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

$(READY): pyproject.toml constraints.txt tools/environment.sh
	@PYTHON="$(PYTHON)" sh tools/environment.sh $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) _docs _proc build dist *.egg-info
