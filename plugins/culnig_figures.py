"""The figures of a CULNIG study: effects by condition and task group, and the general neurons by layer and site."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from harness.report.figures import axes_at, canvas
from harness.report.sheet import Picture
from harness.report.svg import NARROW, TOKENS
from plugins.culnig import Masks

ROW, HEAD, FOOT = 20, 26, 52


def effects_picture(effects: pd.DataFrame) -> Picture:
    """Net change of the gold option's probability, one row per condition and group of tasks."""
    shown = effects[effects["metric"] == "probability of the gold option"]
    rows = [(row, *(100 * row[key] for key in ("net", "net low", "net high"))) for row in shown.to_dict("records")]
    words = "; ".join(
        f"{row['condition']} on {row['tasks']}: {net:+.1f} [{low:.1f}, {high:.1f}]" for row, net, low, high in rows
    )
    title = "Change of the gold option's probability, in points: net of controls, with 95% interval"
    return Picture(title, words, lambda width: _effects(shown, width))


def _effects(shown: pd.DataFrame, width: int) -> Figure:
    left = 120 if width == NARROW else 190
    blocks = [(str(name), block) for name, block in shown.groupby("condition", sort=False)]
    inner = ROW * len(shown) + HEAD * len(blocks) + 8
    figure = canvas(width, inner + FOOT)
    axes = axes_at(figure, left, 0, width - left - 14, inner)
    axes.set_ylim(inner, 0)
    axes.set_yticks([])
    axes.grid(axis="x", color=TOKENS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.axvline(0, color=TOKENS["muted"], linewidth=1.1, zorder=1)
    axes.set_xlabel("points net of controls", color=TOKENS["muted"], fontsize=11)
    style, y = {"transform": axes.get_yaxis_transform(), "va": "center"}, 0.0
    for name, block in blocks:
        axes.text(-(left - 6) / (width - left - 14), y + 16, name, color=TOKENS["ink"], fontweight="bold", **style)
        for number, row in enumerate(block.to_dict("records")):
            at, colour = y + HEAD + ROW * (number + 0.5), TOKENS["inhibited" if row["counts"] == "yes" else "base"]
            axes.text(-10 / (width - left), at, row["tasks"], ha="right", color=TOKENS["muted"], fontsize=11, **style)
            axes.plot([100 * row["net low"], 100 * row["net high"]], [at, at], color=colour, linewidth=2.4, zorder=3)
            axes.plot(
                [100 * row["net"]], [at], "o" if row["counts"] == "yes" else "D", color=colour, markersize=6.5, zorder=4
            )
        y += HEAD + ROW * len(block)
    return figure


def layers_picture(general: Masks) -> Picture:
    """A strip of bars per site over the layers."""
    counts = {str(site): mask.sum(1).tolist() for site, mask in general.items()}
    words = "; ".join(f"{site}: {', '.join(map(str, row))}" for site, row in counts.items())
    total = sum(sum(row) for row in counts.values())
    title = f"The {total} general neurons by layer (0 is next to the input) and site"
    return Picture(title, words, lambda width: _layers(counts, width))


def _layers(counts: dict[str, list[int]], width: int) -> Figure:
    strip, gap, left = 56, 34, 40
    figure = canvas(width, len(counts) * (strip + gap) + 46)
    for number, (site, row) in enumerate(counts.items()):
        axes = axes_at(figure, left, gap - 6 + number * (strip + gap), width - left - 8, strip)
        axes.bar(range(len(row)), row, width=0.78, color=TOKENS["patched"], linewidth=0)
        axes.set_xlim(-0.6, len(row) - 0.4)
        axes.set_ylim(0, max(row) or 1)
        axes.grid(axis="y", color=TOKENS["line"], linewidth=0.7)
        axes.set_axisbelow(True)
        heading = f"{site}  \N{MIDDLE DOT} {sum(row)}"
        axes.text(0, 1 + 9 / strip, heading, transform=axes.transAxes, color=TOKENS["ink"], fontweight="bold")
        if number < len(counts) - 1:
            axes.set_xticklabels([])
        else:
            axes.set_xlabel("layer, 0 is next to the input", color=TOKENS["muted"], fontsize=11)
    return figure
