"""Which hosts may be reached when a stranger names the address: public ones, by https, and not without end.

Checking an address before it is fetched is not enough: a name may answer with a public address first and a
private one later, and a server may redirect. So the check is made where the connection is: a name is looked
up once for each connection, all that it answers must be public, and the connection goes to the very address
that was checked. Redirects make connections of their own and pass the same door. A proxy that the environment
names is not used, because it would look names up by itself.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

from terralapse.errors import HostileFileError

_HINT = "Give the https address of a COG or STAC item that everybody can reach."
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], list[str]]
Connect = Callable[..., socket.socket]


def lookup(host: str, port: int) -> list[str]:
    """All addresses of a name.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public Internet, also when it is wrapped in an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner and not is_public(str(inner)):
            return False
        if ip.ipv4_mapped:
            return True
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class Door:
    """What may be reached, and how much may be read in all.

    Args:
        budget: bytes of bodies.
        resolve, connect: how names are looked up and connections made; tests give others.
        schemes: `https` alone; none lets nothing through.
        ports: those that may be connected to; None for all.
    """

    def __init__(
        self,
        budget: int,
        *,
        resolve: Resolve = lookup,
        connect: Connect = create_connection,
        schemes: tuple[str, ...] = ("https",),
        ports: tuple[int, ...] | None = (443,),
    ) -> None:
        self._left = budget
        self._budget = budget
        self._resolve, self._connect = resolve, connect
        self._schemes, self._ports = schemes, ports
        self._lock = threading.Lock()

    def check(self, url: str) -> None:
        """Refuses an address by its form.

        Raises:
            HostileFileError: no https, a user name, another port, no host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise HostileFileError(url, "is no address", _HINT) from error
        if not self._schemes:
            raise HostileFileError(url, "is an address, and no address is read here", "Give a file.")
        if parts.scheme not in self._schemes:
            raise HostileFileError(url, f"is no {' or '.join(self._schemes)} address", _HINT)
        if not parts.hostname or "@" in parts.netloc or "\\" in url or any(ord(c) <= 32 for c in url):
            raise HostileFileError(url, "names no host, or more than a host", _HINT)
        if ":" in parts.hostname or "::" in url:  # two colons name a date of a cube elsewhere
            raise HostileFileError(url, "names a host by a number, or holds two colons in a row", _HINT)
        if self._ports is not None and port not in self._ports:
            raise HostileFileError(url, f"names the port {port}", _HINT)

    def take(self, count: int, url: str) -> None:
        """Counts bytes that came.

        Raises:
            HostileFileError: more than the budget.
        """
        with self._lock:
            self._left -= count
            if self._left < 0:
                fault = f"asks for more than the {self._budget:,} bytes that may be read from addresses"
                raise HostileFileError(url, fault, "Give a smaller image, or one with tiles and overviews.")

    def pools(self, **options: Any) -> urllib3.PoolManager:
        """Connections through this door and no other."""
        manager = urllib3.PoolManager(**options)
        both = {"http": _http_pool, "https": _https_pool}
        # A scheme without a pool and a key is one that leads nowhere, also by a redirect.
        manager.pool_classes_by_scheme = {s: both[s](self) for s in self._schemes}
        manager.key_fn_by_scheme = {s: manager.key_fn_by_scheme[s] for s in self._schemes}
        return manager

    def open(self, connection: HTTPConnection) -> socket.socket:
        """A socket to a public address of the host that a connection is for."""
        host, port = connection._dns_host, connection.port or 443  # pyright: ignore[reportAttributeAccessIssue]
        if self._ports is not None and port not in self._ports:
            raise HostileFileError(host, f"is named with the port {port}", _HINT)
        try:
            found = self._resolve(host, port)
        except OSError as error:
            cause = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
            raise NameResolutionError(host, connection, cause) from error
        if not found or not all(is_public(a) for a in found):
            raise HostileFileError(host, "is not on the public Internet", _HINT)
        last: OSError | None = None
        for address in found:
            try:
                return self._connect((address, port), connection.timeout)
            except OSError as error:
                last = error
        raise NewConnectionError(connection, str(last)) from last


def _http_pool(door: Door) -> type[HTTPConnectionPool]:
    class Connection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return door.open(self)

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection  # pyright: ignore[reportAssignmentType]

    return Pool


def _https_pool(door: Door) -> type[HTTPConnectionPool]:
    """The certificate is still asked for by name, though the connection goes to an address."""

    class Connection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return door.open(self)

    class Pool(HTTPSConnectionPool):
        ConnectionCls = Connection  # pyright: ignore[reportAssignmentType]

    return Pool
