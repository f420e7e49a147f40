"""CAMARA's documents and test definitions of release r1.2, which are not part of this repository."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
REFERENCE = Path(os.environ.get("CAMARA_REFERENCE", ROOT.parent / "shared" / "reference" / "camara"))
FEATURES = REFERENCE / "features"


def require(path: Path) -> Path:
    """Returns the path. If nothing is there, the test is skipped; it fails in CI, which must have the files."""
    if not path.exists():
        reason = f"CAMARA's files of r1.2 are not in {REFERENCE}; CAMARA_REFERENCE names the folder."
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return path
