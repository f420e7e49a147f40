"""The gateway's client in Python, over the code that grpcio-tools makes. Arguments and output: see
test_generated_clients.py."""
# mypy: ignore-errors
# The test generates the modules of `terminalstatus`, without types.

import json
import queue
import sys

import grpc
from google.protobuf.any_pb2 import Any as PackedMessage
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from terminalstatus.v1 import subscription_pb2 as subscription
from terminalstatus.v1 import terminal_status_pb2 as pb
from terminalstatus.v1.subscription_pb2_grpc import SubscriptionServiceStub
from terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub

LIMIT_S = 20
ALICE, BOB, DAVE = (f"sip:{name}@example.com" for name in ("alice", "bob", "dave"))


def info_of(details: list[PackedMessage]) -> ErrorInfo:
    info = ErrorInfo()
    assert any(detail.Unpack(info) for detail in details)
    return info


def swap(terminals: TerminalStatusServiceStub) -> dict[str, str]:
    """Replaces Alice by Bob on an open stream."""
    requests: queue.SimpleQueue[pb.FollowStatusesRequest | None] = queue.SimpleQueue()
    requests.put(pb.FollowStatusesRequest(open=pb.WatchStatusesRequest(addresses=[ALICE])))
    change = pb.AddressChange(change_id="swap", add_addresses=[BOB], remove_addresses=[ALICE])
    followed, sent = {}, False
    for message in terminals.FollowStatuses(iter(requests.get, None), timeout=LIMIT_S):
        if message.WhichOneof("event") == "change_applied":
            requests.put(None)
            applied = message.change_applied
            return followed if applied.HasField("error") else {**followed, applied.change_id: "applied"}
        event = message.status_event
        match event.WhichOneof("event"):
            case "snapshot_complete":
                requests.put(pb.FollowStatusesRequest(change=change))
                sent = True
            case "snapshot_item" if sent:
                followed[event.snapshot_item.address] = "added"
            case "terminal_removed":
                followed[event.terminal_removed.address] = "removed"
    return followed


seen: dict[str, object] = {}
with grpc.insecure_channel(sys.argv[1]) as channel:
    terminals, subscriptions = TerminalStatusServiceStub(channel), SubscriptionServiceStub(channel)

    answer = terminals.GetStatus(pb.GetStatusRequest(address=ALICE), timeout=LIMIT_S)
    seen["status"] = pb.Status.Name(answer.status.status)
    seen["source"] = pb.Source.Name(answer.status.source)
    seen["observed"] = answer.status.observe_time.seconds > 0

    try:
        terminals.GetStatus(pb.GetStatusRequest(address=DAVE), timeout=LIMIT_S)
    except grpc.RpcError as error:
        info = info_of(rpc_status.from_call(error).details)
        code = "".join(word.capitalize() for word in error.code().name.split("_"))
        seen["error"] = [code, info.reason, info.domain, info.metadata["address"]]

    results = {}
    for message in terminals.QueryStatuses(pb.QueryStatusesRequest(addresses=[ALICE, DAVE]), timeout=LIMIT_S):
        result = message.result
        retrieved = result.retrieval_status == pb.RETRIEVAL_STATUS_RETRIEVED
        results[result.address] = (
            pb.Status.Name(result.status.status) if retrieved else info_of(result.error.details).reason
        )
    seen["query"] = sorted(results.items())

    stream = terminals.WatchStatuses(pb.WatchStatusesRequest(addresses=[ALICE, BOB]), timeout=LIMIT_S)
    snapshot, complete = {}, False
    while not complete or len(snapshot) < 2:
        message = next(stream)
        match message.WhichOneof("event"):
            case "snapshot_item" if message.snapshot_item.HasField("status"):
                snapshot[message.snapshot_item.address] = pb.Status.Name(message.snapshot_item.status.status)
            case "change":
                snapshot[message.change.status.address] = pb.Status.Name(message.change.status.status)
            case "snapshot_complete":
                complete = True
                seen["bookmarks"] = message.snapshot_complete.bookmark_interval.ToMilliseconds() > 0
    stream.cancel()
    seen["snapshot"] = sorted(snapshot.items())
    seen["follow"] = sorted(swap(terminals).items())

    request = subscription.CreateSubscriptionRequest(
        addresses=[ALICE], criteria=[pb.STATUS_BUSY], sink=subscription.Sink(listed=subscription.ListedSink())
    )
    created = subscriptions.CreateSubscription(request, timeout=LIMIT_S).subscription
    seen["subscription"] = [created.sink.WhichOneof("kind") == "listed", pb.Status.Name(created.criteria[0])]
    subscriptions.CancelSubscription(
        subscription.CancelSubscriptionRequest(subscription_id=created.id), timeout=LIMIT_S
    )
sys.stdout.write(json.dumps(seen))
