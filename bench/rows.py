"""A row of the bench, how it is judged, and the table of all.

Deliberately absent: any measuring.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
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


def told(name: str, value: float, unit: str, *, baseline: float | None = None) -> Row:
    """A row for information."""
    ratio = round(value / baseline, 3) if baseline else None
    return Row(name, round(value, 3), unit, None if baseline is None else round(baseline, 3), ratio, None, None)


def judged(name: str, value: float, unit: str, *, most: float | None = None, least: float | None = None) -> Row:
    """A row whose value is judged."""
    ok, reach = _judge("value", value, most, least)
    return Row(name, round(value, 3), unit, None, None, reach, ok)


def compared(
    name: str, value: float, baseline: float, unit: str, *, most: float | None = None, least: float | None = None
) -> Row:
    """A row whose ratio to the baseline of the same run is judged."""
    ratio = value / baseline
    ok, reach = _judge("ratio", ratio, most, least)
    return Row(name, round(value, 3), unit, round(baseline, 3), round(ratio, 3), reach, ok)


def _judge(what: str, number: float, most: float | None, least: float | None) -> tuple[bool, str]:
    if most is not None:
        return number <= most, f"{what} <= {most}"
    assert least is not None
    return number >= least, f"{what} >= {least}"


def table_of(rows: list[Row], arguments: argparse.Namespace) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{arguments.rounds} rounds of {arguments.count} fetches, {arguments.concurrency} at once, "
        f"and {arguments.single} one by one",
        title_justify="left",
        caption="baseline: the bare PJSIP loop, or dialogs; of burst.memory: the second third of the bursts",
        caption_justify="left",
    )
    table.add_column("row")
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
