"""packaging/samples: does each parse, and does what it says to flannelpy mean something to it?"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from netaddr import IPNetwork

from flannelpy.cli import flannelpy
from flannelpy.commands.located import told_by_defaults
from flannelpy.host.subnet_env import variables
from flannelpy.options import spell_out
from flannelpy.settings import load

SAMPLES = Path(__file__).parents[2] / "packaging" / "samples"


def test_cloud_config_says_what_the_service_reads() -> None:
    text = (SAMPLES / "cloud-config.yaml").read_text()
    assert text.startswith("#cloud-config\n"), "cloud-init goes by the first line"
    said = yaml.safe_load(text)
    assert set(said) == {"write_files", "runcmd"}
    (file,) = said["write_files"]
    assert (file["path"], file["permissions"]) == ("/etc/default/flannelpy", "0640")
    settings = load(told_by_defaults(variables(file["content"])), {})
    assert (settings.iface, settings.endpoint.urls) == (("eth1",), ("http://192.168.50.5:2379",))
    assert all(isinstance(word, str) for command in said["runcmd"] for word in command)
    assert said["runcmd"][-1][-1] == "flannelpy.service"


FIELDS = {
    "": {"variant", "version", "storage", "systemd"},
    "storage": {"files"},
    "storage.files": {"path", "mode", "contents"},
    "storage.files.contents": {"inline", "source"},
    "systemd": {"units"},
    "systemd.units": {"name", "enabled", "contents", "contents_local"},
}
"""Of Butane's specification for fcos 1.5.0 what the sample uses (config-fcos-v1_5.md)."""


def unknown(what: object, where: str = "") -> list[str]:
    """Names in a Butane file that are not in ``FIELDS``."""
    if isinstance(what, list):
        return [name for each in what for name in unknown(each, where)]
    if not isinstance(what, dict):
        return []
    inside = [name for key, value in what.items() for name in unknown(value, f"{where}.{key}".lstrip("."))]
    return [f"{where}: {key}" for key in what if key not in FIELDS.get(where, ())] + inside


def test_butane_s_file_runs_the_image_s_own_unit() -> None:
    said = yaml.safe_load((SAMPLES / "butane.yaml").read_text())
    assert (said["variant"], said["version"]) == ("fcos", "1.5.0")
    assert unknown(said) == []
    assert unknown({"systemd": {"units": [{"nmae": "a"}]}}) == ["systemd.units: nmae"]
    defaults, image = said["storage"]["files"]
    settings = load(told_by_defaults(variables(defaults["contents"]["inline"])), {})
    assert (settings.iface, settings.endpoint.urls) == (("eth1",), ("http://192.168.50.5:2379",))
    assert (defaults["path"], defaults["mode"]) == ("/etc/default/flannelpy", 0o640)
    loads, runs = said["systemd"]["units"]
    assert f"Before={runs['name']}\n" in loads["contents"]
    assert image["path"] in loads["contents"]
    unit = (SAMPLES.parent / "image" / runs["contents_local"]).read_text()
    assert f"EnvironmentFile=-{defaults['path']}\n" in unit


def test_vagrant_sets_each_box_up() -> None:
    text = (SAMPLES / "Vagrantfile").read_text()
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith("flannelpy ")]
    command, *words = spell_out(shlex.split(line)[1:])
    context = flannelpy.commands[command].make_context(command, words)
    assert context.params["iface"] == ("eth1",)
    assert context.params["yes"]
    assert IPNetwork(context.params["network"]).prefixlen == 16
    assert text.count(" do |") == text.count("end\n"), "each block ends"


@pytest.mark.skipif(shutil.which("ruby") is None, reason="no ruby here to read a Vagrantfile with")
def test_ruby_reads_the_vagrantfile() -> None:
    checked = subprocess.run(["ruby", "-c", SAMPLES / "Vagrantfile"], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
