# Two commands from a fresh clone: `make demo` and `make test`. They need make and Python >= 3.11, and install the rest.
# Recipes are POSIX sh, and make 3.81 suffices.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo cells test test-slow test-all test-oldest lint docs docs-serve tables bench accelerator \
	release-check clean

# --- which Python, which environment ---------------------------------------------------------------------------------

# Each candidate is run, since a version manager's shim exists even for a version that is switched off.
# The probe prints the version and exits with 3 if it is too old, with 1 if it cannot create an environment.
probe := import sys; sys.stdout.write("%d.%d" % sys.version_info[:2]); \
	sys.version_info >= (3, 11) or sys.exit(3); import venv, ensurepip
# pyenv's shim of a version that is switched off does not run; the interpreter in pyenv's folder does.
pyenv_versions = $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/$(PYTHON:python%=%)*/bin/$(PYTHON))
candidates := $(if $(PYTHON),"$(PYTHON)" $(if $(filter python3.%,$(PYTHON)),$(pyenv_versions)),python3 python3.13 python3.12 python3.11 python3.14 python)

define find_python
old=; bare=; \
for python in $(candidates); do \
	version=$$("$$python" -S -E -c '$(probe)' 2>/dev/null </dev/null); code=$$?; \
	case "$$code:$$version" in \
		(0:*) echo "found $$version $$python"; exit ;; \
		(3:*) old="$$old$${old:+, }$$python is $$version" ;; \
		(*:3.*) bare="$${bare:-$$version $$python}" ;; \
	esac; \
done; \
if [ -n "$$bare" ]; then echo "bare $$bare"; else echo "none - $$old"; fi
endef

ifneq ($(filter-out help clean,$(or $(MAKECMDGOALS),help)),)
found := $(shell $(find_python))
status := $(word 1,$(found))
version := $(filter-out -,$(word 2,$(found)))
python := $(if $(filter found bare,$(status)),$(wordlist 3,99,$(found)),$(PYTHON))

# .venv belongs to the default Python. Each other version has an environment of its own, such as .venv-3.12.
venv_version = $(shell .venv/bin/python -S -E -c '$(probe)' 2>/dev/null)
venv := $(if $(and $(version),$(filter-out $(version),$(or $(venv_version),$(if $(PYTHON),none)))),.venv-$(version),.venv)
stamp := $(venv)/.jaxkd-installed
intact := $(shell [ "$$(cat $(stamp) 2>/dev/null)" = "$$(pwd -P)" ] && $(venv)/bin/python -c 'import pip' >/dev/null 2>&1 && echo yes)

