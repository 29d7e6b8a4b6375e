"""Dose and response: what is left of the spill-over and kept of the learning as more neurons are held, beside random ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.content import topic_name
from harness.report.figures import axes_at, canvas
from harness.report.svg import NARROW, TOKENS
from harness.report.tables import Cell, Row, Table, interval, number
from harness.report.tradeoff import REACH, Ends, Trade, trades

if TYPE_CHECKING:
    from harness.compare import Comparison

SAID = {"left": "spill-over left, % of plain", "kept": "learning kept, % of plain"}
PANEL, HEAD, FOOT = 170, 34, 46


@dataclass(frozen=True)
class Dose:
    """One share of the neurons held, and the random controls with as many."""

    share: float
    held: Trade
    random: tuple[Trade, ...]


def doses(comparison: Comparison, measure: str) -> dict[str, list[Dose]]:
    """Topic tuned on -> doses in rising order; topics with fewer than two shares are left out."""
    shares = {run["label"]: run["spec"].get("share") for run in comparison.runs}
    found = {}
    for topic, points in trades(comparison, measure).items():
        held = {shares[p.label]: p for p in points if p.role == "inhibited" and shares[p.label] is not None}
        if len(held) < 2:
            continue
        random = [p for p in points if p.role == "control"]
        found[topic] = [
            Dose(share, held[share], tuple(p for p in random if shares[p.label] == share)) for share in sorted(held)
        ]
    return found


def finding(drawn: dict[str, list[Dose]]) -> str:
    """What the largest dose leaves, beside its random controls."""
    topic, rising = next(iter(drawn.items()))
    most = rising[-1]
    left = number(most.held.left[0], "percent")
    about = f"Holding {number(most.share, 'percent')} of the general neurons leaves {left} of the spill-over"
    where = f" of tuning on {topic_name(topic).lower()}" if len(drawn) > 1 else ""
    if not most.random:
        return f"{about}{where}; random neurons were not held"
    mean = sum(p.left[0] for p in most.random) / len(most.random)
    return f"{about}{where}; as many random ones leave {number(mean, 'percent')}"


def table(drawn: dict[str, list[Dose]]) -> Table:
    """The numbers of the picture: every dose and every control."""
    rows = []
    for topic, rising in drawn.items():
        for dose in rising:
            for one in (dose.held, *dose.random):
                cells = [
                    Cell(number(v, "percent"), interval(low, high, "percent")) for v, low, high in (one.left, one.kept)
                ]
                kind = "general neurons" if one.role == "inhibited" else "random neurons"
                note = f"{kind}, tuned on {topic_name(topic).lower()}"
                rows.append(Row(one.label, (Cell(number(dose.share, "percent")), *cells), one.role, note))
    caption = "What is left and kept by the share of the general neurons held; 95% intervals over items"
    return Table(caption, "Run", ("Share held", "Spill-over left", "Learning kept"), tuple(rows))


def words(drawn: dict[str, list[Dose]]) -> str:
    """The picture in words."""
    parts = []
    for topic, rising in drawn.items():
        said = [
            f"{number(dose.share, 'percent')} held leaves {number(dose.held.left[0], 'percent')}"
            + (f" (random {', '.join(number(p.left[0], 'percent') for p in dose.random)})" if dose.random else "")
            for dose in rising
        ]
        parts.append(f"Tuned on {topic_name(topic).lower()}: {'; '.join(said)}.")
    return " ".join(parts)


def picture(drawn: dict[str, list[Dose]], width: int) -> Figure:
    """A row of two panels per topic. Squares with bars: the general neurons held; hollow marks: each random control."""
    narrow = width == NARROW
    columns = 1 if narrow else 2
    panels = [(topic, rising, which) for topic, rising in drawn.items() for which in SAID]
    step, left, gap = HEAD + PANEL + 24, 46, 60
    wide = (width - left - 14 - gap * (columns - 1)) / columns
    high = step * math.ceil(len(panels) / columns) + FOOT
    figure = canvas(width, high)
    for i, (topic, rising, which) in enumerate(panels):
        row, column = divmod(i, columns)
        axes = axes_at(figure, left + column * (wide + gap), HEAD + row * step, wide, PANEL)
        _panel(axes, rising, which)
        name = f"{topic_name(topic)}: " if len(drawn) > 1 else ""
        style = {"transform": axes.transAxes, "color": TOKENS["ink"], "fontweight": "bold"}
        axes.text(0, 1 + 10 / PANEL, f"{name}{SAID[which]}", **style)
    said = "share of the general neurons held; hollow: as many random ones"
    figure.text(left / width, 14 / high, said, color=TOKENS["muted"], fontsize=11)
    return figure


def _panel(axes: Axes, rising: list[Dose], which: str) -> None:
    axes.set_xlim(-0.5, len(rising) - 0.5)
    axes.set_xticks(range(len(rising)), [f"{100 * dose.share:g}%" for dose in rising])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color=TOKENS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.axhline(100, color=TOKENS["muted"], linewidth=1.1, zorder=1)
    means = []
    for place, dose in enumerate(rising):
        value, low, high = _percent(dose.held, which)
        means.append(value)
        if math.isfinite(low):
            axes.plot([place - 0.08] * 2, [low, high], color=TOKENS["inhibited"], linewidth=2.2, zorder=3)
        axes.plot([place - 0.08], [value], "s", color=TOKENS["inhibited"], markersize=7, markeredgewidth=0, zorder=4)
        for n, control in enumerate(dose.random):
            value, low, high = _percent(control, which)
            at = place + 0.08 * (n + 1)
            if math.isfinite(low):
                axes.plot([at] * 2, [low, high], color=TOKENS["control"], linewidth=1.1, zorder=2)
            axes.plot([at], [value], "^", color=TOKENS["control"], markersize=7, fillstyle="none", zorder=4)
    axes.plot([p - 0.08 for p in range(len(means))], means, color=TOKENS["inhibited"], linewidth=1, alpha=0.6, zorder=2)


def _percent(one: Trade, which: str) -> Ends:
    value, low, high = (100 * min(max(end, REACH[0]), REACH[1]) for end in getattr(one, which))
    return value, low, high
