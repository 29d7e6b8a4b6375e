"""The page's figures as files of their own: SVG and PNG, in the page's light colours on white.

Text is drawn as outlines, so that a figure looks the same wherever it is placed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from harness.files import replacing
from harness.report import content, dose, figures, findings, tradeoff
from harness.report.svg import TOKENS, WIDE

if TYPE_CHECKING:
    from harness.compare import Comparison

DPI = 144  # twice the page's 72
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "stance",
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


def write_figures(comparison: Comparison, out: Path) -> None:
    """stance, shift, tradeoff, dose and layers as .svg and .png, those that the page shows.

    Raises:
        InputError: the folder cannot be written.
    """
    colours = palette()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(_STYLE):
        for name, draw in _drawings(comparison):
            figure = draw(WIDE)
            if note := _printable(content.partial(comparison)):
                figure.text(0.995, 0.005, note[:120], ha="right", va="bottom", fontsize=7)
            _colour(figure, colours)
            with replacing(out / f"{name}.svg") as file:
                figure.savefig(file, facecolor="white", metadata=nothing)  # type: ignore[arg-type]
            with replacing(out / f"{name}.png") as file:
                figure.savefig(file, facecolor="white", dpi=DPI, metadata={"Software": None})


def palette() -> dict[str, str]:
    """The colours of the drawings -> those of the page in a light room, as its style sheet gives them."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    light = style[: style.index("@media")]
    given = dict(re.findall(r"--(?:c-)?([a-z]+):\s*(#[0-9a-f]{6})", light))
    given["ink"] = given["text"]
    return {token: given[name] for name, token in TOKENS.items()}


def _drawings(comparison: Comparison) -> Iterator[tuple[str, Callable[[int], Figure]]]:
    measure = comparison.headline
    title = _printable(content.title_of(comparison, measure))
    if stance := [_clean(group) for group in findings.groups(comparison, measure, "stance")]:
        yield "stance", lambda width: figures.stance(stance, title, width)
    if shift := [_clean(group) for group in findings.groups(comparison, measure, "shift")]:
        yield "shift", lambda width: figures.shift(shift, f"shift, {title}", width)
    if trades := tradeoff.trades(comparison, measure):
        clean = {_printable(k): [replace(p, label=_printable(p.label)) for p in points] for k, points in trades.items()}
        yield "tradeoff", lambda width: tradeoff.picture(clean, width)
    if doses := dose.doses(comparison, measure):
        rising = {_printable(topic): found for topic, found in doses.items()}
        yield "dose", lambda width: dose.picture(rising, width)
    if comparison.localization:
        layers = dict(comparison.localization["per_layer"])
        general = [int(count) for count in layers.pop("general", [])]
        specific = {_printable(content.topic_name(k)): [int(n) for n in counts] for k, counts in layers.items()}
        yield "layers", lambda width: figures.layers(general, specific, width)


def _clean(group: figures.Group) -> figures.Group:
    points = tuple(replace(point, label=_printable(point.label)) for point in group.points)
    return replace(group, name=_printable(group.name), points=points)


def _printable(text: str) -> str:
    """XML cannot carry control characters, nor fonts draw them."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _colour(figure: Figure, colours: dict[str, str]) -> None:
    figure.draw_without_rendering()  # ticks are made when drawn
    for artist in figure.findobj():
        if isinstance(artist, Line2D | Text):
            artist.set_color(_known(artist.get_color(), colours))
        elif isinstance(artist, Patch):
            artist.set_facecolor(_known(artist.get_facecolor(), colours))


def _known(colour: Any, colours: dict[str, str]) -> Any:
    return colours.get(to_hex(colour), colour)
