"""Where the commands print: standard output, with nothing in it that commands the terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from harness.characters import visible

# Where nobody's window sets a width (a pipe, a log), tables are drawn whole.
console = Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False, highlight=False)


class _Visible(RenderHook):
    """What a model or a stranger wrote is printed with its control characters escaped."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [Drawn(renderable) for renderable in renderables]


@dataclass(frozen=True)
class Drawn:
    """What is printed, its hidden characters escaped; the styles and the frame are rich's own."""

    inner: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


console.push_render_hook(_Visible())
