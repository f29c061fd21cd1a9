"""Would Kubernetes take our manifests, and does what they start mean what it says?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightkube import codecs

from flannelpy import plugins
from flannelpy.kernel.forward import XTABLES_LOCK
from flannelpy.options import BY_NAME
from flannelpy.settings import load

FOLDER = Path(__file__).parents[2] / "packaging/kubernetes"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "flannelpy.yaml").read_text()))
BY_KIND = {each["kind"]: each for each in DOCUMENTS}
POD: dict[str, Any] = BY_KIND["DaemonSet"]["spec"]["template"]["spec"]
AGENT: dict[str, Any] = POD["containers"][0]


def read_back(document: dict[str, Any]) -> object:
    """The document as Kubernetes' models understand it, as a document again: what they do not know is gone."""
    return yaml.safe_load(codecs.dump_all_yaml([codecs.load_all_yaml(yaml.safe_dump(document))[0]]))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["kind"])
def test_every_field_is_one_of_kubernetes(document: dict[str, Any]) -> None:
    assert read_back(document) == document


def test_a_field_that_kubernetes_does_not_know_is_seen() -> None:
    wrong = yaml.safe_load(yaml.safe_dump(BY_KIND["DaemonSet"]))
    wrong["spec"]["template"]["spec"]["hostNetwrok"] = True
    assert read_back(wrong) != wrong


def test_the_kinds_are_those_that_it_takes() -> None:
    assert sorted(BY_KIND) == ["ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "Namespace", "ServiceAccount"]
    assert yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"] == ["flannelpy.yaml"]


def test_the_role_is_what_the_agent_asks_for_and_not_more() -> None:
    rules = {
        (resource, verb) for rule in BY_KIND["ClusterRole"]["rules"] for resource in rule["resources"] for verb in rule["verbs"]
    }
    assert rules == {("nodes", "get"), ("nodes", "list"), ("nodes", "watch"), ("nodes/status", "patch")}
    assert BY_KIND["ClusterRoleBinding"]["subjects"][0]["name"] == POD["serviceAccountName"] == "flannelpy"


def test_the_network_config_is_one() -> None:
    config, backend = plugins.parse(BY_KIND["ConfigMap"]["data"]["net-conf.json"])
    assert (str(config.networks[0]), backend.name) == ("10.244.0.0/16", "vxlan")
    mounts = {mount["name"]: mount["mountPath"] for mount in AGENT["volumeMounts"]}
    assert f"--net-config-path={mounts['net-config']}/net-conf.json" in AGENT["command"]
    assert POD["volumes"][0]["configMap"]["name"] == BY_KIND["ConfigMap"]["metadata"]["name"]


def test_the_agents_command_is_one() -> None:
    given = {}
    for word in AGENT["command"][1:]:
        name, _, value = word.removeprefix("--").partition("=")
        given[name] = [value or "true"]
        assert bool(value) is not BY_NAME[name].boolean
    settings = load(given, {AGENT["env"][0]["name"]: "node-1"})
    assert settings.kube is not None
    assert (settings.kube.node, settings.kube.api_url, settings.notes) == ("node-1", "", ())
    ports = {settings.healthz_port, AGENT["ports"][0]["containerPort"], AGENT["ports"][0]["hostPort"]}
    assert ports == {int(BY_KIND["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"])}
    for where in (settings.subnet_file.parent, settings.run_dir, settings.state_dir):
        assert str(where) in {mount["mountPath"] for mount in AGENT["volumeMounts"]}


@pytest.mark.parametrize("where", ["/run/xtables.lock", "/run/flannel", "/lib/modules"])
def test_what_is_the_hosts_is_the_hosts(where: str) -> None:
    """The image has iptables-legacy, which changes a table of the host's by reading and replacing it, under this lock."""
    (mount,) = (mount for mount in AGENT["volumeMounts"] if mount["mountPath"] == where)
    (volume,) = (volume for volume in POD["volumes"] if volume["name"] == mount["name"])
    assert volume["hostPath"]["path"] == where
    assert volume["hostPath"].get("type") == {"/run/xtables.lock": "FileOrCreate", "/run/flannel": "DirectoryOrCreate"}.get(where)
    assert str(XTABLES_LOCK) in {mount["mountPath"] for mount in AGENT["volumeMounts"] if not mount.get("readOnly")}


def test_every_mount_has_a_volume_and_every_volume_a_mount() -> None:
    mounted = {mount["name"] for each in (*POD["initContainers"], *POD["containers"]) for mount in each["volumeMounts"]}
    assert mounted == {volume["name"] for volume in POD["volumes"]}


def test_the_init_containers_command_is_one(tmp_path: Path) -> None:
    words = [
        word.replace("/opt/cni/bin", str(tmp_path / "bin")).replace("/etc/cni/net.d", str(tmp_path / "net"))
        for word in POD["initContainers"][0]["command"][1:]
    ]
    for folder in ("bin", "net"):
        (tmp_path / folder).mkdir()
    done = subprocess.run([sys.executable, "-m", "flannelpy", *words, "--dry-run"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "flannel" in done.stdout
