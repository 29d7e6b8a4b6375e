"""The picture of a NeuronLens study: change of accuracy by mask, on the concept's texts and on the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.report.svg import NARROW, TOKENS
from harness.report.tables import MINUS, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, HEAD, FOOT = 22, 34, 46
PARTS = {"target": ("inhibited", "o"), "complement": ("tuned", "D")}


def picture(rows: pd.DataFrame) -> Callable[[int], Figure]:
    """A drawing of rows of `changes` (of one measure, target and complement), one block per concept, to a width in pixels.

    Coloured marks with bars are the change and its 95% interval; hollow ones what random dimensions do under the same mask.
    """
    shown = rows[rows["part"].isin(list(PARTS))]
    blocks = [(str(concept), own.to_dict("records")) for concept, own in shown.groupby("concept", sort=False)]

    def draw(width: int) -> Figure:
        left = 128 if width == NARROW else 190
        inner = sum(HEAD + ROW * len(block) for _, block in blocks) + 8
        high = inner + FOOT
        figure = Figure(figsize=(width / 72, high / 72))
        axes = figure.add_axes((left / width, FOOT / high, (width - left - 16) / width, inner / high))
        _frame(axes, inner, narrow=width == NARROW)
        y = 0.0
        for concept, block in blocks:
            axes.text(-0.01, y + 20, concept, fontweight="bold", ha="right", color=TOKENS["ink"], **_beside(axes))
            for n, row in enumerate(block):
                at = y + HEAD + ROW * (n + 0.5)
                label = f"{row['mask']}, {row['part']}"
                axes.text(-0.01, at, label, ha="right", color=TOKENS["muted"], fontsize=11, **_beside(axes))
                _mark(axes, row, at)
            y += HEAD + ROW * len(block)
        return figure

    return draw


def words(rows: pd.DataFrame) -> str:
    """The picture's text alternative."""
    shown = rows[rows["part"].isin(list(PARTS))].to_dict("records")
    return "; ".join(f"{r['mask']} of {r['concept']}, {r['part']}: {number(r['change'], 'points')}" for r in shown)


def _frame(axes: Axes, inner: float, narrow: bool) -> None:
    axes.set_ylim(inner, 0)
    axes.set_yticks([])
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=TOKENS["muted"], labelsize=11, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}".replace("-", MINUS)))
    axes.grid(axis="x", color=TOKENS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.axvline(0, color=TOKENS["muted"], linewidth=1.1, zorder=1)
    said = "change, points; hollow: random" if narrow else "change of accuracy, points; hollow: random dimensions"
    axes.set_xlabel(said, color=TOKENS["muted"], fontsize=11, loc="right")


def _beside(axes: Axes) -> dict:
    return {"transform": axes.get_yaxis_transform(), "va": "center"}


def _mark(axes: Axes, row: dict, at: float) -> None:
    token, marker = PARTS[row["part"]]
    if math.isfinite(row["low"]) and math.isfinite(row["high"]):
        ends = [row["low"], row["high"]]
        axes.plot(ends, [at, at], color=TOKENS[token], linewidth=2.4, solid_capstyle="round", zorder=3)
    axes.plot([row["change"]], [at], marker, color=TOKENS[token], markersize=7.5, markeredgewidth=0, zorder=5)
    control = row["random"] - row["base"]
    axes.plot([control], [at], marker, color=TOKENS["muted"], markersize=7.5, fillstyle="none", zorder=4)
