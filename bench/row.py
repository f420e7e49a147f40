"""A row of the bench: its figure, how it is judged, and the table of all rows."""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. After several rounds, each number is the median of the rounds, and `low` and `high` are the range of
    `figure`.

    `most` or `least` is the bound of the value or of the ratio, as `judges` says ("value" or "ratio"). A row without a
    bound is for information. `every`: every round has to keep the bound, instead of the median.
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
        """The number that is judged; for information, the ratio if there is one, else the value."""
        if self.ratio is None or (self.judges == "value" and self.reach):
            return self.value
        return self.ratio

    @property
    def reach(self) -> str | None:
        """The bound as text; None without a bound."""
        if self.most is not None:
            return f"{self.judges} <= {self.most}"
        return None if self.least is None else f"{self.judges} >= {self.least}"

    @property
    def ok(self) -> bool | None:
        """Whether the bound is kept; None without a bound."""
        number = self.ratio if self.judges == "ratio" else self.value
        if number is None or self.reach is None:
            return None
        return number <= self.most if self.most is not None else number >= (self.least or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a group of rows needs to measure: the command's options, the names of the wanted rows, a folder, and a
    function that prints what is being done."""

    arguments: argparse.Namespace
    wanted: list[str]
    folder: Path
    progress: Callable[[str], None]

    def wants(self, prefix: str) -> bool:
        """Whether the name of a wanted row begins with `prefix`."""
        return any(row.startswith(prefix) for row in self.wanted)

    def sized(self, number: int, least: int = 1) -> int:
        """A size or count, scaled by the option `--percent`."""
        percent: int = self.arguments.percent
        return max(least, number * percent // 100)

    def lasting(self, seconds: float) -> float:
        """A time in seconds, scaled by the option `--percent`; at least 1."""
        percent: int = self.arguments.percent
        return max(1.0, seconds * percent / 100)

    def own_folder(self, name: str) -> Path:
        """A new folder for one gateway's database."""
        folder = self.folder / name
        folder.mkdir()
        return folder


def information(name: str, value: float, unit: str, *, baseline: float | None = None) -> Row:
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
    return replace(information(name, value, unit, baseline=baseline), most=most, least=least, every=every)


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
    """A row that is judged by its ratio to a baseline of the same run; `ratio` replaces value / baseline."""
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
    """As `compared`, of values and baselines measured in turn: their medians, and the median of the pairs' ratios."""
    ratio = statistics.median(value / other for value, other in zip(values, baselines, strict=True))
    value, baseline = statistics.median(values), statistics.median(baselines)
    return compared(name, value, baseline, unit, most=most, least=least, ratio=ratio)


def medians(rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """One row for each name, in the order of the first round: the medians of the rounds, and their range."""
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
    """The row for the report, rounded to three decimals."""
    members = (row.name, row.value, row.unit, row.baseline, row.ratio, row.low, row.high, row.reach, row.ok)
    names = ("name", "value", "unit", "baseline", "ratio", "low", "high", "reach", "ok")
    rounded = (round(member, 3) if isinstance(member, float) else member for member in members)
    return dict(zip(names, rounded, strict=True))


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def table_of(rows: list[Row], arguments: argparse.Namespace) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        title=f"Medians of {arguments.rounds} rounds, and their range. "
        f"A round has {arguments.count} fetches, {arguments.concurrency} at once, and {arguments.single} one by one.",
        title_justify="left",
        caption="baseline: the bare PJSIP loop or bare dialogs; for burst.memory and sse.memory: the second third; for "
        "changes: the offered rate; for callback.rate: webhook.rate; for hanging.p99: before the receiver hung; "
        "for stored.start_members: no members; for engine.cpu_per_fetch: grpc.aio; for all others: a server or client "
        "that does nothing else",
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
    """A figure as the table shows it."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.2f}"
