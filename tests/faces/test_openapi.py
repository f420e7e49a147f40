"""The OpenAPI documents are complete and readable; their pages need no internet."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from app.domain.records import NotificationKind
from app.domain.statuses import Status
from app.egress.webhook import EVENT_PREFIX, EVENT_TYPES, v1_event
from app.rest import webhook_events
from app.rest.application import export_openapi
from app.rest.camara import event_types
from app.rest.camara.applications import PREFIXES
from app.rest.error_examples import EXAMPLES
from app.rest.openapi import V1
from app.rest.problem import MEDIA_TYPE, STATUSES
from tests.support.fakes import FakeWatcher, make_service
from tests.support.outbox import make_owed, make_subscription
from tests.support.rest_app import app_over, client_of

DOCUMENTS: dict[str, dict[str, Any]] = {name: json.loads(text) for name, text in export_openapi().items()}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for section in ("paths", "webhooks"):
        for path, methods in document.get(section, {}).items():
            for method, operation in methods.items():
                yield f"{method} {path}", operation


def resolved(document: dict[str, Any], of: dict[str, Any]) -> dict[str, Any]:
    """The target of a reference."""
    for part in of.get("$ref", "").split("/")[1:]:
        document = document[part]
    return document if "$ref" in of else of


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_serves_the_documents(name: str) -> None:
    """/openapi/NAME.json serves the document that the command exports, with the server's address as the reader named
    it; /openapi.json is REST API v1's."""
    async with client_of(app_over(make_service(FakeWatcher()))) as client:
        named = (await client.get(f"/openapi/{name}.json", headers={"host": "api.example:8443"})).json()
        (server,) = named.pop("servers")
        assert server == {
            "url": "{apiRoot}" + PREFIXES.get(name, ""),
            "description": "The gateway.",
            "variables": {"apiRoot": {"default": "http://api.example:8443", "description": "The gateway's URL."}},
        }
        assert named == {key: part for key, part in DOCUMENTS[name].items() if key != "servers"}
        unnamed = await client.get(f"/openapi/{name}.json", headers={"host": 'evil"]'})
        assert unnamed.json() == DOCUMENTS[name]
        first = await client.get("/openapi.json", headers={"host": 'evil"]'})
        assert first.json() == DOCUMENTS[V1]


def test_there_is_a_document_for_each_api() -> None:
    """REST API v1 and CAMARA's two APIs each have one."""
    assert set(DOCUMENTS) == {V1, *PREFIXES}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_references_lead_somewhere(name: str) -> None:
    """Every reference has a target, and every schema is used."""
    text = json.dumps(DOCUMENTS[name])
    schemas = DOCUMENTS[name]["components"]["schemas"]
    used = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert used <= set(schemas)
    examples = DOCUMENTS[name]["components"].get("examples", {})
    assert set(re.findall(r'"#/components/examples/(\w+)"', text)) == set(examples)
    if name != V1:  # this schema describes the data of server-sent events too
        assert set(schemas) <= used


@pytest.mark.parametrize("name", DOCUMENTS)
def test_operations_are_readable(name: str) -> None:
    """Each operation has a distinct id that is usable as a method name, a summary, a described tag, and a description
    of every answer."""
    document = DOCUMENTS[name]
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in document["tags"]}
    for where, operation in operations(document):
        assert re.fullmatch("[a-z][A-Za-z]{3,60}", operation["operationId"]), where
        assert operation["summary"], where
        assert set(operation["tags"]) <= tags, where
        for status, response in operation["responses"].items():
            assert response["description"] not in ("", "Successful Response"), (where, status)
            for media_type, content in response.get("content", {}).items():
                assert content["schema"], (where, status, media_type)


