"""Protocols of the services that the use cases need from outside, with their contracts. Adapters implement them.

Invariants: an adapter raises only `TerminalStatusError`s; any other exception is a defect. Times are aware UTC and come
from the caller: an adapter has no clock of its own.
"""
