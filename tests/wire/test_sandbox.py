"""The sandbox notifier over raw sockets: the essential bytes of its behaviour, and RFC 6665."""

import asyncio
import itertools
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from app.domain.statuses import Status
from app.sandbox import SCRIPTED, Change, Sandbox, messages, script, transport
from app.sandbox.terminals import initial_statuses
from tests.support.sandbox import ALICE, BUSY, CLOSED, OPEN, Watch, client, fetch, sandbox, udp
from tests.support.sip_terminal import EVENT, SipClient, unique
from tests.support.waiting import until

__all__ = ["client", "sandbox", "udp"]  # fixtures


@pytest.mark.parametrize(
    ("uri", "holds", "lacks"),
    [
        (ALICE, OPEN, BUSY),
        ("sip:alice@elsewhere.example.net", OPEN, BUSY),
        ("sips:alice@example.com", OPEN, BUSY),
        ("sip:bob@example.com", BUSY, CLOSED),
        ("sip:carol@example.com", CLOSED, OPEN),
        ("tel:+15550001", OPEN, BUSY),
        ("tel:+1-555-0002", BUSY, CLOSED),
        ("sip:+15550003@example.com;user=phone", CLOSED, OPEN),
        ("sip:terminal-123@example.com", OPEN, CLOSED),
    ],
)
async def test_fetch_states_the_terminals_status(client: SipClient, uri: str, holds: bytes, lacks: bytes) -> None:
    """A fetch is answered 200, with one terminated NOTIFY whose PIDF has the status that the terminal's name
    promises."""
    response, notify = await client.fetch(uri)
    assert notify is not None
    assert (response.code, response["expires"]) == (200, "0")
    assert notify["subscription-state"] == "terminated;reason=timeout"
    assert (notify["event"], notify["content-type"]) == ("presence", "application/pidf+xml")
    assert notify["content-length"] == str(len(notify.body))
    assert notify["from"].endswith(f";tag={response.to_tag}")
    assert notify.start == f"NOTIFY {client.contact} SIP/2.0"
    assert holds in notify.body
    assert lacks not in notify.body
    etree.fromstring(notify.body)


@pytest.mark.parametrize("uri", ["sip:dave@example.com", "sip:nobody-at-all@example.com", "tel:+15550004"])
async def test_unknown_terminal_is_404(client: SipClient, sandbox: Sandbox, uri: str) -> None:
    """An unknown terminal is answered 404 with a tag, and no NOTIFY."""
    response, _ = await client.fetch(uri)
    assert response.code == 404
    assert response.to_tag
    assert sandbox.counters.notifies == {}


async def test_subscription_lives_through_change_refresh_and_end(client: SipClient, sandbox: Sandbox) -> None:
    """A subscription gets a NOTIFY at once, at each change and at a refresh, and a last one at its end."""
    watch = Watch(client, ALICE)
    response = await watch.subscribe(600)
    first = await watch.notify()
    assert (response.code, response["expires"], first["subscription-state"]) == (200, "600", "active;expires=600")
    assert OPEN in first.body
    assert sandbox.subscriptions == {ALICE: 1}

    await until(lambda: sandbox.counters.notify_answers[200] == 1)
    sandbox.set_status("alice", Status.BUSY)
    changed = await watch.notify()
    assert BUSY in changed.body
    assert int(changed["cseq"].split()[0]) == int(first["cseq"].split()[0]) + 1

    response = await watch.subscribe(300)
    refreshed = await watch.notify()
    assert (response.code, refreshed["subscription-state"]) == (200, "active;expires=300")

    response = await watch.subscribe(0)
    last = await watch.notify()
    assert (response.code, last["subscription-state"]) == (200, "terminated;reason=timeout")
    assert BUSY in last.body
    assert sandbox.subscriptions == {}
    assert (await watch.subscribe(60)).code == 481
    assert sandbox.counters.subscribes[ALICE] == 3


async def test_subscription_expires(udp: SipClient, sandbox: Sandbox) -> None:
    """A subscription without a refresh ends with a terminated NOTIFY."""
    watch = Watch(udp, ALICE)
    await watch.subscribe(1)
    await watch.notify()
    assert (await watch.notify())["subscription-state"] == "terminated;reason=timeout"
    assert sandbox.subscriptions == {}


