"""Is a secret seen by nobody: not in a log, a traceback, a status or an error, and by no other program?"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannelpy import plugins
from flannelpy.commands import cost, netconfig, setup
from flannelpy.core.config import NetworkConfig, differences
from flannelpy.core.environment import bare
from flannelpy.core.errors import ConfigError, RegistryAuthError, RegistryTlsError
from flannelpy.core.json_members import Members
from flannelpy.core.secret import HIDDEN, Secret, hide, is_secret, reveal, shown
from flannelpy.host.files import read_given
from flannelpy.kernel import modules, nft
from flannelpy.registry import Endpoint, StoredConfig
from flannelpy.registry.etcd.endpoints import Address
from flannelpy.registry.etcd.tls import greet, read_credentials
from flannelpy.registry.etcd.token import read_password
from flannelpy.settings import Settings, load

HUNTER = "hunter2-τ"


def test_a_secret_shows_itself_only_to_who_asks() -> None:
    secret = Secret(HUNTER)
    assert secret.reveal() == HUNTER
    assert [str(secret), repr(secret), f"{secret}", f"{secret!r:>15}", "%s %r" % (secret, secret), str([secret])] == [  # noqa: UP031
        *(HIDDEN,) * 3,
        f"{HIDDEN:>15}",
        f"{HIDDEN} {HIDDEN}",
        f"[{HIDDEN}]",
    ]
    assert (secret == Secret(HUNTER), secret == Secret("x"), secret == HUNTER, bool(secret), bool(Secret(""))) == (
        *(True, False, False),
        *(True, False),
    )
    assert hash(secret) == hash(Secret("x"))
    for write in (json.dumps, pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError) as refused:
            write(secret)
        assert HUNTER not in str(refused.value)


def test_neither_settings_nor_a_traceback_shows_the_password() -> None:
    settings = load({"etcd-username": ["u"], "etcd-password": [HUNTER]}, {})
    assert settings.endpoint.password == Secret(HUNTER)
    assert HUNTER not in repr(settings)
    try:
        raise RuntimeError(settings.endpoint)
    except RuntimeError as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        assert HUNTER not in "".join(told.format())


# ------------------------------------------------------------------------------------------------- options of a backend


class Marking:
    """A backend with a secret that its name does not give away."""

    name = "marking"
    families = (4,)
    accepts = None
    wants_on_link = False
    secrets = frozenset({"Riddle"})
    seen: Mapping[str, Any] = {}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Marking:
        cls.seen = options
        if Members(options, "Backend.", cls.secrets).text("Riddle") is None:
            raise ConfigError("Backend.Riddle is missing")
        return cls()

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return {}


class Point:
    name = "marking"

    def load(self) -> type[Marking]:
        return Marking


@pytest.fixture
def marking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point()])


def config(**options: object) -> str:
    return json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "marking", **options}})


def test_what_a_backend_marks_is_hidden_from_all_but_the_backend(marking: None) -> None:
    old, _ = plugins.parse(config(riddle=HUNTER, PSK=HUNTER, Plain=1, Inside=[{"apiToken": HUNTER}]))
    assert Marking.seen == {"riddle": HUNTER, "PSK": HUNTER, "Plain": 1, "Inside": [{"apiToken": HUNTER}]}
    assert old.to_dict()["Backend"] == {
        "Type": "marking",
        "riddle": HIDDEN,
        "PSK": HIDDEN,
        "Plain": 1,
        "Inside": [{"apiToken": HIDDEN}],
    }
    new, _ = plugins.parse(config(riddle=HUNTER + "3", PSK=HUNTER, Plain=2, Inside=[{"apiToken": HUNTER + "3"}]))
    told = differences(old, new)
    assert told[:2] == [f"Backend.riddle: {HIDDEN} -> {HIDDEN}", "Backend.Plain: 1 -> 2"]
    assert told[2:] == [f'Backend.Inside: [{{"apiToken": "{HIDDEN}"}}] -> [{{"apiToken": "{HIDDEN}"}}]']
    assert "hunter" not in repr((old, new, told))


@pytest.mark.parametrize("wrong", [7, [HUNTER], {"a": HUNTER}])
def test_an_error_about_a_secret_does_not_tell_it(marking: None, wrong: object) -> None:
    with pytest.raises(ConfigError) as refused:
        plugins.parse(config(Riddle=wrong))
    assert str(refused.value) == f"Backend.Riddle {HIDDEN}: expected a string"
    with pytest.raises(ConfigError) as refused:
        raise Members({"PSK": [HUNTER]}, "Backend.").wrong("PSK", "a string")
    assert str(refused.value) == f"Backend.PSK {HIDDEN}: expected a string"


def test_an_operator_who_changes_the_config_does_not_see_it_either() -> None:
    texts = [json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "PSK": HUNTER + end}}) for end in "ab"]
    old, new = map(netconfig.examine, texts)
    for told in (list(map(str, cost.of(old, new))), netconfig.changes(*texts), list(netconfig._rows(old))):
        assert "PSK" in str(told)
        assert "hunter" not in str(told)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param({"Network": "10.5.0.0/16", "SubnetLen": 99, "Backend": {"Type": "ipsec", "PSK": HUNTER}}, id="cannot be used"),
        pytest.param({"Network": "10.5.0.0/16", "Backend": [{"x-secret": HUNTER}]}, id="of another form"),
        pytest.param([{"PSK": HUNTER}], id="no object"),
    ],
)
@pytest.mark.parametrize("end", ["", ","])
def test_a_config_that_cannot_be_used_is_replaced_without_its_secret(before: object, end: str) -> None:
    [told] = netconfig.changes(json.dumps(before) + end, json.dumps({"Network": "10.5.0.0/16"}))
    assert told.startswith("replaced: ")
    assert HIDDEN in told
    assert "hunter" not in told


def test_what_a_backend_marks_is_not_shown_where_a_config_is_written(marking: None) -> None:
    texts = [config(Riddle=HUNTER + end, Plain=1) for end in "ab"]
    assert netconfig.changes(*texts) == [f"Backend.Riddle: {HIDDEN} -> {HIDDEN}"]
    assert json.loads(netconfig.without_secrets(texts[0]))["Backend"] == {"Type": "marking", "Riddle": HIDDEN, "Plain": 1}


def test_setup_names_the_config_that_it_writes_without_its_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.json"
    psk = HUNTER.replace("τ", "t") * 20
    file.write_text(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "ipsec", "PSK": psk}}, indent=2))
    monkeypatch.setattr(setup, "with_registry", lambda options, ask: StoredConfig(None, 0, 1))
    [step] = setup.config_step({}, setup.Wish(config=os.fspath(file)))
    assert step.text.endswith(f'in etcd: {{"Network": "10.5.0.0/16", "Backend": {{"Type": "ipsec", "PSK": "{HIDDEN}"}}}}')


values = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3) | st.sampled_from(["PSK", "x-Secret", "Password", "key"]), values), st.booleans())
def test_whatever_is_hidden_comes_back_and_is_not_shown(options: dict[str, Any], marked: bool) -> None:
    names = {"a", ""} if marked else set()
    hidden = hide(options, names)
    assert reveal(hidden) == options
    assert hide(hidden, names) == hidden
    seen = json.loads(json.dumps(shown(hidden)))
    assert {name for name in options if is_secret(name, names)} == {name for name in options if isinstance(hidden[name], Secret)}
    assert all(seen[name] == HIDDEN for name in options if is_secret(name, names))


# ----------------------------------------------------------------------------------------------------- other programs


def test_another_program_gets_what_it_needs_to_run() -> None:
    ours = {"FLANNELPY_ETCD_PASSWORD": HUNTER, "ETCD_PASSWORD": HUNTER, "PATH": "/bin", "PYTHONPATH": "/x", "HOME": "/root"}
    assert bare(ours) == {"PATH": "/bin"}
    assert bare(ours, "PYTHONPATH", LC_ALL="C") == {"PATH": "/bin", "PYTHONPATH": "/x", "LC_ALL": "C"}


async def test_nft_and_modprobe_know_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELPY_ETCD_PASSWORD", HUNTER)
    seen = tmp_path / "seen"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nenv >>{seen}\n")
    program.chmod(0o755)
    await nft.run_command([os.fspath(program)])
    await asyncio.to_thread(modules._run, [os.fspath(program)])
    names = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert "PATH" in names
    assert [name for name in names if "ETCD" in name] == []


# -------------------------------------------------------------------------------------------------- files with secrets


def test_a_mode_that_would_shut_us_out_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text("x")
    file.chmod(0o644)
    for user, expected in ((0, "600"), (file.stat().st_uid, "600"), (file.stat().st_uid + 1, "640, and a group of ours")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        [told] = load({"etcd-username": ["u"], "etcd-password-file": [str(file)]}, {}).notes
        assert told.endswith(f"is open to others (mode 644); expected {expected}")


MODES = {0o600: False, 0o640: False, 0o400: False, 0o644: True, 0o602: True, 0o660: True}


@pytest.mark.parametrize(("mode", "noted"), MODES.items())
def test_a_secret_that_is_open_to_others_is_worth_a_note(tmp_path: Path, mode: int, noted: bool) -> None:
    file = tmp_path / "secret"
    file.write_text("x")
    file.chmod(mode)
    told = load({"etcd-username": ["u"], "etcd-password-file": [str(file)]}, {}).notes
    assert told == ((f"--etcd-password-file {str(file)!r} is open to others (mode {mode:o}); expected 600",) if noted else ())
    tls = {"etcd-endpoints": ["https://a:1"], "etcd-certfile": [str(file)]}
    told = load(tls, {"FLANNELPY_ETCD_KEYFILE": str(file)}).notes
    assert told == ((f"FLANNELPY_ETCD_KEYFILE {str(file)!r} is open to others (mode {mode:o}); expected 600",) if noted else ())


def odd(place: Path, kind: str) -> Path:
    """Something that is no file to read."""
    path = place / kind
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "none":
            pass
        case "large":
            with path.open("wb") as file:
                file.truncate(2 << 20)
    return path


ODD = {
    "FIFO": "it is a FIFO",
    "directory": "it is a directory",
    "device": "it is a device",
    "none": "No such file or directory",
    "large": "it has more than ",
}


@pytest.mark.parametrize("kind", ODD)
def test_nothing_but_a_file_is_read_and_nobody_waits(tmp_path: Path, kind: str) -> None:
    path = odd(tmp_path, kind)
    said = ODD[kind]
    with pytest.raises(OSError, match=said):
        read_given(path)
    with pytest.raises(RegistryAuthError, match=rf"--etcd-password-file .*: {said}.*; expected the password in it"):
        read_password(Endpoint((), username="u", password_file=str(path)))
    address = Address("127.0.0.1", 1, tls=True)
    for flag, field in (("--etcd-cafile", "cafile"), ("--etcd-certfile", "certfile"), ("--etcd-keyfile", "keyfile")):
        with pytest.raises(RegistryTlsError, match=rf"{flag} .*: {said}.*; expected a PEM file"):
            read_credentials(address, Endpoint((), **{field: str(path)}))


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "none"])
async def test_no_odd_certificate_stops_the_loop(tmp_path: Path, kind: str) -> None:
    path = str(odd(tmp_path, kind))
    seen = await greet(Address("127.0.0.1", 1, tls=True), Endpoint((), certfile=path, keyfile=path))
    assert not seen.spoken


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    """As certbot and Kubernetes lay them."""
    (tmp_path / "file").write_text("s3cret\n")
    (tmp_path / "link").symlink_to("file")
    assert read_password(Endpoint((), username="u", password_file=str(tmp_path / "link"))) == "s3cret"
    assert isinstance(load({"etcd-cafile": [str(tmp_path / "link")]}, {}), Settings)
