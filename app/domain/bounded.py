"""A dictionary with a capacity, for caches and for counts per peer, which a hostile peer could grow without limit.

Setting a key makes it the newest; above the capacity the key that was set longest ago is removed. Reading a key does
not make it newer, so a read is as fast as on a plain `dict`. A cache that keeps recently read keys sets them again.

Why not `del d[next(iter(d))]` on a plain `dict`: each removal leaves a gap at the front, which every later `iter` walks
through. At a capacity of 10,000 a new key then took 4 to 6 microseconds, against 0.5 here (measured).
"""

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """Holds the `capacity` keys that were set last."""

    __slots__ = ("capacity",)

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if len(self) > self.capacity:
            self.popitem(last=False)
        else:
            self.move_to_end(key)
