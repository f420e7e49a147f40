"""A dictionary with a capacity, for caches and for counts per peer that a stranger could otherwise grow without limit.

Setting a key makes it the newest; above the capacity the key that was set longest ago is removed. Reading changes no
order: a read costs what it costs on a plain `dict`, and a cache that must keep what is read sets it again.

Why not `del d[next(iter(d))]` on a plain `dict`: each removal leaves a hole at the front, over which every later `iter`
walks. At a capacity of 10,000 this measured 4 to 6 microseconds for each new key, against 0.5 here.
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
