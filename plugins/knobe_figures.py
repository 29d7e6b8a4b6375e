"""The sweep of Layer-Patching drawn: change of Delta_Knobe by block, with its control, one panel per direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.sheet import Picture
from harness.report.svg import NARROW, TOKENS
from plugins.layer_patching import DIRECTIONS

if TYPE_CHECKING:
    from plugins.layer_patching_hooks import PatchSite

PANEL, GAP, FOOT, HEAD, LEGEND = 170, 44, 46, 34, 62  # pixels
NAMES = {"base_into_tuned": "base into tuned", "tuned_into_base": "tuned into base"}


def sweep_picture(effects: pd.DataFrame, site: PatchSite, finding: str) -> Picture:
    """One site's figure. `effects`: as `plugins.layer_patching_effects.patch_effects`; `finding`: its title."""
    mine = effects[effects["site"] == site]
    said = []
    for direction in DIRECTIONS:
        part = mine[mine["direction"] == direction]
        at = zip(part["layer"], part["change"], part["control"], strict=True)
        steps = ", ".join(
            f"{change:+.2f} (control {control:+.2f}) after block {layer}" for layer, change, control in at
        )
        said.append(f"{NAMES[direction]}: change {steps}")
    words = "; ".join(said)
    return Picture(finding, words, lambda width: _draw(mine, width))


def _draw(effects: pd.DataFrame, width: int) -> Figure:
    narrow = width == NARROW
    height = HEAD + len(DIRECTIONS) * PANEL + GAP + FOOT
    figure, left = Figure(figsize=(width / 72, height / 72)), 46 if narrow else 64
    ends = effects[["change_low", "change_high", "change", "control"]].to_numpy(float)
    goals = (effects["donor"] - effects["recipient"]).to_numpy(float)
    low, high = min(ends.min(), goals.min(), 0.0), max(ends.max(), goals.max(), 0.0)
    pad = 0.08 * (high - low) or 0.1
    for number, direction in enumerate(DIRECTIONS):
        top = HEAD + number * (PANEL + GAP)
        box = (left / width, 1 - (top + PANEL) / height, (width - left - 14) / width, PANEL / height)
        axes = figure.add_axes(box)
        axes.set_ylim(low - pad, high + pad)
        _panel(axes, effects[effects["direction"] == direction], NAMES[direction], width - left - 14)
        if number == len(DIRECTIONS) - 1:
            axes.set_xlabel("block, 0 is next to the input", color=TOKENS["muted"], fontsize=11)
    return figure


def _panel(axes: Axes, effects: pd.DataFrame, name: str, wide: int) -> None:
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=TOKENS["muted"], labelsize=11, pad=6)
    axes.grid(axis="y", color=TOKENS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.axhline(0, color=TOKENS["muted"], linewidth=1.1)
    goal = float((effects["donor"] - effects["recipient"]).iloc[0])
    axes.axhline(goal, color=TOKENS["tuned"], linewidth=1.4, linestyle=(0, (5, 3)))
    layers, change = effects["layer"].to_numpy(int), effects["change"].to_numpy(float)
    axes.vlines(
        layers, effects["change_low"].to_numpy(float), effects["change_high"].to_numpy(float), TOKENS["patched"], lw=2.4
    )
    axes.plot(layers, change, "v-", color=TOKENS["patched"], markersize=7.5, markeredgewidth=0, linewidth=1.2)
    axes.plot(layers, effects["control"], "^:", color=TOKENS["control"], markersize=7, markeredgewidth=0, linewidth=1.2)
    style = {"transform": axes.transAxes, "va": "bottom", "fontsize": 11}
    axes.text(0, 1.03, name, color=TOKENS["ink"], fontweight="bold", **style)
    marks = ("\N{BLACK DOWN-POINTING TRIANGLE} patch", "\N{BLACK UP-POINTING TRIANGLE} control", "- - donor")
    for place, (mark, colour) in enumerate(zip(marks, ("patched", "control", "tuned"), strict=True)):
        axes.text(1 - (2 - place) * LEGEND / wide, 1.03, mark, color=TOKENS[colour], ha="right", **style)
