"""What a mitigation leaves of the spill-over against what it keeps of the learning, as shares of the plain fine-tune's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.paired import judged_by
from harness.report.content import ROLES, records, runs_of, topic_name, trained_on
from harness.report.figures import MARKERS, axes_at, canvas, short
from harness.report.svg import NARROW, TOKENS
from harness.report.tables import Cell, Row, Table, interval, number

if TYPE_CHECKING:
    from harness.compare import Comparison

Ends = tuple[float, float, float]  # value, low, high
MOST = 0.9  # of the learning
REACH = (-0.5, 2.5)  # wider intervals leave the picture


@dataclass(frozen=True)
class Trade:
    """One run: shares of the plain fine-tune's spill-over and of its learning."""

    label: str
    role: str
    left: Ends
    kept: Ends


def trades(comparison: Comparison, measure: str) -> dict[str, list[Trade]]:
    """Topic tuned on -> its one plain fine-tune and the runs beside it; topics with no run beside are left out.

    A run for which the comparison has no reduction (another role) stands without an interval.
    """
    own = trained_on(comparison, measure)
    found = {(row["run"], row["metric"]): row for row in records(comparison.summary, measure=measure)}
    tuned = [run["label"] for run in runs_of(comparison, "tuned") if run["label"] in own]
    plain = judged_by((own[label], label) for label in tuned)

    def ends(run: str, metric: str, raw: str, topic: str, upside_down: bool) -> Ends:
        if (run, metric) in found:
            row = found[run, metric]
            value, low, high = (float(row[key]) for key in ("value", "low", "high"))
            return (1 - value, 1 - high, 1 - low) if upside_down else (value, low, high)
        values = [
            float(found[name, raw]["value"]) if (name, raw) in found else math.nan for name in (run, plain[topic])
        ]
        return (values[0] / values[1] if values[1] else math.nan, math.nan, math.nan)

    drawn: dict[str, list[Trade]] = {}
    for topic in plain:
        beside = [run for run in runs_of(comparison, "inhibited", "control", "other") if own.get(run["label"]) == topic]
        points = [Trade(plain[topic], "tuned", (1.0, math.nan, math.nan), (1.0, math.nan, math.nan))]
        for run in beside:
            left = ends(run["label"], "reduction", "rmse_cross", topic, True)
            kept = ends(run["label"], "kept", "on_topic_shift", topic, False)
            if math.isfinite(left[0]) and math.isfinite(kept[0]):
                points.append(Trade(run["label"], run["role"], left, kept))
        if len(points) > 1:
            drawn[topic] = points
    return drawn


def finding(drawn: dict[str, list[Trade]]) -> str:
    """Which mitigation leaves least among those that keep nine tenths of the learning."""
    tried = [(topic, one) for topic, points in drawn.items() for one in points if one.role == "inhibited"]
    if not tried:
        return "Spill-over left against learning kept"
    fit = [pair for pair in tried if pair[1].kept[0] >= MOST]
    topic, best = min(fit or tried, key=lambda pair: pair[1].left[0])
    start = "Of the mitigations that keep 90% of the learning, " if fit else "No mitigation keeps 90% of the learning; "
    where = f" on {topic_name(topic).lower()}" if len(drawn) > 1 else ""
    value, low, high = best.left
    left = f"{number(value, 'percent')} {interval(low, high, 'percent')}".rstrip()
    return f"{start}{best.label} leaves least of the spill-over{where}: {left}"


def table(drawn: dict[str, list[Trade]]) -> Table:
    """The numbers of the picture."""
    rows = []
    for topic, points in drawn.items():
        for one in points:
            cells = (
                Cell(number(v, "percent"), interval(low, high, "percent")) for v, low, high in (one.left, one.kept)
            )
            note = f"{ROLES[one.role]}, tuned on {topic_name(topic).lower()}"
            rows.append(Row(one.label, tuple(cells), one.role, note))
    caption = "Shares of the plain fine-tune's spill-over (RMSE of the topics not tuned on) and of its on-topic shift"
    return Table(f"{caption}; 95% intervals over items", "Run", ("Spill-over left", "Learning kept"), tuple(rows))


def words(drawn: dict[str, list[Trade]]) -> str:
    """The picture in words."""
    parts = []
    for topic, points in drawn.items():
        runs = [
            f"{p.label} leaves {number(p.left[0], 'percent')}, keeps {number(p.kept[0], 'percent')}" for p in points
        ]
        parts.append(f"Tuned on {topic_name(topic).lower()}: {'; '.join(runs)}.")
    return " ".join(parts)


