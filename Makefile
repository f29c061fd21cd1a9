# What can be done here? `make` lists it. Everything runs from a fresh clone on Debian 12 with python3 and apt, as root.

VENV    ?= .venv
PYTHON  := $(VENV)/bin/python
DEV     := $(VENV)/.dev-installed
DOCKER  := $(VENV)/docker/usr/bin/docker
DEBIAN  := $(VENV)/cache/debian
PROMETHEUS := $(VENV)/prometheus/usr/bin/prometheus
CNI     := $(VENV)/cni/usr/lib/cni/bridge
RELEASE := $(VENV)/.release-tools-installed
LOWEST  := $(VENV)/lowest
LAB     := netns-lab/lab
# Built once, some minutes long, and outside of this folder: it is the same for every checkout.
KUBE    = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/flannelpy/kubernetes-$(KUBERNETES)

NAME    ?= fl
HOSTS   ?= 3
BACKEND ?= vxlan
ETCD    ?= 1
ROUNDS  ?= 5
MINUTES ?= 10
FLOOD   ?= 10
FLANNEL ?= v0.28.9
KUBERNETES ?= v1.37.2
# Test files side by side: those of the lab wait more than they work, so that it is one more than a machine of two cores has.
JOBS    ?= 3

# What the lab, the tests and the agent use on a Debian machine: the command that shows it is there, and its package.
NEEDED  := ip:iproute2 ping:iputils-ping nft:nftables tcpdump:tcpdump iperf3:iperf3 ethtool:ethtool ps:procps modprobe:kmod \
           openssl:openssl nsenter:util-linux systemd-analyze:systemd systemd-nspawn:systemd-container cc:build-essential \
           iptables:iptables dmsetup:dmsetup
# Unpacked, not installed: an installed Docker starts, and changes the firewall of the machine. It needs iptables and dmsetup's library.
DOCKER_PACKAGES := docker.io containerd runc busybox-static
CNI_PACKAGES    := containernetworking-plugins podman conmon crun libgpgme11 libassuan0 libsubid4 libyajl2 libseccomp2

# Of all that lies in dist/: sha256sum -c SHA256SUMS there.
SUMS := cd dist && find . -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum >SHA256SUMS

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export DEBIAN_FRONTEND := noninteractive
SHELL := /bin/sh

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types unit test-kernels kubernetes test-kube bench-kube format lab lab-down bench-agent bench-udp bench-guard bench-registry soak-udp churn gallery chaos flood etcds flanneld prometheus fuzz dist deb image test-package test-image pins test-lowest clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  make lab takes HOSTS=$(HOSTS) BACKEND=$(BACKEND) ETCD=$(ETCD) NAME=$(NAME)"

setup: $(DEV) $(DOCKER) $(CNI) ## install what is missing: Debian packages (as root) and .venv
	@echo "ready: $(VENV)"

demo: $(DEV) ## three hosts, a real etcd, every container pings every other
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab demo

test: lint types $(DOCKER) $(CNI) ## lint, types, all tests but those that take QEMU (make test-kernels) or Kubernetes (make test-kube)
	$(PYTHON) -m pytest -q -n $(JOBS) --dist loadfile --ignore=tests/kernels --ignore=tests/kube

lint: $(DEV) ## style of the code
	$(PYTHON) -m ruff check . $(LAB)
	$(PYTHON) -m ruff format --check . $(LAB)

