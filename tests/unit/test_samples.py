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
