"""Reads an operation's parts by the Spyne model: elements of a stranger -> the values that the operation takes.

Invariants: a part that is missing, repeated, or of the wrong form is SVC0002 and names the part as the contract does,
with a dot before a part of a part (`reference.endpoint`). What the model does not know is ignored; order is free.
An optional part that is `xsi:nil` is not there, as clients with nullable types mean it.

Deliberately absent: what values mean, and which are allowed: the use cases say so.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from spyne import AnyUri, Boolean, ComplexModel, Integer32, Unicode
from spyne.model.enum import EnumBase

from app.domain.errors import InvalidRequest
from soap_compat.envelope import Part
from soap_compat.faults import declared_fault

_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}
_INT = re.compile(r"[+-]?[0-9]{1,20}")
_SPACE: Final = " \t\r\n"

Read = Callable[[Part, str], Any]
"""Makes a value of an element; the second argument is the part's name, for the fault."""


class Reader:
    """Reads elements of one Spyne type, which is an operation's request or a type of the contract: its members' values
    in the model's order; a list for what may be there several times, None for what may be and is not there."""

    def __init__(self, model: Any) -> None:
        self._members: list[tuple[str, int, float, Read]] = [
            (name, member.Attributes.min_occurs, member.Attributes.max_occurs, _read_for(member))
            for name, member in model.get_flat_type_info(model).items()
        ]
        self._names = frozenset(name for name, *_ in self._members)

    def read(self, part: Part, inside: str = "") -> list[Any]:
        """`inside` is the name of the part that is read, with a dot at its end. Raises SoapFault."""
        found: dict[str, list[Part]] = {}
        for child in part.parts:
            if child.name in self._names:
                found.setdefault(child.name, []).append(child)
        values: list[Any] = []
        for name, at_least, at_most, read in self._members:
            there = found.get(name, [])
            if not at_least:
                there = [child for child in there if not child.nil]
            if not at_least <= len(there) <= at_most:
                raise invalid(inside + name, f"It is there {len(there)} times.")
            if at_most > 1:
                values.append([read(child, inside + name) for child in there])
            else:
                values.append(read(there[0], inside + name) if there else None)
        return values


def invalid(name: str, reason: str) -> Exception:
    """SVC0002 about the part `name`."""
    return declared_fault("SVC0002", name, reason=reason, result=InvalidRequest.code)


def _read_for(model: Any) -> Read:
    if issubclass(model, EnumBase):
        return _read_enumeration(tuple(model.__values__))
    if issubclass(model, ComplexModel):
        reader = Reader(model)
        return lambda part, name: reader.read(part, f"{name}.")
    if issubclass(model, Boolean):
        return _read_boolean
    if issubclass(model, Integer32):
        return _read_int
    if issubclass(model, AnyUri):
        return lambda part, name: _text(part, name).strip(_SPACE)  # whiteSpace="collapse"
    if issubclass(model, Unicode):
        return _text
    raise TypeError(f"no reader for {model}")


def _text(part: Part, name: str) -> str:
    if part.parts:
        raise invalid(name, "It holds an element where text is expected.")
    return part.text


def _read_boolean(part: Part, name: str) -> bool:
    value = _BOOLEANS.get(_text(part, name).strip(_SPACE))
    if value is None:
        raise invalid(name, "It must be true or false.")
    return value


def _read_int(part: Part, name: str) -> int:
    text = _text(part, name).strip(_SPACE)
    value = int(text) if _INT.fullmatch(text) else 1 << 31
    if not -(1 << 31) <= value < 1 << 31:
        raise invalid(name, "It must be a whole number of 32 bits.")
    return value


def _read_enumeration(words: tuple[str, ...]) -> Read:
    def read(part: Part, name: str) -> str:
        word = _text(part, name).strip(_SPACE)
        if word not in words:
            raise invalid(name, f"It must be one of {', '.join(words)}.")
        return word

    return read
