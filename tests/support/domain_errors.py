"""The classes of domain errors."""

from collections.abc import Iterator

from app.domain.errors import TerminalStatusError


def all_errors(base: type[TerminalStatusError] = TerminalStatusError) -> Iterator[type[TerminalStatusError]]:
    for error in base.__subclasses__():
        yield error
        yield from all_errors(error)
