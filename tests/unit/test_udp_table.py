"""What are the workers told of the peers? What has changed, deletions first."""

from __future__ import annotations

from random import Random

from netaddr import IPAddress, IPNetwork

from backends.udp.protocol import DELETE, SET, Order
from backends.udp.table import Table
from flannelpy.core.model import Lease, LeaseAttrs


def lease(subnet: str, at: str, subnet6: str | None = None) -> Lease:
    return Lease(IPNetwork(subnet), LeaseAttrs(IPAddress(at)), None if subnet6 is None else IPNetwork(subnet6))


def shown(orders: list[Order]) -> list[str]:
    words = []
    for order in orders:
        net = f"{IPAddress(order.network, 4)}/{order.length}"
        words.append(f"set {net} at {IPAddress(order.host, 4)}" if order.what == SET else f"delete {net}")
    return words


def test_a_peer_comes_moves_and_goes() -> None:
    table = Table()
    assert shown(table.change({"a": lease("10.5.9.0/24", "192.0.2.2")})) == ["set 10.5.9.0/24 at 192.0.2.2"]
    assert table.change({"a": lease("10.5.9.0/24", "192.0.2.2")}) == []
    assert shown(table.change({"a": lease("10.5.9.0/24", "192.0.2.3")})) == ["set 10.5.9.0/24 at 192.0.2.3"]
    assert shown(table.change({"a": None})) == ["delete 10.5.9.0/24"]
    assert table.change({"a": None}) == []
    assert len(table) == 0


def test_another_key_takes_the_block_over_without_a_gap() -> None:
    dual = lease("10.5.9.0/24", "192.0.2.66", "fd00:1::/64")
    for first, last in ((("a", None), ("b", dual)), (("b", dual), ("a", None))):
        table = Table()
        table.change({"a": lease("10.5.9.0/24", "192.0.2.2")})
        assert shown(table.change(dict((first, last)))) == ["set 10.5.9.0/24 at 192.0.2.66"]
        assert shown(table.orders()) == ["set 10.5.9.0/24 at 192.0.2.66"]


def test_an_ipv6_only_node_is_nobodys_ipv4_peer() -> None:
    assert Table().change({"a": lease("0.0.0.0/0", "0.0.0.0", "fd00:1::/64")}) == []


def test_what_the_workers_were_told_is_what_there_is() -> None:
    random, table, told = Random(3), Table(), dict[tuple[int, int], int]()
    for _ in range(500):
        keys = random.sample(range(20), random.randint(1, 5))  # one block a key: no two share one
        orders = table.change(
            {f"{at}": lease(f"10.5.{at}.0/24", f"192.0.2.{random.randint(1, 3)}") if random.random() < 0.6 else None for at in keys}
        )
        kinds = [order.what for order in orders]
        assert kinds == sorted(kinds, key=lambda what: what != DELETE)
        for order in orders:
            if order.what == DELETE:
                del told[order.network, order.length]
            else:
                told[order.network, order.length] = order.host
        assert sorted(table.orders()) == sorted(Order(SET, *block, host) for block, host in told.items())