async def test_only_the_latest_change_follows_an_unanswered_notify(udp: SipClient, sandbox: Sandbox) -> None:
    """Changes while a NOTIFY is unanswered are sent as one NOTIFY with the latest status."""
    watch = Watch(udp, ALICE)
    await watch.subscribe(60)
    first = await udp.receive(lambda message: message.method == "NOTIFY")
    sandbox.set_status("alice", Status.BUSY)
    sandbox.set_status("alice", Status.UNREACHABLE)
    udp.respond(first)
    assert CLOSED in (await watch.notify()).body
    await until(lambda: sandbox.counters.notify_answers[200] == 2)
    assert sandbox.counters.notifies[ALICE] == 2


async def test_notify_refused_ends_the_subscription(udp: SipClient, sandbox: Sandbox) -> None:
    """A NOTIFY answered 481 ends its subscription."""
    watch = Watch(udp, ALICE)
    await watch.subscribe(60)
    udp.respond(await udp.receive(lambda message: message.method == "NOTIFY"), 481, "Gone")
    await until(lambda: sandbox.subscriptions == {})
    assert sandbox.counters.notify_answers == {481: 1}


async def test_notify_is_retransmitted_over_udp(udp: SipClient, sandbox: Sandbox) -> None:
    """An unanswered NOTIFY is repeated byte for byte until it is answered."""
    call_id = unique()
    udp.send(udp.request("SUBSCRIBE", ALICE, *EVENT, "Expires: 0", call_id=call_id))
    notifies = [await udp.receive(lambda message: message.method == "NOTIFY") for _ in range(3)]
    assert len({notify.raw for notify in notifies}) == 1
    udp.respond(notifies[0])
    await until(lambda: sandbox.counters.notify_answers == {200: 1})
    assert sandbox.counters.notifies[ALICE] == 1
    assert sandbox.counters.other["retransmitted NOTIFY"] >= 2


@pytest.mark.parametrize("user", ["alice", "dave"])
async def test_retransmitted_subscribe_gets_the_same_answer(udp: SipClient, sandbox: Sandbox, user: str) -> None:
    """A repeated SUBSCRIBE gets the same answer again, and causes at most one NOTIFY."""
    request = udp.request("SUBSCRIBE", f"sip:{user}@example.com", *EVENT, "Expires: 0")
    udp.send(request)
    udp.send(request)
    answers = [await udp.receive(lambda message: message.code > 0) for _ in range(2)]
    assert answers[0].raw == answers[1].raw
    assert sandbox.counters.subscribes == {f"sip:{user}@example.com": 1}
    assert sandbox.counters.other["retransmitted SUBSCRIBE"] == 1
    assert sandbox.counters.notifies.total() == (1 if user == "alice" else 0)


@pytest.mark.parametrize(
    ("headers", "code", "expected"),
    [
        (("Event: dialog", "Expires: 60"), 489, ("allow-events", "presence")),
        (("Expires: 60",), 489, ("allow-events", "presence")),
        ((*EVENT, "Expires: soon"), 400, ("warning", '399 sandbox "Expires or Contact is unreadable or missing"')),
        ((*EVENT, "Require: eventlist"), 420, ("unsupported", "eventlist")),
    ],
)
async def test_subscribe_that_cannot_be_served(
    client: SipClient, headers: tuple[str, ...], code: int, expected: tuple[str, str]
) -> None:
    """A SUBSCRIBE that the notifier does not support is refused with the header that says why."""
    response = await client.ask("SUBSCRIBE", ALICE, *headers)
    assert (response.code, response[expected[0]]) == (code, expected[1])


async def test_other_methods(client: SipClient, sandbox: Sandbox) -> None:
    """OPTIONS is answered 200, every other method 405 with the allowed methods."""
    options = await client.ask("OPTIONS", "sip:sandbox")
    assert (options.code, options["allow-events"]) == (200, "presence")
    for method in ("REGISTER", "PUBLISH", "MESSAGE", "INVITE"):
        response = await client.ask(method, ALICE)
        assert (response.code, response["allow"]) == (405, "SUBSCRIBE, OPTIONS")
    assert sandbox.counters.other["REGISTER"] == 1


async def test_refresh_of_an_unknown_dialog_is_481(client: SipClient) -> None:
    """A SUBSCRIBE with an unknown tag in To is answered 481."""
    response = await client.ask("SUBSCRIBE", ALICE, *EVENT, "Expires: 60", to=f"<{ALICE}>;tag=nobody")
    assert response.code == 481


async def test_refresh_with_an_old_cseq_is_500(client: SipClient) -> None:
    """Within a dialog CSeq must rise (RFC 3261, 12.2.2)."""
    watch = Watch(client, ALICE)
    await watch.subscribe(60)
    watch.cseq -= 1
    assert (await watch.subscribe(60)).code == 500


