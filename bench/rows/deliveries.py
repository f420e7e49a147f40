"""Rows about deliveries: webhooks and Parlay X callbacks, through the durable outbox on SQLite.

Subscriptions are written to the database before the gateway starts (`../fill.py`). The presence server that changes
their terminals and the receiver are one process, so one clock measures.

`webhook.rate`: a terminal with SUBSCRIBERS subscriptions changes, again and again, each time after all webhooks of the
last change arrived. The time from the NOTIFY to the last webhook includes writing, claiming, signing, sending and
recording. The baseline is the HTTP client alone: a loop of POSTs of the same size to the same receiver. `callback.rate`
is the same over SOAP, with the webhook row as its baseline. `hanging.p99`: the delay of webhooks at a steady rate while
a second receiver, which never answers, blocks the notifications of HANGING subscriptions; the baseline is the delay
before.
"""

import statistics
from typing import Any

from app.domain.sinks import SINK_HANDSHAKE, SINK_SECRETS, Handshake, Sink, SinkKind, signing_secret
from bench.fill import fill
from bench.processes import BenchError, World, database_url, gateway, run, world
from bench.programs.world import address
from bench.row import Row, Run, compared, information, judged, p99

ROWS = (
    "webhook.rate",
    "webhook.per_second",
    "webhook.lag_median",
    "webhook.lag_p99",
    "callback.rate",
    "hanging.p99",
)

LEAST_RATE, LEAST_PER_S, SUBSCRIBERS, WAVES, WARM_WAVES, POSTS = 0.4, 400.0, 1000, 5, 2, 3000
MOST_LAG_MS, LAGS_PER_S, LAG_TERMINALS, LAGS_S = 25.0, 100.0, 100, 10.0
LEAST_CALLBACKS = 0.8
MOST_SLOWER, HANGING, HANGING_TERMINALS, HANGING_S, SINK_TIMEOUT_MS = 1.5, 1000, 10, 12.0, 3000
LIMIT_S = 60.0


def measure(bench: Run) -> list[Row]:
    """Measures the wanted rows, and their baselines."""
    rows: list[Row] = []
    if any(map(bench.wants, ("webhook.rate", "webhook.per_second", "callback"))):
        bench.progress("webhooks, callbacks, and POSTs alone")
        rate = _waves(bench, "webhook", "/count", SinkKind.WEBHOOK)
        if bench.wants("webhook"):
            rows += [
                compared("webhook.rate", rate, _posts(bench), "1/s", least=LEAST_RATE),
                judged("webhook.per_second", rate, "1/s", least=LEAST_PER_S),
            ]
        if bench.wants("callback"):
            callbacks = _waves(bench, "callback", "/soap", SinkKind.SOAP)
            rows.append(compared("callback.rate", callbacks, rate, "1/s", least=LEAST_CALLBACKS))
    if bench.wants("webhook.lag"):
        rows += _lag(bench)
    if bench.wants("hanging"):
        rows.append(_hanging(bench))
    return rows


def _sink(kind: SinkKind, url: str) -> Sink:
    if kind is SinkKind.SOAP:
        return Sink(kind=kind, url=url, profile="v2_2")
    parameters = {SINK_SECRETS: signing_secret(bytes(range(32))), SINK_HANDSHAKE: Handshake.NONE.value}
    return Sink(kind=kind, url=url, profile="v1", parameters=parameters)


def _settings() -> dict[str, Any]:
    return {"sink_allowed_networks": "127.0.0.0/8", "sink_allow_http": "true", "setups_per_s": 0}


def _waves(bench: Run, name: str, path: str, kind: SinkKind) -> float:
    """Notifications a second."""
    size, waves, folder = bench.sized(SUBSCRIBERS, 20), bench.sized(WAVES, 2), bench.own_folder(name)
    with world() as around:
        fill(database_url(folder), [address(0)] * size, sink=_sink(kind, around.url + path))
        with gateway(folder, around.sip_port, **_settings()):
            around.do("subscribed", numbers=[0])
            around.do("waves", number=0, size=size, waves=WARM_WAVES)
            seconds = around.do("waves", number=0, size=size, waves=waves)["seconds"]
            _check(around, {path.split("/")[1]: size * (waves + WARM_WAVES)})
    return float(size * waves / sum(seconds))


def _check(around: World, expected: dict[str, int]) -> None:
    """Checks that each notification was sent once: a repeated one would count twice."""
    if (received := around.do("received")) != expected:
        raise BenchError(f"The receiver received {received} instead of {expected}.")


def _posts(bench: Run) -> float:
    with world() as around:
        figures = run("bench.programs.noop", "http", around.url + "/alone", bench.sized(POSTS, 50), limit_s=LIMIT_S)
    return float(figures["count"] / figures["seconds"])


def _lag(bench: Run) -> list[Row]:
    count, folder = bench.sized(LAG_TERMINALS, 10), bench.own_folder("lag")
    bench.progress(f"{LAGS_PER_S:.0f} changes a second, one webhook for each")
    with world() as around:
        fill(database_url(folder), list(map(address, range(count))), sink=_sink(SinkKind.WEBHOOK, around.url + "/lag"))
        with gateway(folder, around.sip_port, **_settings()):
            lags_ms = _lags_ms(around, count, bench.lasting(LAGS_S))
    return [
        judged("webhook.lag_median", statistics.median(lags_ms), "ms", most=MOST_LAG_MS),
        information("webhook.lag_p99", p99(lags_ms), "ms"),
    ]


def _lags_ms(around: World, count: int, seconds: float) -> list[float]:
    around.do("subscribed", numbers=list(range(count)))
    around.do("webhooks", numbers=list(range(count)), rate=LAGS_PER_S, seconds=1.0)  # opens connections, warms code
    figures = around.do("webhooks", numbers=list(range(count)), rate=LAGS_PER_S, seconds=seconds)
    return [lag_s * 1000 for lag_s in figures["lag_s"]]


def _hanging(bench: Run) -> Row:
    count, folder = bench.sized(LAG_TERMINALS, 10), bench.own_folder("hanging")
    hanging, seconds = bench.sized(HANGING, 20), bench.lasting(HANGING_S)
    bench.progress(f"a receiver that hangs, for {hanging} subscriptions")
    silent = [count + number % HANGING_TERMINALS for number in range(hanging)]
    with world() as around:
        url = database_url(folder)
        fill(url, list(map(address, range(count))), sink=_sink(SinkKind.WEBHOOK, around.url + "/lag"))
        hangs = _sink(SinkKind.WEBHOOK, around.other_url + "/hang")
        fill(url, list(map(address, silent)), sink=hangs, first=count + 1)
        with gateway(folder, around.sip_port, sink_timeout_ms=SINK_TIMEOUT_MS, **_settings()):
            around.do("subscribed", numbers=silent[:HANGING_TERMINALS])
            before_ms = p99(_lags_ms(around, count, seconds))
            around.do("change", numbers=silent[:HANGING_TERMINALS])
            with_ms = p99(_lags_ms(around, count, seconds))
            if not around.do("received").get("hang"):
                raise BenchError("Nothing was sent to the hanging receiver.")
    return compared("hanging.p99", with_ms, before_ms, "ms", most=MOST_SLOWER)
