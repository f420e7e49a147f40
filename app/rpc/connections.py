"""Connections to the gRPC port, as the kernel lists them: gRPC shows none before its first call, and closes none.

Linux only (`/proc`); elsewhere there are none to see, and bounds on connections are left to what stands in front.

New connections of an address are shut out by a socket filter on the listening socket, by which the kernel drops their
first packets: this needs no privilege, and costs this process nothing. Connections that stand are not touched by it.

Invariants: a connection that is cut is the one that was listed: its descriptor is duplicated, and compared by inode,
before it is shut down. gRPC then sees the end of the connection, and closes its own descriptor.

Deliberately absent: which of them have to go (`connection_limits.py`).
"""

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_ESTABLISHED, _LISTENING = "01", "0A"
_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_DESCRIPTORS = Path("/proc/self/fd")

MOST_SHUT_OUT = 64

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_NETWORK_HEADER, _V4_SOURCE, _V6_SOURCE = 2**32 - 0x100000, 12, 8
_LOAD_WORD, _LOAD_BYTE, _FROM_MEMORY, _TO_MEMORY = 0x20, 0x30, 0x60, 0x02
_SHIFT_RIGHT, _EQUAL, _JUMP, _RETURN = 0x74, 0x15, 0x05, 0x06
_INSTRUCTION = struct.Struct("@HBBI")


def _op(code: int, if_so: int = 0, if_not: int = 0, k: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_so, if_not, k)


_PASS, _DROP = _op(_RETURN, k=2**32 - 1), _op(_RETURN)


@dataclass(frozen=True, slots=True)
class Connection:
    """One that is established; `peer` is its name in gRPC, such as `ipv4:127.0.0.1:5000`."""

    peer: str
    inode: int


def connections(port: int) -> list[Connection]:
    """Those that this machine or container has accepted at the port."""
    return [Connection(peer_of(fields[2]), int(fields[9])) for fields in _listed(port, _ESTABLISHED)]


def cut(inodes: Collection[int]) -> int:
    """Shuts down those of this process; how many."""
    done = 0
    for sock in _ours(inodes):
        with contextlib.suppress(OSError):  # it ended meanwhile
            sock.shutdown(socket.SHUT_RDWR)
            done += 1
    return done


def shut_out(port: int, buckets: Collection[str]) -> None:
    """Lets nobody of these connect to the port, and all others: IPv4 addresses, and /64 networks of IPv6, as
    `proxies.bucket` names them; at most MOST_SHUT_OUT of them count."""
    program = _filter(list(buckets)[:MOST_SHUT_OUT])
    memory = ctypes.create_string_buffer(program)
    handed = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(memory))
    for sock in _ours({int(fields[9]) for fields in _listed(port, _LISTENING)}):
        if buckets:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, handed)
        else:
            with contextlib.suppress(FileNotFoundError):  # there was none
                sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _listed(port: int, state: str) -> Iterator[list[str]]:
    wanted = f":{port:04X}"
    for table in _TABLES:
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            if wanted not in line:
                continue
            fields = line.split(None, 10)
            if fields[3] == state and fields[1].endswith(wanted):
                yield fields


def _ours(inodes: Collection[int]) -> Iterator[socket.socket]:
    """The sockets of this process that have these inodes; each is a duplicate, closed when the next is asked for."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for descriptor in list(_DESCRIPTORS.iterdir()) if wanted else ():
        try:
            if os.readlink(descriptor) not in wanted:  # noqa: PTH115  # 20,000 of them: a third of the time
                continue
            sock = socket.socket(fileno=os.dup(int(descriptor.name)))
        except OSError:  # it ended meanwhile
            continue
        with sock:
            if os.fstat(sock.fileno()).st_ino in inodes:
                yield sock


def _filter(buckets: Iterable[str]) -> bytes:
    """A classic BPF program (Linux `filter.h`) that drops packets from these addresses, and no others."""
    v4, v6 = list[bytes](), list[bytes]()
    for bucket in buckets:
        try:
            network = ipaddress.ip_network(bucket)
        except ValueError:  # of what a proxy named, or is behind one: nobody who connects to us
            continue
        packed = network.network_address.packed
        if network.version == 4:
            v4 += [_op(_EQUAL, 0, 1, int.from_bytes(packed)), _DROP]
        else:
            high, low = int.from_bytes(packed[:4]), int.from_bytes(packed[4:8])
            v6 += [
                _op(_FROM_MEMORY, k=0),
                _op(_EQUAL, 0, 3, high),
                _op(_FROM_MEMORY, k=1),
                _op(_EQUAL, 0, 1, low),
                _DROP,
            ]
    of_v4 = [_op(_LOAD_WORD, k=_NETWORK_HEADER + _V4_SOURCE), *v4, _PASS]
    of_v6 = [
        *(_op(_LOAD_WORD, k=_NETWORK_HEADER + _V6_SOURCE), _op(_TO_MEMORY, k=0)),
        *(_op(_LOAD_WORD, k=_NETWORK_HEADER + _V6_SOURCE + 4), _op(_TO_MEMORY, k=1)),
        *v6,
        _PASS,
    ]
    version = [_op(_LOAD_BYTE, k=_NETWORK_HEADER), _op(_SHIFT_RIGHT, k=4), _op(_EQUAL, 1, 0, 4)]
    return b"".join([*version, _op(_JUMP, k=len(of_v4)), *of_v4, *of_v6])


def peer_of(text: str) -> str:
    """The name that gRPC gives to a peer that the kernel lists: hexadecimal digits, of the address 32 bits at a time in
    the order of a little-endian machine."""
    words, _, port = text.partition(":")
    packed = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    ip = ipaddress.ip_address(packed)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return f"ipv4:{ip}:{int(port, 16)}" if ip.version == 4 else f"ipv6:%5B{ip}%5D:{int(port, 16)}"
