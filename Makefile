# What can be done here? `make` lists it. Everything runs from a fresh clone on Debian 12 with python3 and apt, as root.

VENV    ?= .venv
PYTHON  := $(VENV)/bin/python
DEV     := $(VENV)/.dev-installed
DOCKER  := $(VENV)/docker/usr/bin/docker
DEBIAN  := $(VENV)/cache/debian
PROMETHEUS := $(VENV)/prometheus/usr/bin/prometheus
CHROMIUM := $(VENV)/chromium/usr/lib/chromium/chromium
CNI     := $(VENV)/cni/usr/lib/cni/bridge
WIREGUARD_GO := $(VENV)/cache/wireguard-go
STRONGSWAN := $(VENV)/strongswan/usr/lib/ipsec/charon
RELEASE := $(VENV)/.release-tools-installed
LOWEST  := $(VENV)/lowest
LAB     := netns-lab/lab
# Built once, some minutes long, and outside of this folder: it is the same for every checkout.
KUBE    = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/flannelpy/kubernetes-$(KUBERNETES)

comma   := ,

NAME    ?= fl
HOSTS   ?= 3
BACKEND ?= vxlan
ETCD    ?= 1
NODES   ?= 10000
AGENTS  ?= 8
ROUNDS  ?= 5
MINUTES ?= 10
FLOOD   ?= 10
FLANNEL ?= v0.28.9
WIREGUARD ?= v0.0.0-20260522210424-ecfc5a8d5446
KUBERNETES ?= v1.37.2
CRI_TOOLS ?= v1.34.0
# Test files side by side: those of the lab wait more than they work, so that it is one more than a machine of two cores has.
JOBS    ?= 3

# What the lab, the tests and the agent use on a Debian machine: the command that shows it is there, and its package.
NEEDED  := ip:iproute2 ping:iputils-ping nft:nftables tcpdump:tcpdump iperf3:iperf3 ethtool:ethtool ps:procps modprobe:kmod \
           openssl:openssl nsenter:util-linux systemd-analyze:systemd systemd-nspawn:systemd-container cc:build-essential \
           iptables:iptables dmsetup:dmsetup
# Unpacked, not installed: an installed Docker starts, and changes the firewall of the machine. It needs iptables and dmsetup's library.
DOCKER_PACKAGES := docker.io containerd runc busybox-static
# With the libraries that a Debian without a desktop has not; LD_LIBRARY_PATH finds them.
CHROMIUM_PACKAGES := chromium chromium-common libdouble-conversion3 libogg0 libflac12 libharfbuzz-subset0 libminizip1 libopenh264-7 \
	libopenjp2-7 libasyncns0 libmp3lame0 libmpg123-0 libvorbis0a libvorbisenc2 libsndfile1 libpulse0 libxnvctrl0 libcolord2 \
	libwayland-cursor0 libwayland-egl1 libgtk-3-0 libnss3 libnspr4 libasound2 libgbm1 libxkbcommon0 fonts-dejavu-core
# An installed one starts, and takes UDP 500.
STRONGSWAN_PACKAGES := strongswan-charon strongswan-libcharon strongswan-swanctl libstrongswan libstrongswan-standard-plugins
CNI_PACKAGES    := containernetworking-plugins podman conmon crun libgpgme11 libassuan0 libsubid4 libyajl2 libseccomp2

# In each file what the ones before it have not.
COMPILE = $(PYTHON) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-package win-inet-pton --custom-compile-command 'make pins'

# Of all that lies in dist/: sha256sum -c SHA256SUMS there.
SUMS := cd dist && find . -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum >SHA256SUMS

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export DEBIAN_FRONTEND := noninteractive
SHELL := /bin/sh

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types unit test-kernels kubernetes test-kube bench-kube format lab lab-down bench-agent bench-udp profile bench-guard bench-registry bench-migration bench-swarm bench-tunnels soak-udp churn gallery test-gallery gallery-page calm chaos flood etcds cnis crictl flanneld prometheus chromium screenshots fuzz dist deb image test-package test-image pins test-lowest clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  make lab takes HOSTS=$(HOSTS) BACKEND=$(BACKEND) ETCD=$(ETCD) NAME=$(NAME)"

setup: $(DEV) $(DOCKER) $(CNI) ## install what is missing: Debian packages (as root) and .venv
	@echo "ready: $(VENV)"

