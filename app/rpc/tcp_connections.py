"""The TCP connections at the gRPC port, listed and shut down through the kernel.

gRPC does not show a connection before its first call, and cannot close one. Linux only (`/proc`): on other systems the
list is empty, and limits on connections are left to a proxy.

Invariants: the connection that is shut down is the one that was listed: its descriptor is duplicated and compared by
inode first. gRPC then reads the end of the connection, and closes its own descriptor.

Deliberately absent: which connections to shut down (`connection_limits.py`).
"""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

_ESTABLISHED, _LISTENING = "01", "0A"  # `st` of /proc/net/tcp
_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class Connection:
    """An established connection; `peer` is gRPC's name for its remote end, such as `ipv4:127.0.0.1:5000`."""

    peer: str
    inode: int


def accepted_connections(port: int) -> list[Connection]:
    """The established connections at the port, in this network namespace (machine or container)."""
    return [Connection(peer_of(fields[2]), int(fields[9])) for fields in _table_rows(port, _ESTABLISHED)]


def shut_down(inodes: Collection[int]) -> int:
    """Shuts down this process's connections with these inodes. Returns their number."""
    number = 0
    for sock in _own_sockets(inodes):
        with contextlib.suppress(OSError):  # the connection has ended meanwhile
            sock.shutdown(socket.SHUT_RDWR)
            number += 1
    return number


def listening_sockets(port: int) -> Iterator[socket.socket]:
    """This process's listening sockets at the port, as duplicates; each is closed when the next is taken."""
    return _own_sockets({int(fields[9]) for fields in _table_rows(port, _LISTENING)})


def _table_rows(port: int, state: str) -> Iterator[list[str]]:
    suffix = f":{port:04X}"
    for table in _TABLES:
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            if suffix not in line:
                continue
            fields = line.split(None, 10)
            if fields[3] == state and fields[1].endswith(suffix):
                yield fields


def _own_sockets(inodes: Collection[int]) -> Iterator[socket.socket]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for descriptor in list(_DESCRIPTORS.iterdir()) if wanted else ():
        try:
            if os.readlink(descriptor) not in wanted:  # noqa: PTH115  # a third of the time for 20,000 descriptors
                continue
            sock = socket.socket(fileno=os.dup(int(descriptor.name)))
        except OSError:  # the socket was closed meanwhile
            continue
        with sock:
            if os.fstat(sock.fileno()).st_ino in inodes:
                yield sock


def peer_of(text: str) -> str:
    """gRPC's name for an address of the kernel's table: hexadecimal digits, 32 bits at a time, each in the byte order
    of a little-endian machine."""
    words, _, port = text.partition(":")
    packed = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    ip = ipaddress.ip_address(packed)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return f"ipv4:{ip}:{int(port, 16)}" if ip.version == 4 else f"ipv6:%5B{ip}%5D:{int(port, 16)}"