no_python = no Python >= 3.11 $(if $(PYTHON),in PYTHON=$(PYTHON),on PATH) ($(or $(wordlist 3,99,$(found)),$(if $(PYTHON),it does not run,none at all))). \
	Install one (Debian, Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12
no_venv = $(python) (Python $(version)) lacks the venv and ensurepip modules, which create an environment. \
	Debian, Ubuntu: apt install python$(version)-venv. Or name another: make PYTHON=/path/to/python3.12
ifneq ($(status),found)
ifneq ($(if $(PYTHON),,$(intact)),yes)
$(error $(strip $(if $(filter bare,$(status)),$(no_venv),$(no_python))))
endif
endif
endif

# --- the environment -------------------------------------------------------------------------------------------------

PY = $(venv)/bin/python

# The stamp holds the path at which the environment was installed, and is written only after pip has succeeded. Without a
# stamp, a $(venv) with the mark was interrupted and is created again; one without the mark was created by somebody
# else, and is completed if it works.
define make_environment
say() { echo "setup: $$*"; }
fail() { say "$$*" >&2; exit 1; }
works() { $(PY) -c 'import pip' >/dev/null 2>&1; }
trap 'exit 130' INT; trap 'exit 143' TERM HUP
stamp=$(stamp) mark=$(venv)/.jaxkd-setup log=$(venv)/setup.log here=$$(pwd -P) reason=
base=$$("$(python)" -c 'import sys; print(getattr(sys, "_base_executable", "") or sys.executable)' 2>/dev/null) || base='$(python)'

# One setup at a time. This shell and its children hold the lock: the kernel releases it when the last of them ends.
exec 9< Makefile
lock() {
	"$$base" -c 'if True:
		import fcntl, sys
		try: fcntl.flock(9, fcntl.LOCK_EX | (fcntl.LOCK_NB if "now" in sys.argv else 0))
		except BlockingIOError: sys.exit(75)
		except OSError: pass  # a file system without locks' $${1-} 9<&9
}
code=0; lock now || code=$$?
if [ $$code -eq 75 ]; then
	say "another make is setting up $(venv) or another environment here; waiting for it"
	lock || :
	if [ $$stamp -nt pyproject.toml ]; then exit 0; fi
fi

if [ -e $$stamp ]; then
	if [ "$$(cat $$stamp)" != "$$here" ]; then reason="was made in $$(cat $$stamp)"
	elif ! works; then reason="is broken (its Python or pip no longer runs)"; fi
elif [ -e $$mark ]; then reason="is half-made (an earlier setup failed or was interrupted)"
elif [ -e $(venv) ] && ! works; then reason="is half-made (it has no Python with pip that runs)"; fi
if [ -n "$$reason" ]; then say "$(venv) $$reason; making it again"; rm -rf $(venv); fi

if [ ! -e $(venv) ]; then
	say "making $(venv) with Python $(version) ($$base)"
	rm -f $(venv); mkdir $(venv) && : > $$mark || fail "cannot write $$here/$(venv); make the folder writable"
	"$$base" -m venv $(venv) > $$log 2>&1 || { tail -n 3 $$log >&2; fail "'$$base -m venv' failed (its output: $$log)"; }
fi

echo "$$here" > $$stamp.new
if [ -e $$stamp ]; then
	mv $$stamp $$stamp.old
	say "pyproject.toml has changed; installing again into $(venv)"
else
	say "installing jaxkd-toolkit[dev] into $(venv): JAX, Flax, TFDS, matplotlib, pytest ... (about a minute)"
fi
code=0
PIP_USER=0 $(PY) -m pip install --no-input --disable-pip-version-check --progress-bar off -e '.[dev]' > $$log 2>&1 || code=$$?
if [ $$code -ne 0 ]; then
	[ $$code -lt 128 ] || fail "pip was killed (signal $$((code - 128))); run make again"
	if [ -e $$stamp.old ]; then mv $$stamp.old $$stamp; fi
	sed -n 's/^ *\([A-Za-z]*[Ee][Rr][Rr][Oo][Rr]: .*\)/pip: \1/p' $$log | tail -n 1 >&2
	fail "pip could not install (its output: $$log). Check the network, or the index pip uses (PIP_INDEX_URL), and run make again"
fi
mv $$stamp.new $$stamp; rm -f $$stamp.old
endef

ifdef stamp
setup: $(stamp)  ## create .venv and install the dependencies (PYTHON=python3.12 creates .venv-3.12)
	@:
$(stamp): export script = $(make_environment)
$(stamp): pyproject.toml $(if $(intact),,force)
	@sh -euc "$$script"
.PHONY: force
endif

# --- the targets -----------------------------------------------------------------------------------------------------

help:  ## list the targets
	@echo 'usage: make TARGET [PYTHON=python3.12] [ARGS="..."]'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  %-13s %s\n' $$name "$$text"; done

demo: setup  ## distill on real handwritten digits: a few minutes, results in runs/digits (ARGS="--help" for its options)
	$(PY) -m experiments.digits $(ARGS)

cells: setup  ## run what is left of the reduced CIFAR-100 protocol, resumable (ARGS="--data-dir DIR --workers 2")
	$(PY) -m experiments.cells $(ARGS)

pytest = $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

test: setup  ## run the tests and doctests that are not marked slow (ARGS="-k name" for some of them)
	$(pytest) -m "not slow" $(ARGS)

test-slow: setup  ## run the tests marked slow: large networks, killed processes, several hosts, whole experiments
	$(pytest) -m slow $(ARGS)

test-all: setup  ## run every test and doctest
	$(pytest) $(ARGS)

oldest := .venv-oldest
# The lower bounds of pyproject.toml, as exact versions; what they depend on is chosen by pip.
bounds := import tomllib; print(*(r.replace(">=", "==") for r in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] \
	if r.startswith(("jax>", "flax>", "optax>", "orbax"))))

test-oldest: setup  ## run the tests of losses, objectives and the step on the oldest versions that pyproject.toml permits
	@[ $(oldest)/.installed -nt pyproject.toml ] || { rm -rf $(oldest) && $(PY) -m venv $(oldest) && \
	$(oldest)/bin/python -m pip install --quiet --disable-pip-version-check -e . $$($(PY) -c '$(bounds)') \
		pytest pytest-xdist hypothesis chex scipy grain && : > $(oldest)/.installed; }
	$(oldest)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup -m "not slow" \
		tests/losses tests/objectives tests/distillers tests/core jaxkd/losses jaxkd/objectives jaxkd/distillers $(ARGS)

lint: setup  ## ruff check, ruff format --check, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

mkdocs = NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs

docs: setup  ## build the documentation site into build/site; a broken link is an error
	$(mkdocs) build --strict $(ARGS)

docs-serve: setup  ## show the site on http://127.0.0.1:8000 and build it again when a page changes
	$(mkdocs) serve $(ARGS)

tables: setup  ## write the tables of the pages anew, from the committed results
	$(PY) -m experiments.tables $(ARGS)

bench: setup  ## run the benchmarks: steps, cached teachers, peers, tokens, placement, memory, losses, seeds
	$(PY) -m benchmarks.step $(ARGS)
	$(PY) -m benchmarks.cached
	$(PY) -m benchmarks.peers
	$(PY) -m benchmarks.tokens
	$(PY) -m benchmarks.placement
	$(PY) -m benchmarks.memory
	$(PY) -m benchmarks.losses
	$(PY) -m benchmarks.seeds
	$(PY) -m benchmarks.freed_memory
	$(PY) -m benchmarks.compile_time
	$(PY) -m benchmarks.convolutions
	$(PY) -m benchmarks.which_method
	$(PY) -m benchmarks.scale

release-check: setup  ## build sdist and wheel into dist/, check them, and use the wheel in a bare environment
	rm -rf dist .venv-bare && $(PY) -m hatchling build -d dist
	JAXKD_DIST=dist $(PY) -m pytest tests/packaging/release_test.py
	$(PY) -m venv .venv-bare && .venv-bare/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	.venv-bare/bin/python tests/packaging/bare.py README.md

accelerator: setup  ## measure one GPU or TPU in at most nine minutes, resumable (ARGS="--data-dir DIR")
	$(PY) -m benchmarks.accelerator $(ARGS)

clean:  ## remove environments, caches and the built site, not runs/
	rm -rf build/site dist .venv .venv-* .jax_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
