"""Reads the parts of a request by their Spyne types: elements in, the arguments of the operation out.

Invariants: a part that is missing, repeated, or malformed is SVC0002 naming the part, with a dot for nesting
(`reference.endpoint`). Unknown elements are ignored, and the order of elements does not matter. An optional part with
`xsi:nil` counts as absent: clients with nullable types send it.

Deliberately absent: which values are allowed; the use cases decide that.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from spyne import AnyUri, Boolean, ComplexModel, Integer32, Unicode
from spyne.model.enum import EnumBase

from soap_compat.faults import invalid_part
from soap_compat.request_envelope import ENCODED, Part

_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}
_INT = re.compile(r"[+-]?[0-9]{1,20}")
_SPACE: Final = " \t\r\n"

Read = Callable[[Part, str], Any]
"""Returns the value of an element; the second argument is the part's name, for the fault."""


class PartReader:
    """Reads elements of one Spyne type: an operation's request, or a type of the contract."""

    def __init__(self, model: Any) -> None:
        self._members: list[tuple[str, int, float, Read]] = [
            (name, member.Attributes.min_occurs, member.Attributes.max_occurs, _read_for(member))
            for name, member in model.get_flat_type_info(model).items()
        ]
        self._names = frozenset(name for name, *_ in self._members)

    def read(self, part: Part, inside: str = "") -> list[Any]:
        """Returns the values of the type's members in their order: a list for a repeatable one, None for an absent one.

        `inside` is the name of the enclosing part with a dot at its end, "" for the request. Raises SoapFault.
        """
        found: dict[str, list[Part]] = {}
        for child in part.parts:
            if child.name in self._names:
                found.setdefault(child.name, []).append(child)
        values: list[Any] = []
        for name, at_least, at_most, read in self._members:
            present = found.get(name, [])
            if not at_least:
                present = [child for child in present if not child.nil]
            if not at_least <= len(present) <= at_most:
                raise invalid_part(inside + name, _miscount(len(present), at_least))
            if any(child.refers for child in present):
                raise invalid_part(inside + name, f"The part has `href` in place of a value. {ENCODED}")
            if at_most > 1:
                values.append([read(child, inside + name) for child in present])
            else:
                values.append(read(present[0], inside + name) if present else None)
        return values


def _miscount(present: int, at_least: int) -> str:
    if present < at_least:
        return "The part is missing; send it."
    return f"The part occurs {present} times; send it once."


def _read_for(model: Any) -> Read:
    if issubclass(model, EnumBase):
        return _read_enumeration(tuple(model.__values__))
    if issubclass(model, ComplexModel):
        reader = PartReader(model)
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
        raise invalid_part(name, "The part contains an element; send text only.")
    return part.text


def _read_boolean(part: Part, name: str) -> bool:
    value = _BOOLEANS.get(_text(part, name).strip(_SPACE))
    if value is None:
        raise invalid_part(name, "The part must be true or false.")
    return value


def _read_int(part: Part, name: str) -> int:
    text = _text(part, name).strip(_SPACE)
    value = int(text) if _INT.fullmatch(text) else 1 << 31
    if not -(1 << 31) <= value < 1 << 31:
        raise invalid_part(name, "The part must be a whole number of 32 bits.")
    return value


def _read_enumeration(words: tuple[str, ...]) -> Read:
    def read(part: Part, name: str) -> str:
        word = _text(part, name).strip(_SPACE)
        if word not in words:
            raise invalid_part(name, f"The part must be one of {', '.join(words)}.")
        return word

    return read
