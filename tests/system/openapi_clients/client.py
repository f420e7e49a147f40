"""Calls the gateway over the packages that openapi-python-client makes of `openapi/`, and prints what it saw as one
JSON object. Arguments: the gateway's URL, an API key, and the URL of a webhook receiver."""

import json
import sys
from typing import Any

import reachability
import reachability_subscriptions
import terminal_status
from reachability.api.device_reachability_status import get_reachability_status
from reachability.models import Device, RequestReachabilityStatus
from reachability_subscriptions.api.device_reachability_status_subscription import (
    retrieve_device_reachability_status_subscription_list as list_events,
)
from terminal_status.api.subscriptions import (
    cancel_subscription,
    create_subscription,
    get_subscription,
    list_subscriptions,
    rotate_subscription_secret,
)
from terminal_status.api.terminal_status import get_terminal_status, query_terminal_statuses
from terminal_status.models import QueryRequest, SinkHandshake, Status, SubscriptionRequest, WebhookSinkRequest

gateway, key, receiver = sys.argv[1:]
ALICE, DAVE = "sip:alice@example.com", "sip:dave@example.com"


def given(answer: Any) -> Any:
    assert "Problem" not in type(answer).__name__, answer
    return answer


with terminal_status.AuthenticatedClient(base_url=gateway, token=key) as v1:
    status = given(get_terminal_status.sync(ALICE, client=v1))
    unknown = get_terminal_status.sync_detailed(DAVE, client=v1)
    found = given(query_terminal_statuses.sync(client=v1, body=QueryRequest(addresses=[ALICE, DAVE]))).results
    names = []
    # The generated function would wait for the end of the stream.
    with v1.get_httpx_client().stream("GET", "/v1/terminals:watch", params={"address": ALICE}) as stream:
        for line in stream.iter_lines():
            names += [line.removeprefix("event: ")] if line.startswith("event: ") else []
            if names[-1:] == ["snapshot-complete"]:
                break
    webhook = WebhookSinkRequest(kind="WEBHOOK", uri=receiver, handshake=SinkHandshake.NONE)
    asked = SubscriptionRequest(addresses=[ALICE], criteria=[Status.BUSY], sink=webhook)
    made = given(create_subscription.sync(client=v1, body=asked))
    rotated = given(rotate_subscription_secret.sync(made.id, client=v1))
    listed = given(list_subscriptions.sync(client=v1)).subscriptions
    assert cancel_subscription.sync_detailed(made.id, client=v1).status_code == 204
    ended = given(get_subscription.sync(made.id, client=v1))

with reachability.AuthenticatedClient(base_url=f"{gateway}/device-reachability-status/v1", token=key) as camara:
    device = Device(network_access_identifier="alice@example.com")
    reachable = given(get_reachability_status.sync(client=camara, body=RequestReachabilityStatus(device=device)))
url = f"{gateway}/device-reachability-status-subscriptions/v0.8"
with reachability_subscriptions.AuthenticatedClient(base_url=url, token=key) as events:
    subscriptions = given(list_events.sync(client=events))

seen = {
    "status": [status.status.value, status.source.value, status.observe_time.tzinfo is not None],
    "error": [unknown.status_code, unknown.parsed.code],
    "query": sorted([each.address, each.status.status.value if each.status else each.error.code] for each in found),
    "stream": names,
    "subscription": [
        made.id in [each.id for each in listed],
        made.sink.uri == receiver,
        [each.value for each in made.criteria],
    ],
    "secrets": [made.secret.startswith("whsec_"), rotated.secret != made.secret],
    "ended": [ended.end_reason.value, ended.end_time is not None],
    "camara": [reachable.reachable, [each.value for each in reachable.connectivity], subscriptions],
}
sys.stdout.write(json.dumps(seen))
