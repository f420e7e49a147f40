"""Generated files that are committed agree with their source: `app/pb/`, error examples and `openapi/`."""

import json
import subprocess
import sys
from pathlib import Path

from app.rest.application import export_openapi
from tests.support.error_examples import recorded

ROOT = Path(__file__).parent.parent.parent


def generated_files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text("utf-8")
        for path in (root / "app" / "pb").rglob("*.py*")
        if path.name != "__init__.py" and path.suffix in {".py", ".pyi"}
    }


def test_the_protobuf_code_is_fresh(tmp_path: Path) -> None:
    """`app/pb/` has exactly the files that `make generate` makes of `proto/`."""
    subprocess.run([ROOT / ".ci" / "generate-protobuf", tmp_path, sys.executable], check=True, timeout=60)
    assert generated_files(ROOT) == generated_files(tmp_path)


async def test_the_error_examples_are_fresh(tmp_path: Path) -> None:
    """Each error, provoked over HTTP, is answered like its example in the OpenAPI documents."""
    for file, text in (await recorded(tmp_path)).items():
        committed = json.loads(file.read_text("utf-8"))
        assert committed == json.loads(text), "run `make generate`: an error's text has changed"


def test_the_openapi_documents_are_fresh() -> None:
    """`openapi/` has exactly the files that `terminal-status openapi` exports; two exports are equal."""
    committed = {file.stem: file.read_text("utf-8") for file in (ROOT / "openapi").glob("*.json")}
    assert committed == export_openapi() == export_openapi()
