"""Is a marked packet known again wherever it passes, drawn as it is, and said of it what follows? Without a kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from flannelpy.commands.trace.drawing import draw
from flannelpy.commands.trace.live import Watched, arp_answer, frame, shown, watch
from flannelpy.commands.trace.run import _live, telling
from flannelpy.core.envelope import Envelope
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.sightings import Kind, Sighting, Way, outcome, recognised

MARK = b"flannelp" + b"\x12\x34\x56\x78\x9a\xbc\xde\xf0"
OUT, BACK = "02:00:00:00:00:11", "02:00:00:00:00:12"
HERE, THERE, C1, C2 = "192.168.50.11", "192.168.50.12", "10.1.5.253", "10.1.9.2"
VXLAN1, FLANNEL_UDP = Envelope(port=8472, vni=1), Envelope(port=8285)
WAY = Way("docker0", 1450, "flannel.1", VXLAN1, IPAddress(THERE), "eth1")
HOST_GW = Way("docker0", 1500, "", None, None, "eth1")


def inner(kind: int = 8, sequence: int = 1, ttl: int = 63, size: int = 84) -> Packet:
    ends = {"src": C1, "dst": C2} if kind == 8 else {"src": C2, "dst": C1}
    header = IP(ttl=ttl, flags="DF", id=7, **ends) / ICMP(type=kind, id=0x1234, seq=sequence)
    return header / Raw(MARK + bytes(size - 28 - len(MARK)))


def outer(inside: Packet, *, vni: int | None = 1) -> Packet:
    port = 8472 if vni is not None else 8285
    around = IP(src=HERE, dst=THERE, ttl=64, id=1) / UDP(sport=41873, dport=port, chksum=0)
    if vni is None:
        return Ether(src=OUT, dst=BACK) / around / Raw(bytes(inside))
    return Ether(src=OUT, dst=BACK) / around / VXLAN(vni=vni) / Ether(src="0e:00:00:00:00:01", dst="0e:00:00:00:00:02") / inside


def too_large(quoted: Packet, code: int = 4, mtu: int = 1400) -> Packet:
    return IP(src="192.0.2.254", dst=HERE) / ICMP(type=3, code=code, nexthopmtu=mtu) / Raw(bytes(quoted)[:500])


def test_a_vxlan_packet_is_drawn_layer_by_layer() -> None:
    assert draw(bytes(outer(inner())), "eth1, sent, 134 bytes", VXLAN1, MARK) == [
        "+- eth1, sent, 134 bytes -----------------------------------+",
        "| Ethernet    14  02:00:00:00:00:11 > 02:00:00:00:00:12     |",
        "| IPv4        20  192.168.50.11 > 192.168.50.12, TTL 64     |",
        "| UDP          8  41873 > 8472                              |",
        "| VXLAN        8  VNI 1                                     |",
        "| +-------------------------------------------------------+ |",
        "| | Ethernet    14  0e:00:00:00:00:01 > 0e:00:00:00:00:02 | |",
        "| | IPv4        20  10.1.5.253 > 10.1.9.2, TTL 63, DF     | |",
        "| | ICMP         8  echo request, id 4660, sequence 1     | |",
        "| | data        56  our mark                              | |",
        "| +-------------------------------------------------------+ |",
        "+-----------------------------------------------------------+",
    ]


def test_flannels_udp_is_drawn_with_nothing_between() -> None:
    lines = draw(bytes(outer(inner(), vni=None)), "eth1", FLANNEL_UDP, MARK)
    assert lines[0] == "+- eth1 ------------------------------------------------+"
    assert lines[3:6] == [
        "| UDP          8  41873 > 8285                          |",
        "| +---------------------------------------------------+ |",
        "| | IPv4        20  10.1.5.253 > 10.1.9.2, TTL 63, DF | |",
    ]


def test_a_bare_packet_of_a_tun_device_and_an_answer() -> None:
    assert draw(bytes(inner(0)), "flannel0", None, MARK)[1:-1] == [
        "| IPv4        20  10.1.9.2 > 10.1.5.253, TTL 63, DF |",
        "| ICMP         8  echo reply, id 4660, sequence 1   |",
        "| data        56  our mark                          |",
    ]


def test_packets_within_packets_within_packets_come_to_an_end() -> None:
    header, packet = bytes(IP(src=C1, dst=C2, proto=4, len=0)), bytes(inner())
    for _ in range(2000):
        packet = header + packet
    lines = draw(packet[:60_000], "eth1", None, MARK)
    assert len(lines) < 20


def test_what_is_encrypted_is_bytes() -> None:
    lines = draw(bytes(outer(inner(), vni=None)), "eth1", Envelope(port=51820, hidden=True), MARK)
    assert lines[-2] == "| data        84  encrypted                             |"


def test_an_error_shows_what_it_is_about() -> None:
    text = "\n".join(draw(bytes(Ether(src=BACK, dst=OUT) / too_large(inner())), "eth1", None, MARK))
    assert "ICMP         8  destination unreachable, code 4" in text
    assert "| | ICMP         8  echo request, id 4660, sequence 1" in text


@given(st.binary(max_size=200), st.sampled_from([None, VXLAN1, FLANNEL_UDP, Envelope(port=1, hidden=True)]), st.text(max_size=90))
def test_any_bytes_are_a_box_of_lines_that_a_terminal_shows(data: bytes, envelope: Envelope | None, title: str) -> None:
    lines = draw(data, title, envelope, MARK)
    assert len({len(line) for line in lines}) == 1
    assert all(line.isprintable() for line in lines)


@given(
    st.sampled_from([outer(inner()), outer(inner(), vni=None), Ether(src=BACK, dst=OUT) / too_large(inner())]),
    st.lists(st.tuples(st.integers(0, 133), st.integers(0, 255)), max_size=8),
    st.integers(0, 150),
    st.sampled_from([None, VXLAN1, FLANNEL_UDP]),
)
def test_a_frame_that_is_damaged_is_a_box_of_lines(
    whole: Packet, damages: list[tuple[int, int]], length: int, envelope: Envelope | None
) -> None:
    data = bytearray(bytes(whole))
    for at, byte in damages:
        data[at % len(data)] = byte
    cut = bytes(data[:length])
    assert len({len(line) for line in draw(cut, "eth1", envelope, MARK)}) == 1
    recognised(cut, MARK)


@pytest.mark.parametrize(
    "around", [lambda inside: inside, outer, lambda inside: outer(inside, vni=None), lambda inside: Ether() / inside]
)
def test_the_mark_is_known_again_whatever_is_around_it(around) -> None:  # type: ignore[no-untyped-def]
    assert recognised(bytes(around(inner(8, 3))), MARK) == ("request", 3, "")
    assert recognised(bytes(around(inner(0, 3))), MARK) == ("answer", 3, "")
    assert recognised(bytes(around(inner(8, 3))), MARK[:-1] + b"x") is None
    assert recognised(bytes(around(too_large(inner(8, 4)))), MARK) == (
        "error",
        4,
        "192.0.2.254: too large, the way carries 1400 bytes",
    )
    assert recognised(bytes(around(too_large(inner(8, 4), 13))), MARK) == ("error", 4, "192.0.2.254: prohibited")


def test_an_error_about_the_envelope_is_one_about_our_packet() -> None:
    quoted = outer(inner(8, 5))[IP]
    assert recognised(bytes(Ether() / too_large(quoted, 3)), MARK) == ("error", 5, "192.0.2.254: nobody listens at that port")


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_a_mark_in_anything_is_something_or_nothing(before: bytes, behind: bytes) -> None:
    known = recognised(before + MARK + behind, MARK)
    assert known is None or known[0] in ("request", "answer", "error")


def seen(place: str, kind: Kind = "request", said: str = "") -> Sighting:
    return Sighting(place, kind == "request", kind, 1, 0.001, b"", said)


THERE_ALL = [seen("docker0"), seen("flannel.1"), seen("eth1")]
BACK_ALL: list[Sighting] = [seen(place, "answer") for place in ("eth1", "flannel.1", "docker0")]


@pytest.mark.parametrize(
    ("sightings", "said"),
    [
        ([], "84 bytes: not even seen to come in by docker0: does a bridge's port forward there?"),
        (THERE_ALL[:1], "84 bytes: last seen to come in by docker0: this host did not send it on by flannel.1"),
        (THERE_ALL[:2], "84 bytes: last seen at flannel.1: nothing of it left by eth1"),
        (
            THERE_ALL,
            f"84 bytes: last seen to leave by eth1 to {THERE}: lost or dropped on the way there, there, or on the way back",
        ),
        (
            THERE_ALL + BACK_ALL[:1],
            "84 bytes: the answer was last seen to come in by eth1: this host did not let it through to flannel.1",
        ),
        (
            THERE_ALL + BACK_ALL[:2],
            "84 bytes: the answer was last seen to come in by flannel.1: this host did not let it through to docker0",
        ),
        (THERE_ALL + BACK_ALL, "84 bytes: answered after 1.00 ms"),
        ([*THERE_ALL, seen("eth1", "error", "192.0.2.254: prohibited")], "84 bytes: stopped, 192.0.2.254: prohibited"),
    ],
)
def test_what_is_said_of_it_follows_from_where_it_was_seen_in_any_order(sightings: list[Sighting], said: str) -> None:
    for order in (sightings, sightings[::-1]):
        found = outcome(order, WAY, 84)
        assert (found.said, found.answered) == (said, "answered" in said)


def test_what_cannot_be_known_is_said() -> None:
    wireguard = replace(WAY, overlay="flannel-wg", envelope=Envelope(port=51820, hidden=True))
    said = outcome([seen("docker0"), seen("flannel-wg")], wireguard, 84).said
    assert said == "84 bytes: last seen at flannel-wg; what leaves by eth1 is encrypted and cannot be known, and no answer came"
    assert "7 packets passed unseen, ours may be among them" in outcome(THERE_ALL, WAY, 84, missed=7).said
    small = outcome(THERE_ALL + BACK_ALL, WAY, 84)
    assert outcome(THERE_ALL, WAY, 1450, smaller=small).said.endswith(
        "small ones are answered: the way does not carry that many bytes"
    )
    direct = [seen("docker0"), seen("eth1"), seen("eth1", "answer")]
    assert "last seen to come in by eth1: this host did not let it through to docker0" in outcome(direct, HOST_GW, 84).said


def test_the_packet_is_what_a_container_would_send() -> None:
    mac, bridge = bytes.fromhex("feff00000001"), bytes.fromhex("020000000099")
    made = frame(mac, bridge, IPAddress(C1), IPAddress(C2), 4, 1450, MARK)
    assert len(made) == 1450 + 14
    packet = Ether(made)
    assert (packet.src, packet.dst, packet[IP].src, packet[IP].dst) == ("fe:ff:00:00:00:01", "02:00:00:00:00:99", C1, C2)
    assert (str(packet[IP].flags), packet[ICMP].seq, packet[IP].len) == ("DF", 4, 1450)
    assert recognised(made, MARK) == ("request", 4, "")


def test_only_who_asks_for_our_address_is_answered() -> None:
    mac = bytes.fromhex("feff00000001")
    asks = bytes(Ether(src=BACK, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=BACK, psrc="10.1.5.1", pdst=C1))
    answer = arp_answer(asks, IPAddress(C1), mac)
    assert answer is not None
    told = Ether(answer)
    assert (told.dst, told[ARP].op, told[ARP].psrc, told[ARP].hwsrc, told[ARP].pdst) == (
        BACK,
        2,
        C1,
        "fe:ff:00:00:00:01",
        "10.1.5.1",
    )
    assert arp_answer(asks, IPAddress(C2), mac) is None
    assert arp_answer(asks, None, mac) is None  # a container has it, and answers itself
    assert arp_answer(asks[:30], IPAddress(C1), mac) is None
    assert arp_answer(answer, IPAddress("10.1.5.1"), mac) is None


def test_where_it_cannot_be_done_one_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FlannelpyError, match=r"^--live sends IPv4 only$"):
        watch(WAY, IPAddress("fd00::1"), IPAddress("fd00::2"), 1450, invented=True)
    with pytest.raises(FlannelpyError, match="there is no bridge of theirs that is up"):
        watch(Way(), IPAddress(C1), IPAddress(C2), 1450, invented=True)
    with pytest.raises(FlannelpyError, match=r"^--live: nosuchbridge0 cannot be looked at: No such device|^--live: needs root"):
        watch(replace(WAY, bridge="nosuchbridge0"), IPAddress(C1), IPAddress(C2), 1450, invented=True)
    monkeypatch.setitem(__import__("sys").modules, "scapy.layers.inet", None)
    with pytest.raises(FlannelpyError, match=r"^--live needs scapy: pip install 'flannelpy\[live\]'$"):
        watch(WAY, IPAddress(C1), IPAddress(C2), 1450, invented=True)


def test_what_is_shown_is_of_the_packets_that_tell() -> None:
    def at(place: str, sequence: int, kind: Kind = "request") -> Sighting:
        return Sighting(place, kind == "request", kind, sequence, 0.001, bytes(outer(inner(8, sequence))), "")

    sightings = (at("docker0", 1), at("docker0", 2), at("eth1", 2), at("docker0", 2, "answer"), at("docker0", 4), at("eth1", 4))
    outcomes = (outcome(sightings[1:4], WAY, 84), outcome(sightings[4:], WAY, 1450))
    watched = Watched(WAY, MARK, outcomes, sightings)
    assert [(one.place, one.sequence) for one in shown(watched)] == [
        ("docker0", 2),
        ("eth1", 2),
        ("docker0", 2),
        ("docker0", 4),
        ("eth1", 4),
    ]
    assert telling(watched) == sightings[5]  # the one that was lost, as it left
    document = _live(watched)
    assert document is not None
    assert (document["answered"], len(document["sightings"])) == (False, 6)  # type: ignore[arg-type]
    assert _live("--live: needs root") == {"error": "--live: needs root"}
