"""The figures: stance by topic and run, shift by topic and run, neurons by layer. Each is drawn to a width in pixels.

Every mark stands in a labelled row, so colour only repeats what the label says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.report.svg import NARROW, TOKENS
from harness.report.tables import MINUS

MARKERS = {"base": "o", "tuned": "D", "inhibited": "s", "control": "^", "patched": "v", "other": "P"}
LEFT, RIGHT = "\N{LEFTWARDS ARROW} left", "right \N{RIGHTWARDS ARROW}"
ROW, HEAD, AXIS = 19, 30, 58


@dataclass(frozen=True)
class Point:
    """One run on one topic."""

    label: str
    role: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """One topic: its runs, whether it was tuned on, and the noise floor's band."""

    name: str
    points: tuple[Point, ...]
    marked: bool = False
    band: tuple[float, float] | None = None


def canvas(width: int, height: float) -> Figure:
    return Figure(figsize=(width / 72, height / 72))


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes placed in pixels from the top left corner."""
    wide, high = (side * 72 for side in figure.get_size_inches())
    axes = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=TOKENS["muted"], labelsize=11, pad=6)
    return axes


def _limits(groups: list[Group]) -> tuple[float, float]:
    ends = [end for g in groups for p in g.points for end in (p.value, p.low, p.high)]
    ends += [end for g in groups for end in g.band or ()]
    ends = [end for end in ends if math.isfinite(end)] + [0.0]
    low, high = min(ends), max(ends)
    pad = 0.06 * (high - low) or 0.1
    return low - pad, high + pad


def _tick(value: float, _: int) -> str:
    return f"{value:.3g}".replace("-", MINUS)


def _value_axis(axes: Axes, limits: tuple[float, float], ticks: int) -> None:
    axes.set_xlim(limits)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, min_n_ticks=3))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.grid(axis="x", color=TOKENS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.axvline(0, color=TOKENS["muted"], linewidth=1.1, zorder=1)


def _directions(axes: Axes, height: float, title: str, narrow: bool) -> None:
    """`left`, the quantity and `right` under the value axis; on a phone the quantity takes a second line."""
    down, style = -34 / height, {"color": TOKENS["muted"], "fontsize": 11, "transform": axes.transAxes, "va": "center"}
    axes.text(0, down, LEFT, ha="left", **style)
    axes.text(1, down, RIGHT, ha="right", **style)
    axes.text(0.5, down - (16 / height if narrow else 0), title, ha="center", **style)


def _point(axes: Axes, point: Point, y: float) -> None:
    colour = TOKENS.get(point.role, TOKENS["other"])
    if not math.isfinite(point.value):
        return
    if math.isfinite(point.low) and math.isfinite(point.high):
        axes.plot([point.low, point.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="round", zorder=3)
    axes.plot(
        [point.value], [y], MARKERS.get(point.role, "P"), color=colour, markersize=7.5, markeredgewidth=0, zorder=4
    )


def short(label: str, size: int) -> str:
    """A label that leaves room for the marks."""
    return label if len(label) <= size else label[: size - 1] + "\N{HORIZONTAL ELLIPSIS}"


def stance(groups: list[Group], title: str, width: int) -> Figure:
    """One block of rows per topic, one row per run; the thin line carries base's value down its block."""
    narrow = width == NARROW
    left = 118 if narrow else 190
    rows = sum(len(group.points) for group in groups)
    inner = ROW * rows + HEAD * len(groups) + 8
    figure = canvas(width, inner + AXIS + (16 if narrow else 0))
    axes = axes_at(figure, left, 0, width - left - 14, inner)
    axes.set_ylim(inner, 0)
    _value_axis(axes, _limits(groups), 4 if narrow else 8)
    axes.set_yticks([])
    edge, y = -(left - 4) / (width - left - 14), 0.0
    for group in groups:
        block = HEAD + ROW * len(group.points)
        if group.marked:
            patch = {"facecolor": TOKENS["tint"], "clip_on": False, "zorder": 0, "linewidth": 0}
            axes.axhspan(y + 5, y + block + 3, xmin=edge, xmax=1.01, **patch)
        heading = group.name + ("  \N{MIDDLE DOT} tuned on" if group.marked else "")
        style = {"transform": axes.get_yaxis_transform(), "va": "center"}
        axes.text(edge + 0.012, y + 19, heading, color=TOKENS["ink"], fontweight="bold", **style)
        start = next((p.value for p in group.points if p.role == "base"), math.nan)
        if math.isfinite(start):
            axes.plot([start, start], [y + HEAD, y + block], color=TOKENS["base"], linewidth=1, zorder=2)
        for i, point in enumerate(group.points):
            at = y + HEAD + ROW * (i + 0.5)
            text = short(point.label, 14 if narrow else 26)
            axes.text(-10 / (width - left), at, text, ha="right", color=TOKENS["muted"], fontsize=11, **style)
            _point(axes, point, at)
        y += block
    _directions(axes, inner, title, narrow)
    return figure


