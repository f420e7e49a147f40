"""What is generated and committed is what its source says: `app/pb/` and `openapi/`."""

import subprocess
import sys
from pathlib import Path

from app.rest import export_openapi

ROOT = Path(__file__).parent.parent


def generated_files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text("utf-8")
        for path in (root / "app" / "pb").rglob("*.py*")
        if path.name != "__init__.py" and path.suffix in {".py", ".pyi"}
    }


def test_the_protobuf_code_is_fresh(tmp_path: Path) -> None:
    """`app/pb/` holds what `make generate` makes of `proto/`, no file more and none less."""
    subprocess.run([ROOT / ".ci" / "generate-protobuf", tmp_path, sys.executable], check=True, timeout=60)
    assert generated_files(ROOT) == generated_files(tmp_path)


def test_the_openapi_document_is_fresh() -> None:
    """`openapi/terminal-status-v1.json` is what `terminal-status openapi` prints, which is the same each time."""
    committed = (ROOT / "openapi" / "terminal-status-v1.json").read_text("utf-8")
    assert committed == export_openapi() == export_openapi()
