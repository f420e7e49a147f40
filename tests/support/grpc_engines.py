"""Runs the tests of a module on both gRPC engines: `pytestmark = ON_BOTH_ENGINES`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import pytest

from app.rpc import GrpcEngine

_chosen: list[GrpcEngine] = []

ON_BOTH_ENGINES = [
    pytest.mark.usefixtures("grpc_engine"),
    pytest.mark.parametrize("grpc_engine", get_args(GrpcEngine), indirect=True),
]


def engine() -> GrpcEngine:
    """The engine of the running test; the default one for tests that choose none."""
    return _chosen[-1] if _chosen else "queue"


@contextmanager
def chosen_engine(engine: GrpcEngine) -> Iterator[GrpcEngine]:
    """Chooses the engine of the servers that are made in the context."""
    _chosen.append(engine)
    try:
        yield engine
    finally:
        _chosen.pop()
