"""Blocks new connections of some addresses, by a socket filter (classic BPF) on the listening socket.

The kernel then drops the first packets of such connections. This needs no privilege, and costs this process nothing.
Established connections are not affected.

Deliberately absent: which addresses are blocked, and for how long (`connection_limits.py`).
"""

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterable

from app.rpc.tcp_connections import listening_sockets

MAX_BLOCKED = 64

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_NETWORK_HEADER, _V4_SOURCE, _V6_SOURCE = 2**32 - 0x100000, 12, 8
_LOAD_WORD, _LOAD_BYTE, _FROM_MEMORY, _TO_MEMORY = 0x20, 0x30, 0x60, 0x02
_SHIFT_RIGHT, _EQUAL, _JUMP, _RETURN = 0x74, 0x15, 0x05, 0x06
_INSTRUCTION = struct.Struct("@HBBI")


def _op(code: int, if_so: int = 0, if_not: int = 0, k: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_so, if_not, k)


_PASS, _DROP = _op(_RETURN, k=2**32 - 1), _op(_RETURN)


def block_addresses(port: int, buckets: Collection[str]) -> None:
    """Blocks these addresses, and no others, from connecting to the port. `buckets` are IPv4 addresses and /64 networks
    of IPv6, as `proxies.bucket` returns them; only the first MAX_BLOCKED have an effect. Raises OSError."""
    program = _filter_program(list(buckets)[:MAX_BLOCKED])
    memory = ctypes.create_string_buffer(program)
    sock_fprog = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(memory))
    for sock in listening_sockets(port):
        if buckets:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, sock_fprog)
        else:
            with contextlib.suppress(FileNotFoundError):  # no filter is attached
                sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _filter_program(buckets: Iterable[str]) -> bytes:
    """The program (instructions of Linux's `filter.h`) that drops packets from these addresses, and passes others."""
    v4, v6 = list[bytes](), list[bytes]()
    for bucket in buckets:
        try:
            network = ipaddress.ip_network(bucket)
        except ValueError:  # a name from a proxy's header: nobody who connects to this socket
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
