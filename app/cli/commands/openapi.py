"""`terminal-status openapi`: the OpenAPI descriptions of the HTTP APIs."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.console import err, fail, shown, wrong_use


def openapi(
    api: Annotated[str, typer.Argument(help="The API, named as its file without .json.")] = "terminal-status-v1",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write, or an existing folder to write one file per API into. Default: standard output.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Accepted as by other commands; the output is JSON.")] = False,
) -> None:
    """Print or write the OpenAPI descriptions of the HTTP APIs.

    Example: terminal-status openapi --output openapi/
    """
    from app.rest.application import export_openapi

    texts = export_openapi()
    if api not in texts:
        wrong_use(f"{api} is not an API of this gateway; choose from {', '.join(texts)}.")
    if output is None:
        print(texts[api], end="")  # noqa: T201  # standard output is this command's answer
        return
    files = {output / f"{name}.json": text for name, text in texts.items()} if output.is_dir() else {output: texts[api]}
    for file, text in files.items():
        try:
            file.write_text(text, "utf-8")
        except OSError as error:
            fail(f"{file}: cannot be written: {error.strerror}.")
        err.print(f"Wrote {shown(str(file))}.")
