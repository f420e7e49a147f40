"""Hooks of pytest-bdd."""

from typing import Any


def pytest_bdd_apply_tag(tag: str, function: Any) -> bool:
    """Makes no marks of the tags of CAMARA's test definitions: pytest would have to know each."""
    return True