demo: $(DEV) ## three hosts, a real etcd, every container pings every other
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab demo

test: lint types $(DOCKER) $(CNI) $(WIREGUARD_GO) $(STRONGSWAN) ## lint, types, all tests but those that take QEMU (make test-kernels) or Kubernetes (make test-kube)
	$(PYTHON) -m tests.again -q -n $(JOBS) --dist loadfile --max-worker-restart 0 --ignore=tests/kernels --ignore=tests/kube

lint: $(DEV) ## style of the code
	$(PYTHON) -m ruff check . $(LAB)
	$(PYTHON) -m ruff format --check . $(LAB)

types: $(DEV) ## types of the code
	$(PYTHON) -m mypy -p flannelpy -p backends -p netns_lab
	MYPYPATH=packaging/debian $(PYTHON) -m mypy packaging/debian/*.py
	MYPYPATH=packaging/image $(PYTHON) -m mypy packaging/image/*.py

unit: $(DEV) ## tests that need no privileges
	$(PYTHON) -m pytest -q tests/unit

test-kernels: deb $(DEBIAN).made $(STRONGSWAN) ## udp by the kernel, wireguard, ipip, ipsec, moves between them, in guests with Debian's own (QEMU, 40 minutes)
	FLANNELPY_DEB=$$(ls -t $(CURDIR)/dist/flannelpy_*.deb | head -n 1) FLANNELPY_DEBIAN=$(CURDIR)/$(DEBIAN) \
		$(PYTHON) -m pytest -q -s tests/kernels

kubernetes: ## Kubernetes' own programs for make test-kube, built with Go 1.26 into ~/.cache/flannelpy (a quarter of an hour, once)
	@tests/kube/build.sh $(KUBERNETES) $(KUBE)

test-kube: image kubernetes $(DOCKER) $(CNI) $(WIREGUARD_GO) ## the image and the manifests in a real Kubernetes of three nodes (ten minutes)
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

bench-udp: $(DEV) ## how fast udp is, beside a C pump and VXLAN, over veth or with WIRE=1 as between machines: ROUNDS=5
	@PYTHONPATH=netns-lab:. $(PYTHON) -m $(if $(GUEST),tests.kernels.bench_udp,netns_lab bench_udp) $(if $(WIRE),--wire) --rounds $(ROUNDS)

profile: $(DEV) ## where the agent's time goes during joins, and a udp worker's under a TCP stream: flame graphs
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab profiling

bench-kube: $(DEV) ## what 1,000 nodes of Kubernetes and their heartbeats cost an agent
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab.bench_kube

bench-guard: ROUNDS = 100
bench-guard: $(DEV) ## what source validation costs a vxlan host, at 10 and 10,000 peers, and how sure that is: ROUNDS=100
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab.bench_guard --rounds $(ROUNDS)

bench-swarm: $(DEV) ## do ten thousand hosts hold: churn, a rack that comes and goes, etcd restarted, a config change: NODES=10000 AGENTS=8
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab.bench_swarm --nodes $(NODES) --agents $(AGENTS)

bench-tunnels: $(DEV) ## is a wireguard or ipip tunnel of the agent as fast as one made by hand (in a guest, QEMU)
	@PYTHONPATH=.:netns-lab $(PYTHON) -m tests.kernels.bench_tunnels

bench-migration: $(DEV) ## how long a TCP stream stands still while the network moves from Type to Type, and are pings lost: ROUNDS=5
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab bench_migration --rounds $(ROUNDS)

soak-udp: $(DEV) ## does udp in user space hold for long: traffic of all kinds for MINUTES=10
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab soak_udp --minutes $(MINUTES)

gallery: $(DEV) ## put every fault into a lab (BACKEND=vxlan, udp, host-gw), and see what the agents say of it
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab gallery --backend $(BACKEND)

test-gallery: $(DEV) ## the whole gallery of faults: is each named by one command, with what mends it, and is there silence after (20 minutes)
	GALLERY=all $(PYTHON) -m pytest -q -s tests/lab/test_gallery.py

gallery-page: $(DEV) ## put every fault into a lab, and write what the commands say of it into docs/troubleshooting.md
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab gallery_page

calm: $(DEV) ## does a healthy lab stay silent: load, restarts of agents and etcd, joins, for MINUTES=10
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab calm --minutes $(MINUTES) --backend $(BACKEND)

churn: $(DEV) ## what veth pairs that come and go cost the agent: 2,000 a minute, 3 and 5,000 peers
	@for peers in 3 5000; do \
		CHURN_PAIRS=2000 CHURN_PER_SECOND=33.4 CHURN_PEERS=$$peers $(PYTHON) -m pytest -q -s tests/lab/test_host_churn.py || exit 1; \
	done

chaos: $(DEV) ## random faults of etcd, kernel and hosts, and does everything converge: SEED= MINUTES=10 BACKEND=vxlan
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab.chaos --minutes $(MINUTES) --backend $(BACKEND) $(if $(SEED),--seed $(SEED))

screenshots: $(DEV) $(CHROMIUM) ## make the pictures in docs/pictures/: commands as a terminal shows them, the page in Chromium, the lab
	@PYTHONPATH=netns-lab $(PYTHON) -m netns_lab screenshots

flood: $(DEV) ## floods of keys in etcd, FLOOD=10 times as large as in the tests: memory, log, time
	FLOOD=$(FLOOD) $(PYTHON) -m pytest -q -s -o timeout=3600 tests/lab/test_flood.py

etcds: $(DEV) ## etcd 3.6 and 3.7 for the contract tests, built with Go 1.26 into $(VENV)/cache (two minutes)
	@for version in 3.6.6 3.7.3; do \
		into=$(CURDIR)/$(VENV)/cache/etcd-$${version%.*}; [ -x $$into/etcd ] && continue; \
		work=$$(mktemp -d) && mkdir -p $$into && cd $$work && go mod init etcds && go get -tool go.etcd.io/etcd/server/v3@v$$version \
			&& go build -o $$into/etcd go.etcd.io/etcd/server/v3 || exit 1; cd / && rm -rf $$work; \
	done

prometheus: $(PROMETHEUS) ## fetch Prometheus, so that its tests run

cnis: $(DEV) ## CNI plugins that know 1.1.0, and cnitool, for the tests that ask as a runtime of today does: built with Go into $(VENV)/cache
	@into=$(CURDIR)/$(VENV)/cache/cni; [ -x $$into/cnitool ] && exit; \
	work=$$(mktemp -d) && trap 'cd / && rm -rf '$$work EXIT && mkdir -p $$into && cd $$work && go mod init cnis \
		&& go get -tool github.com/containernetworking/cni/cnitool@v1.3.1 \
		&& for each in main/bridge main/loopback ipam/host-local meta/portmap; do \
			go get -tool github.com/containernetworking/plugins/plugins/$$each@v1.10.0 \
				&& go build -o $$into/$${each#*/} github.com/containernetworking/plugins/plugins/$$each || exit 1; \
		done && go build -o $$into/cnitool github.com/containernetworking/cni/cnitool

