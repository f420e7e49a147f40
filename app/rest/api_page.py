"""The API pages: /docs shows the OpenAPI documents as HTML, /openapi.json and /openapi/NAME.json return them.

Invariants: pages work without the internet: they have no script and load nothing, as their Content-Security-Policy
enforces. Every text is escaped. A page is made at its first request, then kept.

Deliberately absent: a form for trying out operations.
"""

import asyncio
import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.auth.proxies import server_url
from app.rest.camara.applications import ANY_SERVER

Documents = Mapping[str, Callable[[], dict[str, Any]]]

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--accent:#06c}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:64rem;padding:1rem 1.25rem 4rem}
h1{margin-bottom:0}h2{border-bottom:1px solid var(--line);margin-top:2.5rem}h4{margin:.75rem 0 .25rem}
a{color:var(--accent)}code,pre{font:14px/1.45 ui-monospace,monospace}code{background:var(--soft);padding:0 .2em}
pre{background:var(--soft);overflow:auto;padding:.75rem;margin:.25rem 0}nav a{margin-right:1rem}
details{border:1px solid var(--line);border-radius:.4rem;margin:.5rem 0;padding:.4rem .75rem}
summary{cursor:pointer}summary b{display:inline-block;min-width:4.5rem}
table{border-collapse:collapse;width:100%}th,td{border-top:1px solid var(--line);padding:.3rem .5rem;text-align:left;
vertical-align:top}th{font-weight:600}td:first-child{white-space:nowrap}.soft{opacity:.7}
@media(max-width:40rem){td:first-child{white-space:normal}}
"""
_ANY_SERVER = f'"{ANY_SERVER}"'
HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def as_text(document: Mapping[str, Any]) -> str:
    """Returns an OpenAPI document as JSON text."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def add_routes(app: FastAPI, documents: Documents, public_url: str | None) -> None:
    """Adds the pages and the documents to `app`. The documents name the server by `public_url`, or else by the URL of
    the reader's request."""
    page = cache(lambda name: _page(name, documents))
    text = cache(lambda name: as_text(documents[name]()))
    first = next(iter(documents))

    async def docs(request: Request) -> Response:
        name = request.path_params.get("name", first)
        if name not in documents:
            raise HTTPException(404)
        # In a thread, since the first request for a page takes 400 ms.
        return Response(await asyncio.to_thread(page, name), headers=HEADERS, media_type="text/html")

    async def document(request: Request) -> Response:
        name = request.path_params.get("name", first)
        if name not in documents:
            raise HTTPException(404)
        served = _with_server(await asyncio.to_thread(text, name), public_url or server_url(request.scope))
        return Response(served, headers={"cache-control": "no-cache"}, media_type="application/json")

    for path in ("/docs", "/docs/{name}"):
        app.add_route(path, docs, include_in_schema=False)
    for path in ("/openapi.json", "/openapi/{name}.json"):
        app.add_route(path, document, include_in_schema=False)


def _with_server(document: str, url: str | None) -> str:
    if url is None:
        return document
    return document.replace(_ANY_SERVER, f'"{url}"')


