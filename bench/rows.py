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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. Of several rounds, each number is the median, and `low` and `high` are the range of what is judged;
    of a row for information, of the ratio where there is one, else of the value.

    `most` or `least` is what `judges` must keep, which is "value" or "ratio"; a row without is for information.
    `every`: each round must, instead of the median.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    most: float | None = None
    least: float | None = None
    judges: str = "value"
    every: bool = False
    low: float | None = None
    high: float | None = None

    @property
    def figure(self) -> float:
        """What the range is of."""
        if self.ratio is None or (self.judges == "value" and self.reach):
            return self.value
        return self.ratio

    @property
    def reach(self) -> str | None:
        """What must be kept, for people."""
        if self.most is not None:
            return f"{self.judges} <= {self.most}"
        return None if self.least is None else f"{self.judges} >= {self.least}"

    @property
    def ok(self) -> bool | None:
        """Whether it is kept."""
        number = self.ratio if self.judges == "ratio" else self.value
        if number is None or self.reach is None:
            return None
        return number <= self.most if self.most is not None else number >= (self.least or 0)


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
    return Row(name=name, value=value, unit=unit, baseline=baseline, ratio=value / baseline if baseline else None)


def judged(
    name: str,
    value: float,
    unit: str,
    *,
    most: float | None = None,
    least: float | None = None,
    baseline: float | None = None,
    every: bool = False,
) -> Row:
    """A row whose value is judged; a baseline is for information."""
    return replace(told(name, value, unit, baseline=baseline), most=most, least=least, every=every)


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
    return Row(
        name=name, value=value, unit=unit, baseline=baseline, ratio=ratio, most=most, least=least, judges="ratio"
    )


def compared_pairs(
    name: str,
    values: Sequence[float],
    baselines: Sequence[float],
    unit: str,
    *,
    most: float | None = None,
    least: float | None = None,
) -> Row:
    """As `compared`, of both measured by turns: medians, and the median of the pairs' ratios."""
    ratio = statistics.median(value / other for value, other in zip(values, baselines, strict=True))
    value, baseline = statistics.median(values), statistics.median(baselines)
    return compared(name, value, baseline, unit, most=most, least=least, ratio=ratio)


def medians(rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """One row for each name, in the order of the first round: medians, and the range of what is judged."""
    return [_median([row for rows in rounds for row in rows if row.name == first.name]) for first in rounds[0]]


def _median(rows: list[Row]) -> Row:
    first = rows[0]
    figures = [row.figure for row in rows]
    if first.every:
        worst = max(rows, key=lambda row: row.value) if first.most is not None else min(rows, key=lambda row: row.value)
        return replace(worst, low=min(figures), high=max(figures))
    return replace(
        first,
        value=statistics.median(row.value for row in rows),
        baseline=None if first.baseline is None else statistics.median(row.baseline or 0 for row in rows),
        ratio=None if first.ratio is None else statistics.median(row.ratio or 0 for row in rows),
        low=min(figures),
        high=max(figures),
    )


def report_of(row: Row) -> dict[str, object]:
    """The row as the report has it, to three decimals."""
    members = (row.name, row.value, row.unit, row.baseline, row.ratio, row.low, row.high, row.reach, row.ok)
    names = ("name", "value", "unit", "baseline", "ratio", "low", "high", "reach", "ok")
    rounded = (round(member, 3) if isinstance(member, float) else member for member in members)
    return dict(zip(names, rounded, strict=True))


def p99(values: Sequence[float]) -> float:
    """The value that 99 in 100 do not pass."""
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def table_of(rows: list[Row], arguments: argparse.Namespace) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        title=f"Medians of {arguments.rounds} rounds, and the range of what is judged. "
        f"A round has {arguments.count} fetches, {arguments.concurrency} at once, and {arguments.single} one by one.",
        title_justify="left",
        caption="baseline: the bare PJSIP loop, or dialogs; of burst.memory and sse.memory: the second third; of "
        "changes: the rate offered; of callback.rate: webhook.rate; of hanging.p99: before it hung; "
        "of stored.start_members: none; of the others: "
        "a server, or a client, that does nothing else",
        caption_justify="left",
    )
    table.add_column("row", min_width=max((len(row.name) for row in rows), default=0))
    for heading in ("value", "unit", "baseline", "ratio"):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    table.add_column("range", justify="right")
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
            f"{number_text(row.low)} … {number_text(row.high)}",
            (row.reach or "").replace("<=", "≤").replace(">=", "≥"),
            verdicts[row.ok],
        )
    return table


def number_text(value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.2f}"