crictl: $(DEV) ## crictl, for the test that looks at a containerd as an operator does: built with Go into $(VENV)/cache (two minutes)
	@into=$(CURDIR)/$(VENV)/cache; [ -x $$into/crictl ] && exit; \
	work=$$(mktemp -d) && trap 'cd / && rm -rf '$$work EXIT && mkdir -p $$into && cd $$work && go mod init crictl \
		&& go get -tool sigs.k8s.io/cri-tools/cmd/crictl@$(CRI_TOOLS) && go build -o $$into/crictl sigs.k8s.io/cri-tools/cmd/crictl

chromium: $(CHROMIUM) ## fetch Chromium, so that the page is tested in it

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
	cp packaging/requirements.txt packaging/requirements-kube.txt dist
	cat packaging/requirements.txt packaging/requirements-kube.txt | $(PYTHON) -W ignore::UserWarning -m cyclonedx_py requirements - \
		--pyproject pyproject.toml --output-reproducible --output-format JSON --output-file dist/flannelpy.cdx.json
	$(SUMS)

deb: $(DEV) $(RELEASE) ## Debian packages in dist/, for this machine's release and architecture; the same bytes for the same commit
	@$(PYTHON) packaging/debian/build.py --into dist
	@$(SUMS)

image: deb ## an image of the packages in dist/, for docker load, podman load, ctr images import; no daemon is needed
	@$(PYTHON) packaging/image/build.py --into dist
	@$(SUMS)