async def test_subscriptions_are_bounded() -> None:
    """A subscription above the bound is answered 503 with Retry-After; fetches go on."""
    async with Sandbox(max_subscriptions=1) as sandbox, SipClient(sandbox.host, sandbox.port) as client:
        assert (await Watch(client, ALICE).subscribe(60)).code == 200
        refused = await Watch(client, ALICE).subscribe(60)
        assert (refused.code, refused["retry-after"]) == (503, "5")
        assert (await client.fetch(ALICE))[0].code == 200


async def test_event_id_and_routes_come_back(udp: SipClient, sandbox: Sandbox) -> None:
    """A NOTIFY has the id of Event, and takes the recorded route, which the 200 repeats."""
    route = f"<sip:127.0.0.1:{udp.local[1]};lr>"
    watch = Watch(udp, ALICE)
    udp.send(
        udp.request(
            "SUBSCRIBE",
            ALICE,
            "o: presence;id=4711",
            f"Record-Route: {route}, <sip:two.example.com;lr>",
            "Expires: 60",
            call_id=watch.call_id,
            contact="sip:watcher@192.0.2.1:9",
        )
    )
    response = await udp.receive(lambda message: message.code > 0)
    notify = await watch.notify()
    assert response.all("record-route") == [route, "<sip:two.example.com;lr>"]
    assert notify.all("route") == [route, "<sip:two.example.com;lr>"]
    assert notify["event"] == "presence;id=4711"
    assert notify.start == "NOTIFY sip:watcher@192.0.2.1:9 SIP/2.0"


async def test_rport_is_honoured(udp: SipClient) -> None:
    """With rport the answer goes to the source of the request, whatever Via says; without rport, to the port in Via."""
    udp.send(udp.request("OPTIONS", "sip:sandbox", via="SIP/2.0/UDP 192.0.2.1:9;rport;branch=z9hG4bK1"))
    answer = await udp.receive()
    assert answer["via"] == f"SIP/2.0/UDP 192.0.2.1:9;rport={udp.local[1]};branch=z9hG4bK1;received=127.0.0.1"
    async with SipClient(udp.host, udp.port) as other:
        udp.send(udp.request("OPTIONS", "sip:sandbox", via=f"SIP/2.0/UDP 127.0.0.1:{other.local[1]};branch=z9hG4bK2"))
        assert (await other.receive()).code == 200


async def test_compact_and_folded_headers_are_read(udp: SipClient) -> None:
    """A SUBSCRIBE in compact form, with folded lines and unusual case, is served."""
    host, port = udp.local
    udp.send(
        f"SUBSCRIBE {ALICE} sip/2.0\r\nv: SIP/2.0/UDP {host}:{port}\r\n ;rport\r\n\t;branch=z9hG4bKfold\r\n"
        f'f: "A, \\"B\\" <x>" <sip:a@b>;TAG=1\r\nT:<{ALICE}>\r\ni:folded\r\ncSEQ:  7   SUBSCRIBE\r\n'
        f"m: <sip:{host}:{port}>\r\nO: Presence\r\nEXPIRES: 0\r\nl:0\r\n\r\n"
    )
    notify = await udp.notify_for("folded")
    assert notify["to"] == '"A, \\"B\\" <x>" <sip:a@b>;TAG=1'
    assert OPEN in notify.body


async def test_contact_may_ask_for_tcp(udp: SipClient, sandbox: Sandbox) -> None:
    """A SUBSCRIBE over UDP whose Contact has transport=tcp is notified over a TCP connection that the sandbox opens."""
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    done = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        arrived.put_nowait(head)
        await done.wait()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    udp.send(
        udp.request(
            "SUBSCRIBE",
            "sip:document-big-20000@example.com",
            *EVENT,
            "Expires: 0",
            contact=f"sip:w@127.0.0.1:{port};transport=tcp",
        )
    )
    async with asyncio.timeout(10):
        head = await arrived.get()
    assert head.startswith(b"NOTIFY sip:w@127.0.0.1:")
    assert b"\r\nContent-Length: 20000\r\n" in head
    assert b"Via: SIP/2.0/TCP " in head
    done.set()
    server.close()
    await server.wait_closed()


# Calls for tests


async def test_set_document_is_sent_as_it_stands(udp: SipClient, sandbox: Sandbox) -> None:
    """`set_document` is sent unchanged to live subscriptions and fetches, until the next `set_status`."""
    watch = Watch(udp, "sip:zoe@example.com")
    sandbox.set_document("zoe", b"<x/>", "application/x", "y")
    await watch.subscribe(60)
    notify = await watch.notify()
    assert (notify.body, notify["content-type"], notify["content-encoding"]) == (b"<x/>", "application/x", "y")
    sandbox.set_status("zoe", Status.REACHABLE)
    assert OPEN in (await watch.notify()).body