def described(document: dict[str, Any], place: str, of: dict[str, Any]) -> Iterator[str]:
    """The places in a schema whose members have no description."""
    for name, member in of.get("properties", {}).items():
        if "description" not in member and "description" not in resolved(document, member):
            yield f"{place}.{name}"
    for several in ("oneOf", "anyOf"):
        for number, each in enumerate(of.get(several, ())):
            yield from described(document, f"{place}.{several}.{number}", each)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_everything_is_described(name: str) -> None:
    """Each operation, parameter, schema, and member of a schema has a description; no name has a module's path."""
    document = DOCUMENTS[name]
    bare: list[str] = []
    for where, operation in operations(document):
        parts = [operation, *(resolved(document, each) for each in operation.get("parameters", ()))]
        bare += [f"{where} {part.get('name', '')}" for part in parts if not part.get("description")]
    for place, schema in document["components"]["schemas"].items():
        assert re.fullmatch("[A-Z][A-Za-z0-9]+", place)
        bare += [place] if not schema.get("description") else []
        bare += described(document, place, schema)
    assert bare == []
    assert document["servers"]
    assert document["info"]["license"]


def examples(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], object]]:
    """Each example in a document: its place, its schema, its value."""

    def of_schema(place: str, schema: Any) -> Iterator[tuple[str, dict[str, Any], object]]:
        if isinstance(schema, dict):
            if isinstance(shown := schema.get("examples"), list):
                yield from ((place, schema, value) for value in shown)
            for key, part in schema.items():
                yield from of_schema(f"{place}.{key}", part)
        elif isinstance(schema, list):
            for number, part in enumerate(schema):
                yield from of_schema(f"{place}.{number}", part)

    yield from of_schema("schemas", document["components"]["schemas"])
    for where, operation in operations(document):
        parts = [("body", operation.get("requestBody", {})), *operation["responses"].items()]
        content = [(f"{kind} {media}", each) for kind, part in parts for media, each in part.get("content", {}).items()]
        content += [(each.get("name", ""), each) for each in operation.get("parameters", ())]
        for kind, each in content:
            shown = [resolved(document, one)["value"] for one in each.get("examples", {}).values()]
            shown += [each["example"]] if "example" in each else []
            yield from ((f"{where} {kind}", each["schema"], value) for value in shown)
            yield from of_schema(f"{where} {kind}", each.get("schema", {}))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples_fit_their_schemas(name: str) -> None:
    """Each example of a document is what its schema says."""
    found = list(examples(DOCUMENTS[name]))
    assert len(found) > 5
    for where, schema, value in found:
        whole = {**schema, "components": DOCUMENTS[name]["components"]}
        faults = [str(fault) for fault in jsonschema_rs.Draft202012Validator(whole).iter_errors(value)]
        assert faults == [], where