types: $(DEV) ## types of the code
	$(PYTHON) -m mypy -p flannelpy -p backends -p netns_lab
	MYPYPATH=packaging/debian $(PYTHON) -m mypy packaging/debian/*.py
	MYPYPATH=packaging/image $(PYTHON) -m mypy packaging/image/*.py

unit: $(DEV) ## tests that need no privileges
	$(PYTHON) -m pytest -q tests/unit

test-kernels: $(DEV) ## udp by the kernel, wireguard and ipip, in guests with Debian's own (QEMU, ten minutes)
	$(PYTHON) -m pytest -q -s tests/kernels

kubernetes: ## Kubernetes' own programs for make test-kube, built with Go 1.26 into ~/.cache/flannelpy (a quarter of an hour, once)
	@tests/kube/build.sh $(KUBERNETES) $(KUBE)

test-kube: image kubernetes $(DOCKER) $(CNI) ## the image and the manifests in a real Kubernetes of three nodes (ten minutes)
	KUBERNETES_PROGRAMS=$(KUBE) FLANNELPY_IMAGE=$$(ls -t $(CURDIR)/dist/flannelpy_*.oci.tar | head -n 1) $(PYTHON) -m pytest -q tests/kube

format: $(DEV) ## put the code into its form
	$(PYTHON) -m ruff check --fix . $(LAB)
	$(PYTHON) -m ruff format . $(LAB)

lab: $(DEV) ## a lab that stays: HOSTS=3 BACKEND=vxlan ETCD=1 NAME=fl
	@$(LAB) up --name $(NAME) --hosts $(HOSTS) --backend $(BACKEND) --etcd $(ETCD)

lab-down: ## take the lab away
	@$(LAB) down --name $(NAME)

bench-agent: $(DEV) ## how fast the agent is
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab bench_agent

bench-udp: $(DEV) ## how fast udp in user space is, beside a C pump and VXLAN: ROUNDS=5
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab bench_udp --rounds $(ROUNDS)

bench-kube: $(DEV) ## what 1,000 nodes of Kubernetes and their heartbeats cost an agent
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab.bench_kube

bench-guard: $(DEV) ## what source validation costs a vxlan host, at 10 and 10,000 peers: ROUNDS=5
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab.bench_guard --rounds $(ROUNDS)

soak-udp: $(DEV) ## does udp in user space hold for long: traffic of all kinds for MINUTES=10
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab soak_udp --minutes $(MINUTES)

gallery: $(DEV) ## put every fault into a lab (BACKEND=vxlan, udp, host-gw), and see what the agents say of it
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab gallery --backend $(BACKEND)

churn: $(DEV) ## what veth pairs that come and go cost the agent: 2,000 a minute, 3 and 5,000 peers
	@for peers in 3 5000; do \
		CHURN_PAIRS=2000 CHURN_PER_SECOND=33.4 CHURN_PEERS=$$peers $(PYTHON) -m pytest -q -s tests/lab/test_host_churn.py || exit 1; \
	done

chaos: $(DEV) ## random faults of etcd, kernel and hosts, and does everything converge: SEED= MINUTES=10 BACKEND=vxlan
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab.chaos --minutes $(MINUTES) --backend $(BACKEND) $(if $(SEED),--seed $(SEED))

flood: $(DEV) ## floods of keys in etcd, FLOOD=10 times as large as in the tests: memory, log, time
	FLOOD=$(FLOOD) $(PYTHON) -m pytest -q -s -o timeout=3600 tests/lab/test_flood.py

etcds: $(DEV) ## etcd 3.6 and 3.7 for the contract tests, built with Go 1.26 into $(VENV)/cache (two minutes)
	@for version in 3.6.6 3.7.3; do \
		into=$(CURDIR)/$(VENV)/cache/etcd-$${version%.*}; [ -x $$into/etcd ] && continue; \
		work=$$(mktemp -d) && mkdir -p $$into && cd $$work && go mod init etcds && go get -tool go.etcd.io/etcd/server/v3@v$$version \
			&& go build -o $$into/etcd go.etcd.io/etcd/server/v3 || exit 1; cd / && rm -rf $$work; \
	done

prometheus: $(PROMETHEUS) ## fetch Prometheus, so that its tests run

flanneld: $(DEV) ## real flanneld for the tests of mixed clusters, built with Go into $(VENV)/cache (some minutes)
	@into=$(CURDIR)/$(VENV)/cache; [ -x $$into/flanneld ] && exit; \
	work=$$(mktemp -d) && trap 'cd / && rm -rf '$$work EXIT && mkdir -p $$into && cd $$work && go mod init flanneld \
		&& sdk=github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud \
		&& go mod edit -replace $$sdk/vpc=$$sdk/vpc@v1.1.14 -replace $$sdk/common=$$sdk/common@v1.1.15 \
		&& go get github.com/flannel-io/flannel@$(FLANNEL) && go build -o $$into/flanneld github.com/flannel-io/flannel

bench-registry: $(DEV) ## how big a cluster the agent follows
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab bench_registry

fuzz: $(DEV) ## any input at all, for MINUTES=10: leases, files, netlink, HTTP, packets
	FUZZ_MINUTES=$(MINUTES) UDP_FUZZ_COUNT=$$(($(MINUTES) * 100000)) $(PYTHON) -m pytest -q -s --timeout=0 tests/fuzz

dist: $(DEV) $(RELEASE) ## wheel and source archive in dist/, what a release installs (hashes), its SBOM, SHA256SUMS
	$(PYTHON) -m hatchling build -d dist
	cp packaging/requirements.txt dist/requirements.txt
	$(PYTHON) -W ignore::UserWarning -m cyclonedx_py requirements packaging/requirements.txt --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file dist/flannelpy.cdx.json
	$(SUMS)

deb: $(DEV) $(RELEASE) ## Debian packages in dist/, for this machine's release and architecture; the same bytes for the same commit
	@$(PYTHON) packaging/debian/build.py --into dist
	@$(SUMS)

image: deb ## an image of the packages in dist/, for docker load, podman load, ctr images import; no daemon is needed
	@$(PYTHON) packaging/image/build.py --into dist
	@$(SUMS)

test-package: deb $(DEBIAN).made ## the packages on a bare Debian 12 that systemd boots: install, upgrade, remove, purge; and is it rebuilt the same
	FLANNELPY_DEB=$$(ls -t $(CURDIR)/dist/flannelpy_*.deb | head -n 1) FLANNELPY_DEBIAN=$(CURDIR)/$(DEBIAN) \
		$(PYTHON) -m pytest -q tests/package tests/lab/test_package.py

test-image: image $(DOCKER) ## the image in Docker on two hosts of the lab: is all there that it loads, do containers meet
	FLANNELPY_IMAGE=$$(ls -t $(CURDIR)/dist/flannelpy_*.oci.tar | head -n 1) $(PYTHON) -m pytest -q tests/package/test_image.py

pins: $(DEV) $(RELEASE) ## pin what a release installs, with hashes: packaging/requirements.txt, as the registry has it today
	$(PYTHON) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-package win-inet-pton \
		--custom-compile-command 'make pins' --output-file packaging/requirements.txt pyproject.toml

test-lowest: $(DEV) $(RELEASE) ## the unit tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m uv venv --quiet --clear --python $(PYTHON) $(LOWEST)
	$(PYTHON) -m uv pip compile --quiet --resolution lowest-direct --no-annotate --output-file $(LOWEST)/pins.txt pyproject.toml
	$(PYTHON) -m uv pip install --quiet --python $(LOWEST)/bin/python -c $(LOWEST)/pins.txt -e '.[dev]'
	$(LOWEST)/bin/python -m pytest -q -p no:cacheprovider --ignore=tests/unit/test_dependencies.py tests/unit

clean: ## remove what was made: .venv, caches, dist, lab-out
	rm -rf $(VENV) dist build lab-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip runs again when pyproject.toml says something else; apt is asked only for what is not there.
$(DEV): pyproject.toml
	@missing=; \
	for each in $(NEEDED); do command -v "$${each%%:*}" >/dev/null 2>&1 || missing="$$missing $${each#*:}"; done; \
	python3 -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	[ -n "$$missing" ] || exit 0; \
	command -v apt-get >/dev/null 2>&1 || { echo "setup: missing, and this is no Debian:$$missing"; exit 1; }; \
	[ "$$(id -u)" = 0 ] || { echo "setup: missing; install first: sudo apt-get install$$missing"; exit 1; }; \
	echo "installing Debian packages:$$missing"; \
	log=$$(mktemp); \
	if apt-get update -q >"$$log" 2>&1 && apt-get install -qy --no-install-recommends $$missing >>"$$log" 2>&1; then rm -f "$$log"; \
	else echo "setup: apt-get failed: $$(grep -E '^E:' "$$log" | tail -n 1) (all of it: $$log)"; exit 1; fi
	@[ -x $(PYTHON) ] && $(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "making $(VENV)"; python3 -m venv --clear $(VENV); } \
		|| { echo "setup: python3 -m venv $(VENV) failed"; exit 1; }
	@echo "installing Python packages into $(VENV) (about a minute)"
	@log=$$(mktemp); \
	if $(PYTHON) -m pip install --quiet -e '.[dev]' >"$$log" 2>&1; then rm -f "$$log"; \
	else echo "setup: pip failed: $$(grep -E '^ *ERROR' "$$log" | tail -n 1 | sed 's/^ *//') (all of it: $$log)"; exit 1; fi
	@touch $@