async def test_act_like_another(udp: SipClient, sandbox: Sandbox) -> None:
    """`act_like` makes a terminal misbehave in the middle of a subscription, and ends that."""
    watch = Watch(udp, ALICE)
    await watch.subscribe(60)
    sandbox.act_like("alice", "answer-503")
    assert (await watch.subscribe(60)).code == 503
    sandbox.act_like("alice", None)
    assert (await watch.subscribe(60)).code == 200


async def test_terminate(udp: SipClient, sandbox: Sandbox) -> None:
    """`terminate` ends live subscriptions with its reason, or without one."""
    watch, other = Watch(udp, ALICE), Watch(udp, "sip:bob@example.com")
    for each in (watch, other):
        await each.subscribe(60)
        await each.notify()
    sandbox.terminate("alice", "probation")
    notify = await watch.notify()
    assert (notify["subscription-state"], notify.body) == ("terminated;reason=probation", b"")
    sandbox.terminate("bob", "")
    assert sandbox.subscriptions == {}
    assert (await other.subscribe(60)).code == 481


def test_script_follows_from_its_seed() -> None:
    """One seed always gives one script, another seed another; each step changes a scripted terminal."""
    changes = list(itertools.islice(script(42), 500))
    assert changes == list(itertools.islice(script(42), 500))
    assert changes != list(itertools.islice(script(43), 500))
    statuses = initial_statuses(42)
    for index, change in enumerate(changes, start=1):
        assert change.user in SCRIPTED
        assert change.old is statuses[change.user]
        assert change.new is not change.old
        assert abs(change.at_s - 3 * index) < 1
        statuses[change.user] = change.new
    assert {change.user for change in changes} == set(SCRIPTED)
    assert {change.new for change in changes} == set(Status)


def test_script_of_a_seed_stays_what_it_was() -> None:
    """A seed gives the same script in every version, so that noted seeds stay useful."""
    assert next(script(1)) == Change(at_s=2.559, user="ivan", old=Status.REACHABLE, new=Status.UNREACHABLE)


async def test_scripted_changes_happen_and_are_reported() -> None:
    """A running sandbox follows the script with its statuses, `on_change` and NOTIFYs."""
    reported: list[tuple[str, Status, Status]] = []
    expected = list(itertools.islice(script(5, 0.02), 6))
    sandbox = Sandbox(seed=5, every_s=0.02, domain="lab.example.com", on_change=lambda *change: reported.append(change))
    async with sandbox, SipClient(sandbox.host, sandbox.port) as client:
        assert sandbox.statuses == initial_statuses(5)
        watch = Watch(client, f"sip:{expected[0].user}@any.example.org")
        await watch.subscribe(60)
        await watch.notify()
        await until(lambda: len(reported) >= 6)
    assert [(old, new) for _, old, new in reported[:6]] == [(change.old, change.new) for change in expected]
    assert reported[0][0] in (f"sip:{expected[0].user}@lab.example.com", f"tel:{expected[0].user}")


# Robustness


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
async def test_port_taken(kind: socket.SocketKind) -> None:
    """A port that is in use on UDP or TCP is an OSError with the port's number, and no socket stays open."""
    async with Sandbox() as sandbox:
        port = sandbox.port
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            holder.listen()
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}.*Address already in use"):
            await Sandbox("127.0.0.1", port).start()
    async with Sandbox("127.0.0.1", port) as sandbox:
        assert sandbox.uri == f"sip:127.0.0.1:{port}"


async def test_a_new_sandbox_does_not_know_the_old_ones_dialogs() -> None:
    """A sandbox that is stopped and started again on its port answers 481 to a refresh, like a restarted presence
    server."""
    async with Sandbox() as sandbox, SipClient(sandbox.host, sandbox.port) as client:
        watch = Watch(client, ALICE)
        await watch.subscribe(60)
        await sandbox.stop()
        async with Sandbox(port=sandbox.port):
            assert (await watch.subscribe(60)).code == 481


