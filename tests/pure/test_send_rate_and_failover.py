"""The pure rules of how fast SUBSCRIBEs leave, and to which presence server."""

import math
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from app.sip.pjsip.connection_queue import ATTEMPT_GAP_S, ATTEMPT_S, ConnectionQueue
from app.sip.pjsip.incoming_connections import MOST_OPEN, MOST_RECENT, RECENT_S, IncomingConnectionLimit
from app.sip.worker.failover import DOWN_EVERY_S, LONGER_FETCHES_S, PROBE_LIMIT_S, SUSPECT_S, Routes
from app.sip.worker.send_rate import BURST, BURST_S, RESERVED_FOR_SETUPS, SendRate


@dataclass(eq=False)
class Asked:
    recent: bool = False
    sent_at_s: float = 0.0


def test_burst_is_bounded_and_silence_holds_nobody_up() -> None:
    """At most the burst of unanswered SUBSCRIBEs leaves at once; more follow when answers arrive or their wait is
    over."""
    rate = SendRate(0)
    asked = [Asked() for _ in range(BURST)]
    for each in asked:
        assert rate.allows(1.0)
        rate.on_sent(each, 1.0)
    assert not rate.allows(1.0)
    rate.on_answered(asked[0])
    assert rate.allows(1.0)
    rate.on_sent(asked[0], 1.0)
    assert not rate.allows(1.0 + BURST_S)
    assert rate.allows(1.0 + 2 * BURST_S)


def test_silent_questions_leave_room_for_set_ups() -> None:
    """Where set-ups of watches wait, unanswered fetches cannot use the set-ups' part of the burst."""
    rate, questions = SendRate(0), 0
    while rate.allows(1.0, reserved=RESERVED_FOR_SETUPS):
        rate.on_sent(Asked(), 1.0)
        questions += 1
    assert questions == BURST - RESERVED_FOR_SETUPS
    for _ in range(RESERVED_FOR_SETUPS):
        assert rate.allows(1.0)
        rate.on_sent(Asked(), 1.0, setup=True)
    assert not rate.allows(1.0)


@given(st.floats(1, 10_000), st.lists(st.floats(0, 0.5), min_size=1, max_size=200))
def test_setups_keep_to_their_rate(per_s: float, waits_s: list[float]) -> None:
    """In any time no more set-ups leave than the rate allows, plus a burst of one twentieth of a second."""
    rate, now_s, sent = SendRate(per_s), 100.0, 0
    rate.setup_delay_s(now_s)
    for wait_s in waits_s:
        now_s += wait_s
        for _ in range(50):
            if rate.setup_delay_s(now_s):
                break
            rate.on_sent(Asked(), now_s, setup=True)
            sent += 1
        assert sent <= (now_s - 100) * per_s + max(1.0, per_s * 0.05) + 1e-6


@given(st.floats(0.5, 10_000))
def test_the_delay_given_is_enough(per_s: float) -> None:
    """After the returned delay, one more set-up may leave."""
    rate, now_s = SendRate(per_s), 5.0
    while not (delay_s := rate.setup_delay_s(now_s)):
        rate.on_sent(Asked(), now_s, setup=True)
    assert rate.setup_delay_s(now_s + delay_s * 1.001 + 1e-6) == 0


def test_the_first_route_that_is_up_is_asked() -> None:
    """The preferred server is asked; while it is down, the next one; and the preferred one again as soon as it
    answers."""
    routes = Routes(3, 5)
    assert routes.choose() == 0
    routes.on_failed(0, 503, 10.0)
    assert (routes.choose(), routes.changes) == (1, [(0, False)])
    routes.on_failed(1, 502, 10.0)
    assert routes.choose() == 2
    routes.on_answered(0)
    assert (routes.choose(), routes.changes[-1]) == (0, (0, True))


def test_each_failure_in_a_row_moves_on() -> None:
    """A server that answers with failures is left for the next one; where all are down, each is tried in turn."""
    routes = Routes(2, 0)
    assert [routes.choose(attempt) for attempt in range(4)] == [0, 1, 0, 1]
    for route in (0, 1):
        routes.on_failed(route, 503, 1.0)
    assert [routes.choose(attempt) for attempt in range(4)] == [0, 1, 0, 1]


def test_silence_about_one_terminal_is_no_dead_server() -> None:
    """PJSIP's own 408 only makes a server suspect: a probe follows soon, and only a failed probe takes the server out
    of service."""
    routes = Routes(1, 60)
    assert routes.due(0.0) == [0]
    routes.on_answered(0, options=True)
    routes.on_failed(0, 408, 10.0)
    assert routes.up == [True]
    assert routes.wake_s() == 10 + SUSPECT_S
    assert routes.due(11.0) == [0]
    assert routes.due(11.0 + PROBE_LIMIT_S) == []
    assert (routes.up, routes.changes) == ([False], [(0, False)])
    assert routes.due(11.0 + PROBE_LIMIT_S + DOWN_EVERY_S) == []
    assert routes.due(71.0) == [0]
    assert routes.due(71.0 + DOWN_EVERY_S) == [0], "while it is down it is asked more often"
    routes.on_answered(0, options=True)
    assert routes.up == [True]


