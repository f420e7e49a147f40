"""Programs that tests start: clients of other makers, compilers and their plugins."""

import asyncio
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 90.0


async def run(*command: str | Path, environ: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Runs a program to its end. Returns its output; fails with its error output."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env=os.environ | (environ or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    timer = asyncio.get_running_loop().call_later(LIMIT_S, process.kill)
    try:
        output, complaints = await process.communicate()
    finally:
        timer.cancel()
    assert process.returncode == 0, (command[0], process.returncode, output.decode(), complaints.decode())
    return output.decode()


def require(there: object, what: str) -> None:
    """Skips the test where a program is missing; in CI the test fails instead."""
    if not there:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is not installed; `make test` does it")
