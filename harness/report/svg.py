"""A matplotlib figure -> inline SVG that takes its colours and its font from the page.

Colours are drawn as tokens and replaced by CSS variables afterwards, so one drawing serves light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; base and axes are greys. The page defines --c-NAME.
TOKENS = {
    "ink": "#101112",
    "muted": "#707172",
    "line": "#d0d1d2",
    "tint": "#f0f1f2",
    "base": "#808182",
    "noise": "#a0a1a2",
    "tuned": "#e69f00",
    "inhibited": "#009e73",
    "control": "#cc79a7",
    "patched": "#56b4e9",
    "other": "#f0e442",
}
WIDE, NARROW = 860, 350
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stance",
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


def both(name: str, draw: Callable[[int], Figure]) -> Markup:
    """Draw for a desk and for a phone; the page's CSS shows one of them."""
    with matplotlib.rc_context(_STYLE):
        drawings = [_inline(draw(width), f"{name}-{width}", css) for width, css in ((WIDE, "wide"), (NARROW, "narrow"))]
    return Markup("\n").join(drawings)


def _inline(figure: Figure, prefix: str, css: str) -> Markup:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)  # type: ignore[arg-type]
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    width, height = (round(side * 72) for side in figure.get_size_inches())
    opening = (
        f'<svg class="{css}" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" aria-hidden="true">'
    )
    body = text[text.index(">") + 1 :]
    body = body.replace("xlink:href", "href")
    body = re.sub(r'\bid="', f'id="{prefix}-', body)  # ids must be unique in the page
    body = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", body)
    body = re.sub(r"'DejaVu Sans'(, [\w\s',-]+)?", "inherit", body)
    for token, colour in TOKENS.items():
        body = re.sub(colour, "currentColor" if token == "ink" else f"var(--c-{token})", body, flags=re.IGNORECASE)
    return Markup(opening + body)