$(RELEASE): $(DEV)
	@$(PYTHON) -m pip install --quiet 'hatchling>=1.21' 'uv>=0.5' 'cyclonedx-bom>=5'
	@touch $@

# What is used and not installed: Debian's own packages, unpacked. $(1) where to, $(2) which, $(3) what is there in the end.
define unpack
	@command -v apt-get >/dev/null 2>&1 || { echo "setup: no apt-get, no $(notdir $(1)): its tests will be skipped"; exit 0; }; \
	echo "unpacking into $(1): $(2)"; \
	log=$$(mktemp); rm -rf $(1); mkdir $(1); cd $(1); \
	if { apt-get download -q $(2) || { apt-get update -q && apt-get download -q $(2); }; } >"$$log" 2>&1 \
		&& ls *.deb | xargs -I{} dpkg -x {} . && touch $(3); then rm -f "$$log" *.deb; \
	else echo "setup: apt-get download failed: $$(grep -E '^E:' "$$log" | tail -n 1) (all of it: $$log)"; exit 1; fi
endef

$(DOCKER): | $(DEV)
	$(call unpack,$(VENV)/docker,$(DOCKER_PACKAGES),usr/bin/docker)

$(PROMETHEUS): | $(DEV)
	$(call unpack,$(VENV)/prometheus,prometheus,usr/bin/prometheus)

$(CNI): | $(DEV)
	$(call unpack,$(VENV)/cni,$(CNI_PACKAGES),usr/lib/cni/bridge)

$(VENV)/mmdebstrap/usr/bin/mmdebstrap: | $(DEV)
	$(call unpack,$(VENV)/mmdebstrap,mmdebstrap,usr/bin/mmdebstrap)

# What the package depends on and what boots, nothing else: what it forgets to depend on is not there.
$(DEBIAN).made: packaging/debian/flannelpy/control packaging/debian/flannelpy-udp/control | $(VENV)/mmdebstrap/usr/bin/mmdebstrap
	@echo "making a bare Debian 12 in $(DEBIAN) (half a minute)"; rm -rf $(DEBIAN); mkdir -p $(@D)
	@needed=$$(sed -n 's/^Depends: //p' $^ | sed 's/([^)]*)//g; s/|[^,]*//g; s/ //g' | tr ',' '\n' | grep -v flannelpy | tr '\n' ',')systemd-sysv; \
	$(VENV)/mmdebstrap/usr/bin/mmdebstrap --quiet --mode=root --variant=minbase --include=$$needed bookworm $(DEBIAN)
	@touch $@