def _page(name: str, documents: Documents) -> str:
    document = documents[name]()
    others = " ".join(
        f'<a href="/docs/{_text(other)}">{_text(each()["info"]["title"])}</a>' for other, each in documents.items()
    )
    info = document["info"]
    body = "".join(
        (
            f"<nav>{others}</nav><h1>{_text(info['title'])}</h1>",
            f'<p class="soft">{_text(info["version"])} · <a href="/openapi/{_text(name)}.json">OpenAPI</a></p>',
            _prose(info.get("description", "")),
            *_operations(document),
            "<h2>Schemas</h2>",
            *(_schema(*each) for each in sorted(document["components"]["schemas"].items())),
            "<h2>Errors</h2>" if "examples" in document["components"] else "",
            *(_example(*each) for each in sorted(document["components"].get("examples", {}).items())),
        )
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    server = document.get("servers", [{}])[0].get("url", "").replace("{apiRoot}", "")
    found = [
        (server + path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    found += [(name, "event", next(iter(methods.values()))) for name, methods in document.get("webhooks", {}).items()]
    for tag in document.get("tags", []):
        yield f"<h2>{_text(tag['name'])}</h2>{_prose(tag.get('description', ''))}"
        for path, method, operation in found:
            if tag["name"] in operation.get("tags", []):
                yield _operation(document, path, method, operation)


def _resolved(document: Mapping[str, Any], of: Mapping[str, Any]) -> Mapping[str, Any]:
    for part in of.get("$ref", "").split("/")[1:]:
        document = document[part]
    return document if "$ref" in of else of


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [_prose(operation.get("description", "")), f'<p class="soft">{_text(operation["operationId"])}</p>']
    if parameters := operation.get("parameters"):
        rows = [
            (f"<code>{_text(each['name'])}</code>", _text(each["in"]), _described(each, each["schema"]))
            for each in (_resolved(document, each) for each in parameters)
        ]
        parts.append(f"<h4>Parameters</h4>{_table(rows)}")
    if body := operation.get("requestBody"):
        parts.append(f"<h4>Body</h4>{''.join(_content(body))}")
    answers = [
        (_text(status), _prose(response.get("description", "")) + "".join(_content(response)))
        for status, response in operation["responses"].items()
    ]
    parts.append(f"<h4>Answers</h4>{_table(answers)}")
    summary = f"<b>{_text(method.upper())}</b> <code>{_text(path)}</code> {_text(operation.get('summary', ''))}"
    return f'<details id="{_text(operation["operationId"])}"><summary>{summary}</summary>{"".join(parts)}</details>'


def _content(of: Mapping[str, Any]) -> Iterator[str]:
    for media_type, content in of.get("content", {}).items():
        yield f"<p><code>{_text(media_type)}</code> {_type(content.get('schema', {}))}</p>"
        examples = {name: each.get("value") for name, each in content.get("examples", {}).items()}
        if "example" in content:
            examples[""] = content["example"]
        for name, value in examples.items():
            if value is None:  # a reference to an example at the end of the page
                yield f' <a href="#example-{_text(name)}">{_text(name)}</a>'
                continue
            shown = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
            yield f"<details><summary>Example {_text(name)}</summary><pre>{_text(shown)}</pre></details>"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{_text(member)}</code>{'' if member in required else ' <span class=soft>optional</span>'}",
            _type(of),
            _described(of, of, typed=False),
        )
        for member, of in schema.get("properties", {}).items()
    ]
    if not rows:
        rows = [(_type(schema), "", "")]
    description = _prose(schema.get("description", ""))
    summary = f"<summary><code>{_text(name)}</code></summary>"
    return f'<details id="schema-{_text(name)}">{summary}{description}{_table(rows)}</details>'


def _example(name: str, example: Mapping[str, Any]) -> str:
    shown = _text(json.dumps(example["value"], indent=2, ensure_ascii=False))
    return (
        f'<details id="example-{_text(name)}"><summary><code>{_text(name)}</code></summary><pre>{shown}</pre></details>'
    )


def _described(of: Mapping[str, Any], schema: Mapping[str, Any], *, typed: bool = True) -> str:
    bounds = [
        f"{words} {schema[key]}"
        for key, words in (
            ("default", "default"),
            ("minimum", "from"),
            ("maximum", "to"),
            ("minLength", "minimum length"),
            ("maxLength", "maximum length"),
            ("pattern", "pattern"),
        )
        if schema.get(key) not in (None, "", [], {})
    ]
    text = (_type(schema) + " " if typed else "") + _inline(of.get("description", ""))
    return text + (f' <span class="soft">({_text(", ".join(bounds))})</span>' if bounds else "")


def _type(schema: Mapping[str, Any]) -> str:
    if reference := schema.get("$ref"):
        name = _text(reference.rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " | ".join(_type(each) for each in schema[several])
    if "const" in schema:
        return f"<code>{_text(schema['const'])}</code>"
    if "enum" in schema:
        return " ".join(f"<code>{_text(each)}</code>" for each in schema["enum"])
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return _text(f"{kind} ({schema['format']})" if "format" in schema else kind)


def _table(rows: Sequence[Sequence[str]]) -> str:
    return (
        "<table>" + "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows) + "</table>"
    )


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in re.split(r"\n\s*\n", text.strip()) if paragraph)


def _inline(text: str) -> str:
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text)))


def _text(value: object) -> str:
    return html.escape(str(value))