test-package: deb $(DOCKER) $(DEBIAN).made $(DEBIAN)-hosts.made ## the packages on a bare Debian 12 that systemd boots: install, upgrade, remove, purge; and is it rebuilt the same
	FLANNELPY_DEB=$$(ls -t $(CURDIR)/dist/flannelpy_*.deb | head -n 1) FLANNELPY_DEBIAN=$(CURDIR)/$(DEBIAN) \
		FLANNELPY_HOSTS=$(CURDIR)/$(DEBIAN)-hosts \
		$(PYTHON) -m pytest -q tests/package tests/lab/test_package.py tests/lab/test_package_hosts.py tests/lab/test_package_firewalls.py

test-image: image $(DOCKER) $(CNI) ## the image in Docker on two hosts of the lab: is all there that it loads, do containers meet
	FLANNELPY_IMAGE=$$(ls -t $(CURDIR)/dist/flannelpy_*.oci.tar | head -n 1) $(PYTHON) -m pytest -q tests/package/test_image.py

pins: $(DEV) $(RELEASE) ## pin what a release installs, with hashes, as the registry has it today: packaging/requirements*.txt
	$(COMPILE) --extra ipsec --output-file packaging/requirements.txt pyproject.toml
	$(COMPILE) --extra kube --constraint packaging/requirements.txt \
		$$(sed -n 's/^\([^ =]*\)==.*/--no-emit-package \1/p' packaging/requirements.txt) \
		--output-file packaging/requirements-kube.txt pyproject.toml

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

$(CHROMIUM): | $(DEV)
	$(call unpack,$(VENV)/chromium,$(CHROMIUM_PACKAGES),usr/lib/chromium/chromium)

$(CNI): | $(DEV)
	$(call unpack,$(VENV)/cni,$(CNI_PACKAGES),usr/lib/cni/bridge)

$(STRONGSWAN): | $(DEV)
	$(call unpack,$(VENV)/strongswan,$(STRONGSWAN_PACKAGES),usr/lib/ipsec/charon)

# Beside the tests' own skip nothing depends on it: who has no Go, or no way to its modules, is told, and goes on.
$(WIREGUARD_GO): | $(DEV)
	@command -v go >/dev/null 2>&1 || { echo "setup: no Go, no wireguard-go: its tests will be skipped"; exit 0; }; \
	echo "building $@ with Go (half a minute)"; \
	work=$$(mktemp -d) log=$$(mktemp); mkdir -p $(@D); into=$(abspath $@); \
	if (cd $$work && go mod init wireguard && go get -tool golang.zx2c4.com/wireguard@$(WIREGUARD) \
		&& go build -o $$into golang.zx2c4.com/wireguard) >$$log 2>&1; then rm -f $$log; \
	else echo "setup: no wireguard-go, its tests will be skipped: $$(tail -n 1 $$log) (all of it: $$log)"; fi; rm -rf $$work

$(VENV)/mmdebstrap/usr/bin/mmdebstrap: | $(DEV)
	$(call unpack,$(VENV)/mmdebstrap,mmdebstrap,usr/bin/mmdebstrap)

# What the package depends on and what boots, nothing else: what it forgets to depend on is not there. $(1): what else.
define bare
	@echo "making a bare Debian 12 in $(basename $@) (half a minute)"; rm -rf $(basename $@); mkdir -p $(@D)
	@needed=$$(sed -n 's/^Depends: //p' $^ | sed 's/([^)]*)//g; s/|[^,]*//g; s/ //g' | tr ',' '\n' | grep -v flannelpy | tr '\n' ',')systemd-sysv; \
	$(VENV)/mmdebstrap/usr/bin/mmdebstrap --quiet --mode=root --variant=minbase --include=$$needed$(1) bookworm $(basename $@)
	@touch $@
endef

$(DEBIAN).made: $(wildcard packaging/debian/*/control) | $(VENV)/mmdebstrap/usr/bin/mmdebstrap
	$(call bare)

# With Docker, and the firewalls that Debian has; none of them starts by itself in a booted host.
$(DEBIAN)-hosts.made: $(wildcard packaging/debian/*/control) | $(VENV)/mmdebstrap/usr/bin/mmdebstrap
	$(call bare,$(comma)docker.io$(comma)ufw$(comma)firewalld$(comma)nftables)
