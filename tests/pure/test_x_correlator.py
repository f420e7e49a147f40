"""The x-correlator of a call: which one is taken, what is never kept, and the lines of the log that name it."""

import contextvars
import json

import pytest
import structlog

from app.domain import x_correlator
from app.logs import configure_logging

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"{TRACE_ID}-b7ad6b7169203331-01"

TRACEPARENTS = {
    f"00-{PARENT}": TRACE_ID,
    f"cc-{PARENT}-what-a-later-version-adds": TRACE_ID,
    f"00-{PARENT}-more": "",
    f"ff-{PARENT}": "",
    f"00-{PARENT}".upper(): "",
    f"00-{'0' * 32}-b7ad6b7169203331-01": "",
    f"00-{TRACE_ID}-{'0' * 16}-01": "",
    f"00-{PARENT},00-{PARENT}": "",
    f"00-{PARENT}\n": "",
    f"cc-{PARENT}-{'a' * 65536}": "",
    "00-": "",
}


@pytest.mark.parametrize("traceparent", TRACEPARENTS)
def test_the_trace_id_of_a_valid_traceparent(traceparent: str) -> None:
    """W3C Trace Context section 3.2.2: version ff and ids of zeros are invalid; a later version may add fields."""
    assert x_correlator.trace_id(traceparent) == TRACEPARENTS[traceparent]


def test_an_x_correlator_comes_before_a_traceparent() -> None:
    """CAMARA Commonalities section 8.4: x-correlator is the caller's own. An empty one counts as absent."""
    assert x_correlator.read("order-4711", f"00-{PARENT}").text == "order-4711"
    assert x_correlator.read("", f"00-{PARENT}").text == TRACE_ID
    made, other = x_correlator.read("", ""), x_correlator.read("", "00-")
    assert len(made.text) == 32
    assert made.text == made.text != other.text
    assert not made.sent
    assert not made.invalid


@pytest.mark.parametrize(
    "hostile",
    [
        'a\nevent="forged"',
        "a\r\nx-admin: yes",
        "\x1b[2J",
        "a b",
        "a,a",
        "ä",
        "\u2028",
        "٣",
        "a" * 257,
        "a" * 65536,
        "a\n",
        "a\0",
        '"',
    ],
)
def test_a_hostile_x_correlator_is_never_kept(hostile: str) -> None:
    """Log injection, 64 KiB, doubled lines, Unicode: the pattern of CAMARA's XCorrelator has none of them."""
    read = x_correlator.read(hostile, "")
    assert read.invalid
    assert len(read.text) == 32
    assert read.text.isalnum()
    assert x_correlator.read(hostile, f"00-{PARENT}").text == TRACE_ID


def test_lines_of_a_call_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line that is logged in a call's task has its x-correlator, and says whether an invalid one was replaced. A
    line's own x-correlator, of a delivery, is kept."""
    log = structlog.get_logger()

    def call(sent: str) -> None:
        x_correlator.begin(x_correlator.read(sent, ""))
        log.warning("first")
        log.warning("second", x_correlator="of a subscription")

    configure_logging("info", "json")
    try:
        log.warning("outside")
        contextvars.Context().run(call, "order-4711")
        contextvars.Context().run(call, "a\nb")
    finally:
        structlog.reset_defaults()
    outside, first, second, replaced, _ = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "x_correlator" not in outside
    assert (first["x_correlator"], second["x_correlator"]) == ("order-4711", "of a subscription")
    assert "x_correlator_replaced" not in first
    assert len(str(replaced["x_correlator"])) == 32
    assert replaced["x_correlator_replaced"] is True


def test_readable_lines_name_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    """The console's form has the x-correlator too."""
    configure_logging("info", "console")
    try:
        context = contextvars.Context()
        context.run(x_correlator.begin, x_correlator.read("order-4711", ""))
        context.run(structlog.get_logger().warning, "event")
        assert "order-4711" in capsys.readouterr().err
    finally:
        structlog.reset_defaults()
