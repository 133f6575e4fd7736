# `make demo` runs the main job, `make test` all checks, `make fashion` all steps on real images, in
# hours. Each sets up everything.
PYTHON ?= python3
PORT ?= 8080
TEST_PROCESSES ?= 2
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint fashion clean

demo: $(INSTALLED)
	$(VENV)/bin/spaceevo demo --port $(PORT)

test: lint browser sshd
	$(VENV)/bin/python -m pytest -m "not experiment" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
	$(VENV)/bin/python -m pytest -m experiment

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

fashion: $(INSTALLED) images
	$(VENV)/bin/python examples/fashion_mnist/chain.py

# The four files of FashionMNIST; a folder elsewhere is named in the job file.
.PHONY: images
images:
	@[ -d /usr/share/datasets/fashion-mnist ] \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist; } \
	|| echo "FashionMNIST is not installed: apt-get install dataset-fashion-mnist"

# The web UI's test needs a browser; without one, and without the right to install it, it skips.
.PHONY: browser
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium; } \
	|| echo "No browser: the web UI test will say that it skips."

# The test of distillation on several machines needs a server to log in to; it skips without one.
.PHONY: sshd
sshd:
	@[ -x /usr/sbin/sshd ] \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq openssh-server; } \
	|| echo "No sshd: the test of NNI's remote platform will say that it skips."

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist examples/*/work
