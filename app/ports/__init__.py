"""What the use cases need from outside: protocols with their contracts, which adapters implement.

Invariants: an adapter raises only `TerminalStatusError`s; any other exception is a defect. Times are aware UTC and come
from the caller: an adapter has no clock of its own.
"""
