"""Moves an open stream to other terminals: its groups have changed, or its client adds and removes addresses."""

from collections.abc import Iterable

from app.live.mailbox import Stream
from app.live.registry import TerminalRegistry
from app.live.terminal import Terminal


def move_stream(
    registry: TerminalRegistry, stream: Stream, *, joining: Iterable[Terminal], leaving: Iterable[Terminal]
) -> None:
    """The stream sends a Snapshot of each joining terminal that it does not have, and Removed for each leaving one. The
    joining terminals are watched (`TerminalRegistry.want`) and loaded."""
    for terminal in leaving:
        stream.remove(terminal)
        registry.remove_stream(stream, terminal)
    for terminal in joining:
        if terminal not in stream.sent:
            registry.add_stream(stream, terminal)
            stream.add(terminal)
