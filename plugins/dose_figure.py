"""The picture of a dose-response table: a row of panels per localiser, a column per outcome, shares along the bottom."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.report.figures import axes_at, canvas
from harness.report.svg import NARROW, TOKENS
from harness.report.tables import MINUS, number
from plugins.dose_response import records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL, HEAD, FOOT = 92, 30, 44


def picture(table: pd.DataFrame) -> Callable[[int], Figure]:
    """A drawing of `plugins.dose_response.effects` to a width in pixels; outcomes keep one scale down their column.

    Filled marks with bars: the localiser's neurons and the 95% interval. Hollow marks: the mean of as many random neurons of
    the same layers, with a thin bar from the least to the most of them.
    """
    names, outcomes = list(dict.fromkeys(table["localizer"])), list(dict.fromkeys(table["outcome"]))

    def draw(width: int) -> Figure:
        narrow = width == NARROW
        left, gap = 40, 36 if narrow else 54
        wide = (width - left - 12 - gap * (len(outcomes) - 1)) / len(outcomes)
        figure = canvas(width, len(names) * (PANEL + HEAD) + FOOT)
        high = len(names) * (PANEL + HEAD) + FOOT
        for column, outcome in enumerate(outcomes):
            part = table[table["outcome"] == outcome]
            limits = _limits(part)
            for row, name in enumerate(names):
                at = left + column * (wide + gap)
                axes = axes_at(figure, at, HEAD + row * (PANEL + HEAD), wide, PANEL)
                _panel(axes, records(part[part["localizer"] == name]), limits, narrow)
                title = name.replace("_", " ") if column == 0 else ""
                if row == 0:
                    axes.text(
                        1, 1.06, outcome.replace("_", " ")[: 14 if narrow else 40], **_above(axes, "right", "muted")
                    )
                if title:
                    axes.text(0, 1.06, title[: 12 if narrow and row == 0 else 30], **_above(axes, "left", "ink"))
                if row < len(names) - 1:
                    axes.set_xticklabels([])
        said = "share of neurons; change, nats per token" if narrow else SAID
        figure.text((width - 12) / width, 8 / high, said, ha="right", color=TOKENS["muted"], fontsize=11)
        return figure

    return draw


SAID = "share of all neurons; upwards: change in nats per token; hollow: random neurons of the same layers"


def words(table: pd.DataFrame) -> str:
    """The picture's text alternative."""
    rows = records(table)
    return "; ".join(
        f"{r['localizer']} at {100 * r['share']:g}%, {r['outcome']}: {number(r['change'])} (random {number(r['random'])})"
        for r in rows
    )


def _above(axes: Axes, side: str, token: str) -> dict[str, Any]:
    weight = "bold" if token == "ink" else "normal"
    style = {"transform": axes.transAxes, "ha": side, "va": "bottom", "fontsize": 11, "fontweight": weight}
    return {**style, "color": TOKENS[token]}


def _limits(part: pd.DataFrame) -> tuple[float, float]:
    ends = part[["change", "change_low", "change_high", "random_least", "random_most"]].to_numpy(float)
    low, high = min(0.0, float(pd.DataFrame(ends).min().min())), max(0.0, float(pd.DataFrame(ends).max().max()))
    pad = 0.08 * (high - low) or 0.1
    return low - pad, high + pad


def _panel(axes: Axes, rows: list[dict[str, Any]], limits: tuple[float, float], narrow: bool) -> None:
    places = range(len(rows))
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(limits)
    axes.set_xticks(list(places), [f"{100 * r['share']:g}%" for r in rows], fontsize=9 if narrow else 11)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", MINUS)))
    axes.tick_params(axis="y", labelsize=9)
    axes.grid(axis="y", color=TOKENS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.axhline(0, color=TOKENS["muted"], linewidth=1.1, zorder=1)
    own, other = TOKENS["inhibited"], TOKENS["muted"]
    axes.plot([p - 0.1 for p in places], [r["change"] for r in rows], color=own, linewidth=1, alpha=0.6, zorder=2)
    axes.plot([p + 0.1 for p in places], [r["random"] for r in rows], color=other, linewidth=1, alpha=0.6, zorder=2)
    for place, row in zip(places, rows, strict=True):
        axes.plot([place - 0.1] * 2, [row["change_low"], row["change_high"]], color=own, linewidth=2.2, zorder=3)
        axes.plot([place - 0.1], [row["change"]], "s", color=own, markersize=6, markeredgewidth=0, zorder=4)
        axes.plot([place + 0.1] * 2, [row["random_least"], row["random_most"]], color=other, linewidth=1, zorder=3)
        axes.plot([place + 0.1], [row["random"]], "o", color=other, markersize=6, fillstyle="none", zorder=4)
