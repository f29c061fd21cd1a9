"""What does rtnetlink say of one kind of device, and what does it need? A driver a kind, found by the type of ``Link.detail``.

Nothing outside of this directory knows a detail by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flannelpy.core.objects import Detail, Ipip, Vxlan, Wireguard
from flannelpy.kernel.drivers.driver import Driver
from flannelpy.kernel.drivers.ipip import IpipDriver
from flannelpy.kernel.drivers.vxlan import VxlanDriver
from flannelpy.kernel.drivers.wireguard import WireguardDriver

_DRIVERS: Mapping[type[Detail], Driver[Any]] = {Vxlan: VxlanDriver(), Ipip: IpipDriver(), Wireguard: WireguardDriver()}
_BY_KIND: Mapping[str, Driver[Any]] = {detail.kind: driver for detail, driver in _DRIVERS.items()}


def driver_of(detail: Detail) -> Driver[Any]:
    """The driver that knows this detail."""
    return _DRIVERS[type(detail)]


def read_detail(kind: str, data: dict[int, bytes], name_of: Callable[[int], str]) -> Detail | None:
    """The detail of a device of this link kind; None where there is none that our words can say."""
    driver = _BY_KIND.get(kind)
    found: Detail | None = None if driver is None else driver.read(data, name_of)
    return found
