# `make` alone lists the targets. Each is a few lines you can type by hand.

export PORT ?= 8000

# Where Python is told not to write compiled modules beside the code, as container images do, they are kept in .venv:
# without any, each process compiles two thousand files before it does anything.
ifdef PYTHONDONTWRITEBYTECODE
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.venv/pycache
endif

BIN := .venv/bin
IMAGE_EXTRAS := scim otel saml archive runner
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-header

# `check --deploy` judges an installation as it should be: public over https, mail that arrives.
DEPLOYED := GATEWAY_PUBLIC_URL=https://gateway.example.com GATEWAY_EMAIL_URL=smtps://mail.example.com \
	GATEWAY_EMAIL_FROM=gateway@example.com \
	GATEWAY_DATA_DIR=$(CURDIR)/.venv/check

.DEFAULT_GOAL := help
.PHONY: help run setup install test test-all test-images coverage bench compat matrix contract lists readme check release format lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## set up whatever is missing, start everything, print where to sign in (PORT=8000); with a runner.yaml its programs, too
	@.ci/setup run
	@exec $(BIN)/python manage.py serve

setup: ## the environment with the development packages; starts nothing
	@.ci/setup dev

PYTEST = chromium=$$(.ci/browser) && CHROMIUM="$$chromium" $(1) pytest -n $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) \
	--durations=10 $(2) $(TESTS)

install: ## what production needs and nothing more; EXTRAS="scim otel" adds optional packages
	@.ci/setup install $(EXTRAS)
	@$(BIN)/python -m compileall -q -j 0 -x '/(\.venv/tools|tests)/' .

test: setup ## the quick tests, and slower ones that alone run some lines; the same tests every day
	@$(call PYTEST,$(BIN)/python -m,-m "not full and not image" --hypothesis-profile=few)

test-all: setup ## every test without containers, on the oldest PostgreSQL; before a release
	@$(call PYTEST,$(BIN)/python -m tests.running.debian $(BIN)/python -m,-m "not image and not sample")

test-images: TESTS = tests/deploy
test-images: setup ## the tests that build images and run containers, as root; before a release
	@$(call PYTEST,$(BIN)/python -m,-m image -n 0)

coverage: TESTS = $(addprefix tests/,approvals contract oauth proxy rules servers sinks tokens wire)
coverage: setup ## that the tests of calls run enough lines and branches of proxy, wire, oauth and tokens; before a release
	@rm -f .coverage*
	@$(call PYTEST,$(BIN)/coverage run -m)
	@$(BIN)/coverage combine --quiet
	@.ci/coverage

bench: setup ## measure what the gateway costs a call: a server alone, nginx before it, this gateway before it
	@$(BIN)/python -m bench $(ARGS)

compat: setup ## the newest uvicorn, Django and others whose private interfaces are used, under the tests that would notice
	@.ci/compat

matrix: setup ## real clients at real servers through the gateway; writes docs/reference/compatibility.md
	@$(BIN)/python -m tests.matrix

lists: setup ## the reference of configuration files and of the log, and a JSON Schema
	@$(BIN)/python -m tests.docs.published

readme: setup ## the names of clients in README.md and connect-a-client.md
	@$(BIN)/python -m tests.docs.client_section

contract: setup ## the REST API against its own description: more than 5,000 made-up requests
	@CONTRACT_CASES=22 $(BIN)/pytest -n auto tests/api/test_contract.py

check: setup ## format, lint, templates, types, layers, image, manifests, deployment, migrations; stops at the first failure
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/djade --check $$(git ls-files 'templates/*.html')
	$(BIN)/mypy .
	$(BIN)/lint-imports
	$(BIN)/hadolint Containerfile deploy/compose/runner.Containerfile
	$(BIN)/kubernetes-validate --quiet --strict -k 1.37 $$(git ls-files 'deploy/kubernetes/*.yaml' | grep -v kustomization)
	$(DEPLOYED) $(BIN)/python manage.py check --deploy --fail-level WARNING
	$(DEPLOYED) $(BIN)/python manage.py makemigrations --check --dry-run

release: setup ## from a clean main: every check and test, then wheel, sdist and checksums in dist/; prints the tag command
	@.ci/release ready
	@$(MAKE) check test test-all test-images coverage
	@.ci/release build

format: setup ## put code and templates into their form
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/djade $$(git ls-files 'templates/*.html')

lock: setup ## resolve the packages of pyproject.toml again, with hashes and without index addresses
	$(LOCK) --extra embedded pyproject.toml -o requirements.lock
	$(LOCK) --constraint requirements.lock pyproject.toml -o requirements-image.lock
	$(LOCK) --all-extras --group dev --constraint requirements.lock pyproject.toml -o requirements-dev.lock
	$(LOCK) --group build --constraint requirements-dev.lock -o requirements-build.lock
	for extra in $(IMAGE_EXTRAS); do $(BIN)/python .ci/extra "$$extra" | \
		$(LOCK) --no-annotate --constraint requirements-dev.lock - -o "requirements-$$extra.lock" || exit; done
