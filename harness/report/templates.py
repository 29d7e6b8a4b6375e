"""The one way a page's template is found and filled: escaped, hidden characters shown, strict about names not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.characters import visible


def _shown(value: Any) -> Any:
    """Markup is ours; every other text is shown with its hidden characters escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def environment(*folders: Path) -> Environment:
    """Templates of these folders, then of this package, whose style every page includes."""
    return Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
