"""Flags and environment become settings, in flannel's spellings; what is wrong is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress

from flannelpy.agent.lock import CLAIMS_VARIABLE
from flannelpy.core.errors import UsageError
from flannelpy.options import ALL, BY_NAME, spell_out
from flannelpy.registry.kube.access import Access, find_node
from flannelpy.settings import Settings, load, load_endpoint


def settings(*words: str, **environ: str) -> Settings:
    """As from a command line of nothing but options."""
    written: dict[str, list[str]] = {}
    for word in spell_out(words):
        name, _, value = word.removeprefix("--").partition("=")
        written.setdefault(name, []).append(value)
    return load(written, environ)


def refusal(*words: str, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        settings(*words, **environ)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_conformance_defaults_are_flannels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "h1")
    assert settings() == Settings(
        endpoint=load_endpoint({}, {}),
        subnet_file=Path("/run/flannel/subnet.env"),
        renew_margin_s=3600.0,
        forward_rules=True,
        masq_fully_random=True,
        healthz_ip=IPAddress("127.0.0.1"),
        hostname="h1",
    )
    assert settings().endpoint.urls == ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    assert settings().endpoint.prefix == "/coreos.com/network"
    assert (settings().ip_masq, settings().blackhole_route, settings().healthz_port, settings().notes) == (False, False, 0, ())


@pytest.mark.parametrize("words", [("--iface", "eth1"), ("-iface", "eth1"), ("--iface=eth1",), ("-iface=eth1",)])
def test_conformance_one_dash_or_two_blank_or_equals(words: tuple[str, ...]) -> None:
    assert settings(*words).iface == ("eth1",)


@pytest.mark.parametrize(
    ("word", "on"),
    [
        ("--ip-masq", True),
        ("-ip-masq", True),
        ("--ip-masq=true", True),
        ("-ip-masq=T", True),
        ("--ip-masq=false", False),
        ("--ip-masq=0", False),
    ],
)
def test_conformance_booleans(word: str, on: bool) -> None:
    assert settings(word).ip_masq is on


def test_booleans_that_are_on_can_be_turned_off() -> None:
    assert settings("--iptables-forward-rules=false").forward_rules is False
    assert settings("--ip-masq-fully-random-disable").masq_fully_random is False


def test_a_boolean_with_a_blank_is_an_error_where_flannel_takes_it_for_true() -> None:
    assert refusal("--ip-masq", "false") == "--ip-masq false: expected --ip-masq=false"


def test_a_value_that_looks_like_a_flag_is_still_the_value() -> None:
    assert settings("--iface-regex", "-iface").iface_regex == ("-iface",)


def test_a_flag_at_the_end_misses_its_value() -> None:
    assert refusal("--iface") == "--iface: expected a value after it (NAME|ADDRESS)"


def test_what_is_not_an_option_of_ours_is_left_alone() -> None:
    assert spell_out(["docker-opts", "-ic", "-k", "OPTS", "--", "-iface"]) == ["docker-opts", "-ic", "-k", "OPTS", "--", "-iface"]
    assert spell_out(["-nope"]) == ["--nope"]
    assert spell_out(["config", "check", "-"]) == ["config", "check", "-"]


def test_repeatable_options_keep_their_order_and_others_take_the_last() -> None:
    got = settings("--iface=a", "--iface=b", "--healthz-port=1", "--healthz-port=2")
    assert (got.iface, got.healthz_port) == (("a", "b"), 2)


# ---------------------------------------------------------------------------------------------------------- environment


def test_a_flag_wins_over_our_variable_and_that_over_flannels() -> None:
    both = {"FLANNELPY_IFACE": "ours", "FLANNELD_IFACE": "flannels"}
    assert settings("--iface=flag", **both).iface == ("flag",)
    assert settings(**both).iface == ("ours",)
    assert settings(FLANNELD_IFACE="flannels").iface == ("flannels",)


def test_conformance_an_empty_variable_is_an_unset_one() -> None:
    assert settings(FLANNELPY_HEALTHZ_PORT="", FLANNELD_HEALTHZ_PORT="7").healthz_port == 7


def test_conformance_a_variable_holds_one_element() -> None:
    assert settings(FLANNELD_IFACE="a,b").iface == ("a,b",)


def test_variables_for_booleans() -> None:
    assert settings(FLANNELD_IP_MASQ="true").ip_masq is True
    assert settings(FLANNELPY_IPTABLES_FORWARD_RULES="false").forward_rules is False


def test_an_error_names_the_variable_where_the_value_came_from_one() -> None:
    assert refusal(FLANNELD_IP_MASQ="ja") == "FLANNELD_IP_MASQ 'ja': expected true or false"
    assert refusal(FLANNELPY_ETCD_ENDPOINTS="etcd:2379").startswith("FLANNELPY_ETCD_ENDPOINTS 'etcd:2379': expected http://")


# ----------------------------------------------------------------------------------------------------------------- etcd


def test_endpoints_are_a_list_with_blanks_trimmed() -> None:
    assert settings("--etcd-endpoints", " http://a:1 , https://[fd00::1]:2/ ,").endpoint.urls == (
        "http://a:1",
        "https://[fd00::1]:2",
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "etcd:2379",
        "ftp://a:1",
        "http://",
        "http://a:port",
        "http://a:99999",
        "http://a:1/v2",
        "http://fd00::1:2379",
    ],
)
def test_an_endpoint_that_cannot_be(wrong: str) -> None:
    said = refusal(f"--etcd-endpoints=http://ok:1,{wrong}")
    assert said.startswith(f"--etcd-endpoints {wrong!r}: ")
    assert "expected " in said


def test_a_password_inside_an_endpoint_is_not_shown() -> None:
    assert "hunter2" not in refusal("--etcd-endpoints=http://user:hunter2@a:1")


def test_bytes_that_are_no_text_are_refused_wherever_they_stand() -> None:
    odd = os.fsdecode(b"http://a\xff:1")
    assert refusal(f"--etcd-endpoints={odd}") == "--etcd-endpoints: letter 9 is not UTF-8; expected UTF-8 text"
    assert refusal(FLANNELD_IFACE=odd).startswith("FLANNELD_IFACE: letter 9 is not UTF-8")


def test_endpoints_may_not_be_empty() -> None:
    assert refusal("--etcd-endpoints=,").startswith("--etcd-endpoints ',': expected one URL")


@pytest.mark.parametrize(
    ("written", "used"), [("/a/b/", "/a/b"), ("//a//b", "/a/b"), ("a/b", "a/b"), ("/a/../b", "/b"), ("/", ""), ("/a/./b", "/a/b")]
)
def test_conformance_the_prefix_is_cleaned_like_a_path(written: str, used: str) -> None:
    assert settings(f"--etcd-prefix={written}").endpoint.prefix == used


def test_files_must_be_readable(tmp_path: Path) -> None:
    missing = str(tmp_path / "ca.pem")
    assert refusal(f"--etcd-cafile={missing}") == f"--etcd-cafile {missing!r}: expected a readable file: No such file or directory"
    assert refusal(f"--etcd-cafile={tmp_path}") == f"--etcd-cafile {str(tmp_path)!r}: expected a readable file: it is a directory"


def test_certificate_and_key_come_together(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_text("x")
    file.chmod(0o600)
    assert refusal(f"--etcd-certfile={file}") == f"--etcd-certfile {str(file)!r}: expected --etcd-keyfile with it"
    assert refusal(FLANNELD_ETCD_KEYFILE=str(file)) == f"FLANNELD_ETCD_KEYFILE {str(file)!r}: expected --etcd-certfile with it"
    both = settings("--etcd-endpoints=https://a:1", f"--etcd-certfile={file}", f"--etcd-keyfile={file}")
    assert (both.endpoint.certfile, both.endpoint.keyfile, both.notes) == (str(file), str(file), ())


def test_tls_files_without_https_are_worth_a_note(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_text("x")
    assert settings(f"--etcd-cafile={file}").notes == ("--etcd-cafile not used: no endpoint begins with https://",)


def test_user_and_password_come_together_and_the_password_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    file.chmod(0o600)
    assert refusal("--etcd-password=hunter2") == "--etcd-password: expected --etcd-username with it"
    assert refusal("--etcd-username=u").startswith("--etcd-username 'u': expected --etcd-password-file")
    assert "only one" in refusal("--etcd-username=u", "--etcd-password=hunter2", f"--etcd-password-file={file}")
    got = settings("--etcd-username=u", "--etcd-password=hunter2")
    assert got.endpoint.password.reveal() == "hunter2"
    assert "hunter2" not in repr(got)
    assert got.notes == ("--etcd-password can be read by everybody on this host; --etcd-password-file cannot",)
    assert settings("--etcd-username=u", f"--etcd-password-file={file}").endpoint.password_file == str(file)
    assert settings("--etcd-username=u", FLANNELPY_ETCD_PASSWORD="hunter2").notes == ()


# ----------------------------------------------------------------------------------------------------- one line for a mistake


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--public-ip=fd00::1", "--public-ip 'fd00::1': expected an IPv4 address"),
        ("--public-ip=0.0.0.0", "--public-ip '0.0.0.0': expected an address of one host"),
        ("--public-ip=10.0.0.1/24", "--public-ip '10.0.0.1/24': expected an IPv4 address"),
        ("--public-ipv6=10.0.0.1", "--public-ipv6 '10.0.0.1': expected an IPv6 address"),
        ("--iface-can-reach=nowhere", "--iface-can-reach 'nowhere': expected an IP address"),
        ("--iface=", "--iface '': expected an interface's name or address"),
        (
            "--iface-regex=(",
            "--iface-regex '(': expected a regular expression: missing ), unterminated subpattern at position 0;"
            " expected a pattern of RE2, as flannel takes it",
        ),
        ("--subnet-lease-renew-margin=0", "--subnet-lease-renew-margin '0': expected a whole number from 1 to 1439 (minutes)"),
        (
            "--subnet-lease-renew-margin=1440",
            "--subnet-lease-renew-margin '1440': expected a whole number from 1 to 1439 (minutes)",
        ),
        ("--healthz-port=65536", "--healthz-port '65536': expected a whole number from 0 to 65535 (a port; 0 is off)"),
        ("--healthz-port=http", "--healthz-port 'http': expected a whole number from 0 to 65535 (a port; 0 is off)"),
        ("--healthz-ip=", "--healthz-ip '': expected an IP address"),
        ("--subnet-file=", "--subnet-file '': expected a path"),
        ("--etcd-prefix=", "--etcd-prefix '': expected a path like /coreos.com/network"),
        ("--log-level=loud", "--log-level 'loud': expected debug, info, warning or error"),
        ("--udp-engine=fou", "--udp-engine 'fou': expected auto, kernel, userspace or pump"),
        ("--prefer=wireguard", "--prefer 'wireguard': expected none"),
        ("--udp-workers=0", "--udp-workers '0': expected a whole number from 1 to 64 (worker processes)"),
        ("--udp-workers=65", "--udp-workers '65': expected a whole number from 1 to 64 (worker processes)"),
        ("--udp-workers=all", "--udp-workers 'all': expected a whole number from 1 to 64 (worker processes)"),
        ("--log-format=xml", "--log-format 'xml': expected text, json or journal"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(word: str, said: str) -> None:
    assert refusal(word) == said


@pytest.mark.parametrize(("minutes", "seconds"), [("1", 60.0), ("1439", 86340.0)])
def test_the_margin_is_in_minutes(minutes: str, seconds: float) -> None:
    assert settings(f"--subnet-lease-renew-margin={minutes}").renew_margin_s == seconds


def test_addresses() -> None:
    got = settings("--public-ip=192.0.2.1", "--public-ipv6=2001:db8::1", "--iface-can-reach=198.51.100.1", "--healthz-ip=::1")
    assert (got.public_ip, got.public_ipv6) == (IPAddress("192.0.2.1"), IPAddress("2001:db8::1"))
    assert (got.iface_can_reach, got.healthz_ip) == (IPAddress("198.51.100.1"), IPAddress("::1"))


# ------------------------------------------------------------------------------------- what flannel takes and we do not need


@pytest.mark.parametrize(
    "words", [("--iptables-resync=5",), ("-v", "10"), ("--v=10",), ("--vmodule=x=2",), ("--log_backtrace_at=:0",)]
)
def test_flags_without_meaning_are_accepted_with_a_line(words: tuple[str, ...]) -> None:
    (note,) = settings(*words).notes
    assert note.startswith(f"--{words[0].lstrip('-').partition('=')[0]} has no effect: ")


def test_flannels_variables_in_use_are_told() -> None:
    assert settings(FLANNELD_IP_MASQ="true", FLANNELD_IFACE="eth1").notes == (
        "taken from flanneld's environment: FLANNELD_IFACE, FLANNELD_IP_MASQ",
    )


def test_a_variable_of_ours_that_is_no_option_is_told() -> None:
    assert settings(FLANNELPY_IFCAE="eth1", FLANNELPY_OPTIONS="--iface eth1").notes == ("FLANNELPY_IFCAE: no such option, ignored",)


def test_without_kubernetes_mode_its_options_are_told_and_mean_nothing() -> None:
    assert settings("--kube-subnet-mgr=false") == settings()
    got = settings("--kube-api-url=http://a", "--net-config-path=/x")
    assert got.kube is None
    assert got.notes == ("--kube-api-url and --net-config-path not used: as --kube-subnet-mgr stands, leases are in etcd",)


def test_kubernetes_mode_is_flannels() -> None:
    got = settings("--kube-subnet-mgr", "--kube-api-url=https://10.0.0.1:6443/", "--etcd-prefix=/x", NODE_NAME="n1")
    assert got.kube == Access(api_url="https://10.0.0.1:6443", node="n1")
    assert got.config_place == "/etc/kube-flannel/net-conf.json"
    assert got.notes == ("--etcd-prefix not used: as --kube-subnet-mgr stands, leases are in Kubernetes",)
    assert settings(FLANNELD_KUBE_SUBNET_MGR="true", NODE_NAME="n1").kube == Access(node="n1")


def test_our_node_is_named_by_the_environment_or_is_our_pods_or_the_hosts() -> None:
    assert find_node({"NODE_NAME": "n1", "POD_NAME": "p", "POD_NAMESPACE": "s"}) == ("n1", None)
    assert find_node({"POD_NAME": "p", "POD_NAMESPACE": "s"}) == ("", ("s", "p"))
    assert find_node({"POD_NAME": "p"}, " Host-A.Example ") == ("host-a.example", None)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--kube-api-url=ftp://x", "--kube-api-url 'ftp://x': expected a URL like https://10.0.0.1:6443"),
        ("--kube-api-url=https://u:p@x", "--kube-api-url '...@x': expected a URL like https://10.0.0.1:6443"),
        ("--kubeconfig-file=/nowhere/x", "--kubeconfig-file '/nowhere/x': expected a readable file: No such file or directory"),
        ("--kube-annotation-prefix=A", "--kube-annotation-prefix 'A': expected a domain in lower case"),
        ("--net-config-path=", "--net-config-path '': expected a path"),
    ],
)
def test_what_kubernetes_mode_cannot_take_is_one_line(word: str, said: str) -> None:
    assert refusal("--kube-subnet-mgr", word).startswith(said)


# -------------------------------------------------------------------------------------------------------------- any input


@given(st.sampled_from(sorted(option.name for option in ALL)), st.text(max_size=40))
def test_any_value_is_understood_or_refused_in_one_line(name: str, value: str) -> None:
    said = name
    try:
        load({name: [value]}, {})
    except UsageError as error:
        said = str(error)
    assert name in said
    assert "\n" not in said


@given(
    st.lists(
        st.one_of(st.sampled_from([option.flag for option in BY_NAME.values()]), st.text(alphabet="-=ab0", max_size=6)), max_size=6
    )
)
def test_spelling_out_twice_changes_nothing(words: list[str]) -> None:
    try:
        once = spell_out(words)
    except UsageError:
        return
    assert spell_out(once) == once


def test_the_hosts_word_about_a_backend() -> None:
    assert settings().host_options == {}
    assert settings("--udp-engine", "Pump").host_options == {"udp": {"Engine": "pump"}}
    assert settings(FLANNELPY_UDP_ENGINE="kernel").host_options == {"udp": {"Engine": "kernel"}}
    assert settings(FLANNELPY_UDP_WORKERS="4").host_options == {"udp": {"Workers": 4}}
    assert settings("--udp-engine=pump", "--udp-workers=2").host_options == {"udp": {"Engine": "pump", "Workers": 2}}


@pytest.mark.parametrize(("name", "noted"), [(CLAIMS_VARIABLE, False), ("FLANNELPY_OPTIONS", False), ("FLANNELPY_CLAIM_DIR", True)])
def test_a_variable_that_counts_is_not_called_ignored(name: str, noted: bool) -> None:
    assert load({}, {name: "/run/x"}).notes == ((f"{name}: no such option, ignored",) if noted else ())
