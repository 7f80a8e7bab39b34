"""Which addresses a webhook may go to: public ones, and those that the settings name."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class TargetRefused(Exception):
    """A webhook must not go there; the message says why."""


def check_address(text: str, allowed: Sequence[Network]) -> None:
    """Check an address before a connection is made to it.

    Raises:
        TargetRefused: It is not public, and the settings do not name it.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = _inner(address)
    faces = (address, inner)
    if any(face.version == net.version and face in net for face in faces for net in allowed):
        return
    for face in faces:
        if not face.is_global or face.is_multicast or face.is_reserved:
            raise TargetRefused("the address is not public (see TERSOR_WEBHOOK_PRIVATE_NETWORKS)")


def check_url(url: str, allowed: Sequence[Network]) -> None:
    """Check what can be told of a URL without asking the DNS.

    Raises:
        TargetRefused: It is no http URL, or names an address that is not public.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise TargetRefused("this is not a URL") from error
    if parts.scheme not in ("http", "https") or not host:
        raise TargetRefused("a URL like https://example.com/hook, please")
    if "@" in parts.netloc:
        raise TargetRefused("names and passwords in URLs are not sent")
    if port == 0:
        raise TargetRefused("there is no port 0")
    try:
        check_address(host, allowed)
    except ValueError:
        return  # a name: what it stands for is looked at when a connection is made


def _inner(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address leads to, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