GARBAGE = [
    b"hello\r\n\r\n",
    b"\x00\xff" * 50 + b"\r\n\r\n",
    b"SUBSCRIBE sip:alice@example.com SIP/2.0\r\n\r\n",
    b"SUBSCRIBE sip:alice@example.com SIP/3.0\r\nVia: x\r\n\r\n",
    b"SIP/2.0 200 OK\r\nVia: x\r\nCSeq: 1 NOTIFY\r\n\r\n",
    b"SUBSCRIBE sip:alice@example.com SIP/2.0\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"SUBSCRIBE sip:alice@example.com SIP/2.0\r\n: \r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_is_dropped(client: SipClient, garbage: bytes) -> None:
    """Bytes that are not SIP are dropped, and the next request is served."""
    client.send(garbage)
    assert OPEN in (await fetch(client, "alice")).body


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("CSeq: 1 SUBSCRIBE", "CSeq: one SUBSCRIBE"),
        ("CSeq: 1 SUBSCRIBE", "CSeq: 1 NOTIFY"),
        ("CSeq: 1 SUBSCRIBE", "CSeq: 4294967296 SUBSCRIBE"),
        (";tag=mine", ""),
        ("Content-Length: 0", "Content-Length: 5"),
        ("Content-Length: 0", "Content-Length: -1"),
        ("Content-Length: 0", "Content-Length: 0\r\nContent-Length: 1"),
    ],
)
async def test_malformed_request_is_400(udp: SipClient, old: str, new: str) -> None:
    """A malformed request that can be answered gets 400."""
    request = udp.request("SUBSCRIBE", ALICE, *EVENT, from_tag="mine").decode()
    udp.send(request.replace(old, new))
    assert (await udp.receive()).code == 400


async def test_uri_of_another_scheme_is_416(udp: SipClient) -> None:
    """A presentity that is neither sip: nor tel: is answered 416."""
    assert (await udp.ask("SUBSCRIBE", "mailto:alice@example.com", *EVENT)).code == 416


async def test_stream_in_pieces_and_together(sandbox: Sandbox) -> None:
    """Over TCP messages may come byte by byte or several at once, with pings between them, which are answered."""
    async with SipClient(sandbox.host, sandbox.port, tcp=True) as client:
        requests = [client.request("OPTIONS", "sip:sandbox", call_id=f"{n}", body=b"x" * n) for n in range(20)]
        client.send(b"\r\n\r\n".join(requests[:10]))
        for byte in b"".join(requests[10:]):
            client.send(bytes([byte]))
        answers = [await client.receive() for _ in requests]
        assert [answer["call-id"] for answer in answers] == [f"{n}" for n in range(20)]
    reader, writer = await asyncio.open_connection(sandbox.host, sandbox.port)
    writer.write(b"\r\n\r\n")
    async with asyncio.timeout(10):
        assert await reader.readexactly(2) == b"\r\n"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("flood", [b"x" * 70_000, b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 999999\r\n\r\n"])
async def test_stream_without_end_is_closed(sandbox: Sandbox, flood: bytes) -> None:
    """A connection is closed when its message exceeds the maximum size."""
    async with SipClient(sandbox.host, sandbox.port, tcp=True) as client:
        client.send(flood)
        async with asyncio.timeout(10):
            await client.ended.wait()


async def test_connections_are_bounded(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection above the bound is closed at once; earlier ones stay open."""
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 1)
    async with (
        SipClient(sandbox.host, sandbox.port, tcp=True) as first,
        SipClient(sandbox.host, sandbox.port, tcp=True) as second,
    ):
        async with asyncio.timeout(10):
            await second.ended.wait()
        assert (await first.ask("OPTIONS", "sip:sandbox")).code == 200


@given(st.binary(max_size=400) | st.text('\r\n :;<>",=@SIP/2.0viaftmeolx', max_size=300).map(str.encode))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    """Reading any bytes returns or raises Malformed."""
    try:
        message = messages.parse(data)
        messages.fault(message)
    except messages.Malformed:
        return
    messages.parse_uri(message.first("contact"))
    messages.respond(message, 200, ("127.0.0.1", 1), "t")


@given(st.data())
def test_no_mutation_breaks_the_reader(data: st.DataObject) -> None:
    """A SUBSCRIBE with a few changed bytes is read, refused or malformed, and raises no other error."""
    good = bytearray(
        b"SUBSCRIBE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:1;rport;branch=z9hG4bK1\r\nFrom: <sip:w@b>;tag=1\r\n"
        b"To: <sip:a@b>\r\nCall-ID: 1\r\nCSeq: 1 SUBSCRIBE\r\nContact: <sip:w@127.0.0.1:1>\r\nEvent: presence\r\n"
        b"Expires: 0\r\nContent-Length: 0\r\n\r\n"
    )
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=6)):
        good[at] = byte
    try:
        message = messages.parse(bytes(good))
        if message.code == 0:
            messages.fault(message)
            messages.respond(message, 400, ("127.0.0.1", 1), "t")
            messages.reply_port(message, 5060)
    except messages.Malformed:
        pass
