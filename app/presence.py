"""Presence documents."""

from collections.abc import Set
from dataclasses import dataclass

from app.domain import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a presence document says: whether any tuple is open, and the activities that count."""

    open: bool
    activities: frozenset[str]


def read_presence(body: bytes, content_type: str, content_encoding: str = "") -> Presence:
    raise NotImplementedError


def status_of(presence: Presence, busy_activities: Set[str]) -> Status:
    raise NotImplementedError