def picture(drawn: dict[str, list[Trade]], width: int) -> Figure:
    """One panel per topic tuned on; better is further left and higher. Numbers lead to the list below each panel."""
    narrow = width == NARROW
    columns = 1 if narrow or len(drawn) == 1 else 2
    block = width / columns
    high, line = (250 if narrow or columns > 1 else 330), 19
    listed = max(len(points) for points in drawn.values())
    step = 30 + high + 52 + line * listed + 14
    figure = canvas(width, step * math.ceil(len(drawn) / columns))
    tall = figure.get_size_inches()[1] * 72
    for i, (topic, points) in enumerate(drawn.items()):
        row, column = divmod(i, columns)
        left, top = column * block + 54, row * step + 30
        axes = axes_at(figure, left, top, block - 54 - 24, high)
        limits = [_limits([p.left for p in points]), _limits([p.kept for p in points])]
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
        axes.grid(color=TOKENS["line"], linewidth=0.7)
        axes.set_axisbelow(True)
        for n, point in enumerate(points):
            _mark(axes, point)
            text = f"{n + 1}  {short(point.label, 34)}" + ("  (random control)" if point.role == "control" else "")
            at = 1 - (top + high + 58 + line * n) / tall
            figure.text(left / width, at, text, color=TOKENS["ink"], fontsize=11)
        _numbers(axes, points, high, block - 78, limits)
        style = {"transform": axes.transAxes, "color": TOKENS["muted"], "fontsize": 11}
        axes.text(0.012, 0.97, "\N{NORTH WEST ARROW} better", ha="left", va="top", **style)
        title = f"Tuned on {topic_name(topic).lower()}"
        axes.text(0, 1 + 10 / high, title, transform=axes.transAxes, color=TOKENS["ink"], fontweight="bold")
        axes.set_xlabel("spill-over left, % of plain", color=TOKENS["muted"], fontsize=11)
        axes.set_ylabel("learning kept, % of plain", color=TOKENS["muted"], fontsize=11)
    return figure


def _limits(ends: list[Ends]) -> tuple[float, float]:
    known = [min(max(end, REACH[0]), REACH[1]) for three in ends for end in three if math.isfinite(end)]
    low, high = 100 * min(known), 100 * max(known)
    pad = max(0.09 * (high - low), 4.0)
    return low - pad, high + pad


def _mark(axes: Axes, point: Trade) -> None:
    colour, (x, y) = TOKENS[point.role], (100 * point.left[0], 100 * point.kept[0])
    style = {"color": colour, "linewidth": 1.8, "alpha": 0.75, "solid_capstyle": "round", "zorder": 3}
    if math.isfinite(point.left[1]):
        axes.plot([100 * point.left[1], 100 * point.left[2]], [y, y], **style)
    if math.isfinite(point.kept[1]):
        axes.plot([x, x], [100 * point.kept[1], 100 * point.kept[2]], **style)
    axes.plot([x], [y], MARKERS[point.role], color=colour, markersize=8, markeredgewidth=0, zorder=4)


def _numbers(axes: Axes, points: list[Trade], high: float, wide: float, limits: list[tuple[float, float]]) -> None:
    """Every point's number beside it; those of points that lie together are pushed apart upwards."""
    (x0, x1), (y0, y1) = limits
    places = sorted(
        ((100 * p.left[0] - x0) / (x1 - x0) * wide, (100 * p.kept[0] - y0) / (y1 - y0) * high, n)
        for n, p in enumerate(points)
    )
    places.sort(key=lambda place: place[1])
    heights = [place[1] for place in places]
    for i, _ in pairwise(range(len(places))):
        near = [heights[j] for j in range(i + 1) if abs(places[j][0] - places[i + 1][0]) < 24]
        heights[i + 1] = max([heights[i + 1], *(height + 13 for height in near)])
    for (x, y, n), height in zip(places, heights, strict=True):
        offset, style = (9, height - y + 4), {"color": TOKENS["ink"], "fontsize": 11, "zorder": 5}
        at = (x0 + x / wide * (x1 - x0), y0 + y / high * (y1 - y0))
        axes.annotate(str(n + 1), at, offset, textcoords="offset points", **style)
