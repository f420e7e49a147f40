"""A row of the bench, how it is judged, and the table of all.

Deliberately absent: any measuring.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `reach` says what is judged: the ratio or the value; None is for information."""

    name: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    reach: str | None
    ok: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a group of rows is measured with: the command's options, the rows that are wanted, a folder of its own, and
    a function that tells what is done."""

    arguments: argparse.Namespace
    wanted: list[str]
    folder: Path
    tell: Callable[[str], None]

    def wants(self, prefix: str) -> bool:
        """Whether a wanted row begins so."""
        return any(row.startswith(prefix) for row in self.wanted)

    def sized(self, number: int, least: int = 1) -> int:
        """A size or number of times as the command's option `--percent` wants it."""
        percent: int = self.arguments.percent
        return max(least, number * percent // 100)

    def lasting(self, seconds: float) -> float:
        """A time in seconds, likewise; 1 at least."""
        percent: int = self.arguments.percent
        return max(1.0, seconds * percent / 100)

    def own_folder(self, name: str) -> Path:
        """A new folder for one gateway's database."""
        folder = self.folder / name
        folder.mkdir()
        return folder


def told(name: str, value: float, unit: str, *, baseline: float | None = None) -> Row:
    """A row for information."""
    ratio = round(value / baseline, 3) if baseline else None
    return Row(name, round(value, 3), unit, None if baseline is None else round(baseline, 3), ratio, None, None)


def judged(
    name: str,
    value: float,
    unit: str,
    *,
    most: float | None = None,
    least: float | None = None,
    baseline: float | None = None,
) -> Row:
    """A row whose value is judged; a baseline is for information."""
    ok, reach = _judge("value", value, most, least)
    row = told(name, value, unit, baseline=baseline)
    return replace(row, reach=reach, ok=ok)


def compared(
    name: str,
    value: float,
    baseline: float,
    unit: str,
    *,
    most: float | None = None,
    least: float | None = None,
    ratio: float | None = None,
) -> Row:
    """A row whose ratio to the baseline of the same run is judged; `ratio` where it is not that of the two."""
    ratio = value / baseline if ratio is None else ratio
    ok, reach = _judge("ratio", ratio, most, least)
    return Row(name, round(value, 3), unit, round(baseline, 3), round(ratio, 3), reach, ok)


def _judge(what: str, number: float, most: float | None, least: float | None) -> tuple[bool, str]:
    if most is not None:
        return number <= most, f"{what} <= {most}"
    assert least is not None
    return number >= least, f"{what} >= {least}"


def compared_rounds(
    name: str,
    values: Sequence[float],
    baselines: Sequence[float],
    unit: str,
    *,
    most: float | None = None,
    least: float | None = None,
) -> Row:
    """As `compared`, of rounds in which both were measured: medians, and the median of the rounds' ratios."""
    ratio = statistics.median(value / other for value, other in zip(values, baselines, strict=True))
    value, baseline = statistics.median(values), statistics.median(baselines)
    return compared(name, value, baseline, unit, most=most, least=least, ratio=ratio)


def p99(values: Sequence[float]) -> float:
    """The value that 99 in 100 do not pass."""
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def table_of(rows: list[Row], arguments: argparse.Namespace) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{arguments.rounds} rounds of {arguments.count} fetches, {arguments.concurrency} at once, "
        f"and {arguments.single} one by one",
        title_justify="left",
        caption="baseline: the bare PJSIP loop, or dialogs; of burst.memory and sse.memory: the second third; of "
        "changes: the rate offered; of callback.rate: webhook.rate; of hanging.p99: before it hung; of the others: "
        "a server, or a client, that does nothing else",
        caption_justify="left",
    )
    table.add_column("row", min_width=max((len(row.name) for row in rows), default=0))
    for heading in ("value", "unit", "baseline", "ratio"):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    table.add_column("reach")
    table.add_column("ok")
    verdicts = {None: "", True: "[green]yes[/]", False: "[red]NO[/]"}
    for row in rows:
        table.add_row(
            row.name,
            number_text(row.value),
            row.unit,
            number_text(row.baseline),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            (row.reach or "").replace("<=", "≤").replace(">=", "≥"),
            verdicts[row.ok],
        )
    return table


def number_text(value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.2f}"