def shift(groups: list[Group], title: str, width: int) -> Figure:
    """One panel per topic on a common axis, one row per run; the grey band is the noise floor."""
    narrow = width == NARROW
    columns = 1 if narrow else min(3, len(groups))
    left, gap = (118 if narrow else 160), 20
    panel = (width - left - 14 - gap * (columns - 1)) / columns
    rows = max(len(group.points) for group in groups)
    high, lines = ROW * rows + 8, math.ceil(len(groups) / columns)
    foot = AXIS + (16 if narrow else 0)
    step = HEAD + high + (26 if narrow else 34)
    figure = canvas(width, step * lines + foot - 20)
    limits = _limits(groups)
    for i, group in enumerate(groups):
        line, column = divmod(i, columns)
        axes = axes_at(figure, left + column * (panel + gap), HEAD + line * step, panel, high)
        axes.set_ylim(high, 0)
        _value_axis(axes, limits, 4)
        if group.marked:
            axes.axvspan(*limits, facecolor=TOKENS["tint"], linewidth=0, zorder=0)
        if group.band:
            axes.axvspan(*group.band, facecolor=TOKENS["noise"], alpha=0.45, linewidth=0, zorder=1)
        heading = group.name + ("  \N{MIDDLE DOT} tuned on" if group.marked else "")
        axes.text(0, -9, heading, color=TOKENS["ink"], fontweight="bold", transform=axes.get_yaxis_transform())
        labels = [short(p.label, 16 if narrow else 22) for p in group.points] if column == 0 else []
        axes.set_yticks([4 + ROW * (j + 0.5) for j in range(len(labels))], labels)
        for j, point in enumerate(group.points):
            _point(axes, point, 4 + ROW * (j + 0.5))
        if columns == 1 and i == len(groups) - 1:
            _directions(axes, high, title, narrow)
    if columns > 1:
        style = {"va": "center", "color": TOKENS["muted"], "fontsize": 11}
        for x, align, text in (
            (left, "left", LEFT),
            ((left + width - 14) / 2, "center", title),
            (width - 14, "right", RIGHT),
        ):
            figure.text(x / width, 20 / (step * lines + foot - 20), text, ha=align, **style)
    return figure


def layers(general: list[int], specific: dict[str, list[int]], width: int) -> Figure:
    """A strip of bars per kind of neuron over the layers; the specific strips share one scale."""
    narrow = width == NARROW
    strip, gap, left = 56, 34, 40
    strips = [("General: selected on every topic", general, "ink"), *((k, v, "inhibited") for k, v in specific.items())]
    figure = canvas(width, len(strips) * (strip + gap) + 46)
    shared = max((n for counts in specific.values() for n in counts), default=0) or 1
    for i, (name, counts, colour) in enumerate(strips):
        axes = axes_at(figure, left, gap - 6 + i * (strip + gap), width - left - 8, strip)
        axes.bar(range(len(counts)), counts, width=0.78, color=TOKENS[colour], linewidth=0, alpha=0.75 if i == 0 else 1)
        axes.set_xlim(-0.6, max(len(general), 1) - 0.4)
        axes.set_ylim(0, (max(general, default=0) or 1) if i == 0 else shared)
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.grid(axis="y", color=TOKENS["line"], linewidth=0.7)
        axes.set_axisbelow(True)
        label = name if i == 0 else f"{name}, specific"
        style = {"transform": axes.transAxes, "color": TOKENS["ink"], "fontweight": "bold"}
        axes.text(0, 1 + 9 / strip, f"{label}  \N{MIDDLE DOT} {sum(counts):,}", **style)
        axes.xaxis.set_major_locator(MaxNLocator(6 if narrow else 15, integer=True))
        if i < len(strips) - 1:
            axes.set_xticklabels([])
        else:
            axes.set_xlabel("layer, 0 is next to the input", color=TOKENS["muted"], fontsize=11)
    return figure
