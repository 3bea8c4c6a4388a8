"""Network interfaces of this machine: which there are, and their IPv4 addresses."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys

_SIOCGIFADDR = 0x8915  # Linux, netdevice(7)


def interface_names() -> list[str]:
    """Return the names of all interfaces."""
    return [name for _, name in socket.if_nameindex()]


def interface_towards(address: str) -> str | None:
    """Return the name of the interface from which the system reaches an address, None if it has no IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing: the system chooses the route
        own = probe.getsockname()[0]
    return next((name for name in interface_names() if interface_address(name) == own), None)


def interface_address(name: str) -> str | None:
    """Return the IPv4 address of an interface, None if it has none. Linux only."""
    assert sys.platform == "linux"
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
