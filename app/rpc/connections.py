"""Connections to the gRPC port, as the kernel lists them: gRPC shows none before its first call, and closes none.

Linux only (`/proc`); elsewhere there are none to see, and bounds on connections are left to what stands in front.

Invariants: a connection that is cut is the one that was listed: its descriptor is duplicated, and compared by inode,
before it is shut down. gRPC then sees the end of the connection, and closes its own descriptor.

Deliberately absent: which of them have to go (`guard.py`).
"""

import ipaddress
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_ESTABLISHED = "01"
_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class Connection:
    """One that is established; `peer` is its name in gRPC, such as `ipv4:127.0.0.1:5000`."""

    peer: str
    inode: int


def connections(port: int) -> list[Connection]:
    """Those that this machine or container has accepted at the port."""
    found, wanted = [], f":{port:04X}"
    for table in _TABLES:
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            if wanted not in line:
                continue
            fields = line.split(None, 10)
            if fields[3] == _ESTABLISHED and fields[1].endswith(wanted):
                found.append(Connection(peer_of(fields[2]), int(fields[9])))
    return found


def cut(inodes: Collection[int]) -> int:
    """Shuts down those of this process; how many."""
    done, wanted = 0, {f"socket:[{inode}]" for inode in inodes}
    for descriptor in list(_DESCRIPTORS.iterdir()) if wanted else ():
        try:
            if os.readlink(descriptor) not in wanted:  # noqa: PTH115  # 20,000 of them: a third of the time
                continue
            with socket.socket(fileno=os.dup(int(descriptor.name))) as sock:
                if os.fstat(sock.fileno()).st_ino in inodes:
                    sock.shutdown(socket.SHUT_RDWR)
                    done += 1
        except OSError:  # it ended meanwhile
            continue
    return done


def peer_of(text: str) -> str:
    """The name that gRPC gives to a peer that the kernel lists: hexadecimal digits, of the address 32 bits at a time in
    the order of a little-endian machine."""
    words, _, port = text.partition(":")
    packed = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    ip = ipaddress.ip_address(packed)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return f"ipv4:{ip}:{int(port, 16)}" if ip.version == 4 else f"ipv6:%5B{ip}%5D:{int(port, 16)}"
