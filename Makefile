# Works on a fresh machine that has only Python 3.11 or newer, make and git: every target sets up .venv when it needs it.

READY := .venv/ready

# The first of these that is new enough and can make virtual environments; name another one: make PYTHON=/path/to/python
SUITS = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c '$(SUITS)' 2>/dev/null && echo $$python && break; done)

# A virtual environment holds absolute paths, so one that was moved or copied here is made anew.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(shell rm -f $(READY))
endif

.PHONY: help demo check test style types tests test-avx2 test-sse41 docs wheel clean

help:
	@echo 'make demo   train, choose, extract and export a network on real data that needs no download (under 2 minutes)'
	@echo 'make test   run every check: ruff, mypy, pytest'
	@echo 'make test-avx2, make test-sse41   run the tests of training, data and documentation as on an older processor'
	@echo 'make check  the quick half of it: no test of tests/slow.txt, those that take more than a second'
	@echo 'make wheel  build source distribution and wheel, and try the wheel in an empty environment'
	@echo 'make docs   build the documentation as a site, in build/site'
	@echo 'make clean  remove what make and the tools left behind; runs/ and downloaded data stay'
	@echo 'The first use makes a virtual environment in .venv, with the versions in constraints.txt.'

demo: $(READY)
	.venv/bin/python examples/demo.py

# A process for each core, and one thread in each: the tests' networks are tiny, and on a busy machine torch's threads wait
# for each other many times longer. A file's tests stay together, for what they share is made once; files go in the order
# of their names, for xdist's own order keeps those of few tests for the end, and these take longest. What is compiled is
# kept, also where the environment has Python compile anew in each process: of the tests that takes seven seconds.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv/bin/pytest -q -rs -n auto --dist loadfile --no-loadscope-reorder

test check: style
test:
	@$(MAKE) --no-print-directory --jobs=2 types tests
check:
	@$(MAKE) --no-print-directory --jobs=2 types tests CHOICE="-m 'not slow'"

style: $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check

# Beside the tests, for it is one process, and on a fresh machine takes a minute.
types:
	.venv/bin/mypy

tests:
	$(PYTEST) $(CHOICE)

# The tests of what older processors have got wrong; all of them: make test-avx2 TESTS=tests
TESTS ?= $(addprefix tests/test_,$(addsuffix .py,channels_last data data_batches data_readers data_sources distributed \
	docs golden loop objective precision resume shrink shrink_distributed statistics))

test-avx2: $(READY)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) $(TESTS)

test-sse41: $(READY)
	ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default $(PYTEST) $(TESTS)

# In an environment of its own, for MkDocs and its plugins are of no use to anything else here.
docs:
	@[ -e build/docs/bin/mkdocs ] || '$(PYTHON)' -m venv build/docs
	build/docs/bin/python -m pip install --quiet --disable-pip-version-check mkdocs==1.6.1 mkdocs-material==9.8.2 'mkdocstrings[python]==1.0.8'
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict --quiet
	@echo 'build/site/index.html'

wheel:
	PYTHON='$(PYTHON)' .ci/wheel

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last and removed first: an environment whose set-up was interrupted has none and is started over.
$(READY): pyproject.toml constraints.txt
	@'$(PYTHON)' -c '$(SUITS)' 2>/dev/null || { echo >&2 \
	  'error: Python 3.11 or newer that can make virtual environments is needed; found $(or $(PYTHON),none).' \
	  'Install one (Debian, Ubuntu: python3 and python3-venv) or name it: make PYTHON=/path/to/python'; exit 1; }
	@echo 'Setting up .venv with $(PYTHON): a minute or more, mostly torch ...'
	@[ -e $@ ] || '$(PYTHON)' -m venv --clear .venv
	@rm -f $@
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,onnx,openvino,serve,dev]'
	@echo '$(CURDIR)' > $@