def test_a_server_that_refuses_fetches_is_remembered_for_a_while() -> None:
    """After a 481 to Expires 0 that server, and no other, is asked with 60; not after ten minutes, nor once another
    server may answer in its place."""
    routes = Routes(2, 10)
    routes.on_fetch_refused(1, 100.0)
    assert [routes.fetch_expires_s(route, 100.0) for route in (0, 1)] == [0, 60]
    assert routes.fetch_expires_s(1, 100.0 + LONGER_FETCHES_S) == 0
    routes.on_failed(1, 503, 101.0)
    routes.on_answered(1)
    assert routes.fetch_expires_s(1, 101.0) == 0


def test_a_pause_of_our_own_is_no_silence_of_a_server() -> None:
    """After the gateway itself was paused, an answer may have arrived unread; so the server gets the whole wait
    again."""
    routes = Routes(1, 60)
    routes.due(0.0)
    routes.on_answered(0, options=True)
    routes.on_failed(0, 408, 10.0)
    assert routes.due(10.5) == [0]
    routes.due(10.5 + 30)
    assert routes.up == [True]
    routes.due(10.5 + 31)
    assert routes.up == [True]
    routes.due(10.5 + 30 + PROBE_LIMIT_S)
    assert routes.up == [False]


def test_a_server_that_never_answered_a_probe_is_tried_by_a_fetch() -> None:
    """Some servers never answer OPTIONS: after each silence, one fetch shows whether the server is up, unless the
    server has sent something meanwhile."""
    routes, tried_s = Routes(1, 5), list[float]()
    for now_s in range(60):
        routes.due(float(now_s))
        if routes.fetch_probes:
            tried_s.append(now_s)
            routes.fetch_probes.clear()
            routes.on_answered(0)
    assert (routes.up, tried_s) == ([True], [PROBE_LIMIT_S + 5 * number for number in range(12)])
    for now_s in range(60, 120):
        routes.due(float(now_s))
        routes.on_answered(0)
    assert routes.fetch_probes == []
    for now_s in range(120, 130):
        routes.due(float(now_s))
    assert (routes.up, routes.changes) == ([False], [(0, False)])
    assert len(routes.fetch_probes) > 1, "it may be back"
    routes.on_answered(0)
    assert routes.up == [True]


def test_what_is_known_of_routes_outlives_a_worker() -> None:
    """A new worker starts with what its predecessor knew about the servers."""
    routes = Routes(2, 5, [False, True])
    assert (routes.up, routes.choose(), routes.changes) == ([False, True], 1, [])
    routes.on_answered(0)
    assert (routes.choose(), routes.changes) == (0, [(0, True)])


def test_without_probes_nothing_is_due() -> None:
    """With probes switched off, no timer is set."""
    routes = Routes(2, 0)
    assert (routes.due(100.0), routes.wake_s()) == ([], math.inf)


def test_one_request_attempts_and_the_others_wait_for_its_result() -> None:
    """While a server may refuse connections, one request tries to connect. The others leave once that connection is
    accepted, or fail with it."""
    queue: ConnectionQueue[str] = ConnectionQueue()
    assert queue.may_send("tcp", "first", 10.0)
    assert not any(queue.may_send("tcp", who, 10.0) for who in ("second", "third"))
    assert list(queue.due(10.001)) == []
    queue.on_connected(10.1)
    assert (list(queue.due(10.1)), queue.queued) == (["second", "third"], False)
    assert queue.may_send("tcp", "fourth", 10.1)
    assert queue.on_refused("tcp") == []
    assert queue.may_send("tcp", "fifth", 11.0)
    assert not queue.may_send("tcp", "sixth", 11.0)
    assert queue.on_refused("tcp") == ["sixth"]
    assert list(queue.due(12.0)) == []
    assert queue.may_send("tcp", "seventh", 12.0)
    queue.on_answered("tcp")
    queue.on_broken()
    assert not queue.may_send("tcp", "eighth", 12.0)


def test_attempts_are_few() -> None:
    """A silent server gets rare connection attempts, and attempts at several servers are spread out."""
    queue: ConnectionQueue[int] = ConnectionQueue()
    attempts = 0
    for milliseconds in range(2000):
        now_s = milliseconds / 1000
        attempts += queue.may_send(milliseconds % 3, milliseconds, now_s)
        attempts += len(list(queue.due(now_s)))
    assert 2 / ATTEMPT_S <= attempts <= min(3 * (2 / ATTEMPT_S + 1), 2 / ATTEMPT_GAP_S + 1)


def test_few_connections_are_accepted_at_once() -> None:
    """While many connections were accepted lately or are open, further ones wait in the kernel."""
    with socket.socket() as listening, ExitStack() as callers:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        listening.setblocking(False)
        limit = IncomingConnectionLimit({listening.getsockname()[1]})
        callers.enter_context(limit._substitute)  # noqa: SLF001  # a worker keeps it for good

        def accepted(now_s: float) -> list[int]:
            come = []
            with suppress(BlockingIOError):
                while True:
                    connection = callers.enter_context(listening.accept()[0])
                    come.append(connection.fileno())
                    limit.on_accepted(connection.fileno(), now_s)
            return come

        for _ in range(60):
            callers.enter_context(socket.create_connection(listening.getsockname()))
        first = accepted(100.0)
        assert (len(first), limit.accepting) == (MOST_RECENT, False)
        limit.resume(100.1)
        assert not accepted(100.1)
        limit.resume(100.1 + RECENT_S)
        second = accepted(100.1 + RECENT_S)
        assert len(first) + len(second) == MOST_OPEN
        limit.resume(200.0)
        assert not accepted(200.0)
        for key in first:
            limit.on_closed(key)
        limit.resume(200.0)
        assert len(accepted(200.0)) == MOST_RECENT