def test_webhooks_name_their_credentials() -> None:
    """Each webhook is signed, and may carry the access token of its sink."""
    document = DOCUMENTS[V1]
    for methods in document["webhooks"].values():
        (operation,) = methods.values()
        names = [set(each) for each in operation["security"]]
        assert names == [{"webhookSignature"}, {"webhookSignature", "endpointToken"}]
        assert set().union(*names) <= set(document["components"]["securitySchemes"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_members_with_a_default_are_optional(name: str) -> None:
    """No member of a body has `default`, by which openapi-typescript would take the member for a required one."""
    for place, schema in DOCUMENTS[name]["components"]["schemas"].items():
        assert [member for member, of in schema.get("properties", {}).items() if "default" in of] == [], place


@pytest.mark.parametrize("name", DOCUMENTS)
def test_failures_are_documented_with_examples(name: str) -> None:
    """Each operation with credentials documents 401, and each failure with a code has an example of its form."""
    for where, operation in operations(DOCUMENTS[name]):
        if operation.get("security") == [] or operation["operationId"].startswith("receive"):
            continue
        assert "401" in operation["responses"], where
        for status, response in operation["responses"].items():
            if status.startswith(("4", "5")):
                (content,) = response["content"].values()
                for code, example in content["examples"].items():
                    example = resolved(DOCUMENTS[name], example)
                    assert example["value"]["code"] == code
                    assert str(example["value"]["status"]) == status


@pytest.mark.parametrize("name", DOCUMENTS)
def test_challenges_are_documented(name: str) -> None:
    """RFC 9110 section 11.6.1: every 401 has WWW-Authenticate; RFC 6750 section 3.1: a 403 and a 400 may have it."""
    for operations in DOCUMENTS[name]["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                has_challenge = "WWW-Authenticate" in response.get("headers", {})
                assert has_challenge == (status in ("400", "401", "403")), (operation["operationId"], status)


def test_every_error_has_an_example() -> None:
    """REST API v1's document shows each domain error with its status and its message."""
    shown = {
        (status, code): resolved(DOCUMENTS[V1], example)["value"]["detail"]
        for _, operation in operations(DOCUMENTS[V1])
        for status, response in operation["responses"].items()
        for code, example in response.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {}).items()
    }
    for error, example in EXAMPLES.items():
        assert shown[str(STATUSES[error]), error.code] == example.detail


def test_every_status_has_an_example() -> None:
    """`getTerminalStatus` shows an answer of each status."""
    responses = DOCUMENTS[V1]["paths"]["/v1/terminals/{address}/status"]["get"]["responses"]
    assert set(responses["200"]["content"]["application/json"]["examples"]) == {each.name for each in Status}


def test_the_webhooks_are_what_is_sent() -> None:
    """The document's `webhooks` are exactly the types of events that the sender sends."""
    documented = {
        model.model_json_schema()["properties"]["type"]["const"] for model, _ in webhook_events.EVENTS.values()
    }
    assert documented == set(EVENT_TYPES.values())
    assert set(DOCUMENTS[V1]["webhooks"]) == set(webhook_events.EVENTS)


@pytest.mark.parametrize("kind", NotificationKind)
def test_events_are_as_documented(kind: NotificationKind) -> None:
    """Each event that is sent fits its documented schema, and has no undocumented member."""
    subscription = make_subscription()
    owed = make_owed(subscription, kind=kind, code="EXPIRED" if kind is NotificationKind.ENDED else "X", text="words")
    sent = v1_event(subscription, owed, "https://gateway")
    model = webhook_events.EVENTS[EVENT_TYPES[kind].removeprefix(EVENT_PREFIX)][0]
    read = model.model_validate_json(msgspec.json.encode(sent))
    assert set(read.model_dump(exclude_unset=True)) == set(sent)
    assert set(read.model_dump()["data"]) == set(sent["data"])  # type: ignore[call-overload]


def test_camara_events_are_what_is_sent() -> None:
    """CAMARA's document has exactly the types of events that its subscriptions send."""
    kinds = DOCUMENTS["device-reachability-status-subscriptions-v0.8"]["components"]["schemas"]["CloudEvent"]
    assert set(kinds["properties"]["type"]["enum"]) == {
        *event_types.CRITERIA,
        event_types.SUBSCRIPTION_STARTED,
        event_types.SUBSCRIPTION_ENDED,
    }


class Page(HTMLParser):
    """The elements of a page that the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.opened: list[str] = []
        self.styles: list[str] = []
        self.feed(text)
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.opened[-1:] == ["style"]:
            self.styles.append(data)


@pytest.mark.parametrize("path", ["/docs", *(f"/docs/{name}" for name in DOCUMENTS)])
async def test_the_page_needs_nothing_else(path: str) -> None:
    """The API page has no script, loads nothing, and links only within the gateway; its content security policy allows
    its one style sheet and nothing else."""
    async with client_of(app_over(make_service(FakeWatcher()))) as client:
        response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(response.text)
    assert not {"script", "link", "img", "iframe", "form", "object"} & {tag for tag, _ in page.tags}
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert not {"src", "style", "onclick"} & set(attributes)
        if tag == "a":
            target = attributes["href"] or ""
            assert target.startswith(("/docs/", "/openapi/")) or target.removeprefix("#") in anchors, target
    (style,) = page.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert f"style-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_the_page_shows_every_operation(name: str) -> None:
    """Each operation and schema of the document can be found on its page."""
    async with client_of(app_over(make_service(FakeWatcher()))) as client:
        page = Page((await client.get(f"/docs/{name}")).text)
    anchors = {attributes.get("id") for _, attributes in page.tags}
    assert {operation["operationId"] for _, operation in operations(DOCUMENTS[name])} <= anchors
    assert {f"schema-{schema}" for schema in DOCUMENTS[name]["components"]["schemas"]} <= anchors
