"""One Comparison -> a before/after report: one self-contained HTML page, Markdown, CSV and JSON.

Every number a reader sees, in the page, in Markdown and in the terminal, is written by `tables.number`; the CSV and
JSON files hold the same numbers in full precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import InputError
from harness.report import content, tables

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from harness.compare import Comparison

__all__ = ["rich_table", "summary_table", "write_report"]


def write_report(comparison: Comparison, out: Path) -> Path:
    """Write index.html, report.md, summary.csv, shifts.csv, stance.csv, samples.csv and comparison.json.

    Returns:
        The path of index.html, which is written last.

    Raises:
        InputError: the folder cannot be written.
    """
    from harness.report import export, page

    out = Path(out)
    html = page.render(comparison)
    try:
        out.mkdir(parents=True, exist_ok=True)
        export.write_csv(comparison, out)
        export.write_comparison(comparison, out / "comparison.json")
        export.write_text(out / "report.md", export.markdown(comparison))
        export.write_text(out / "index.html", html)
    except OSError as error:
        raise InputError(f"Cannot write the report to {out} ({error.strerror}); give another --out.") from None
    return out / "index.html"


def summary_table(comparison: Comparison) -> str:
    """The headline measure as a Markdown table that also reads well as plain text."""
    return tables.markdown(content.summary(comparison, comparison.headline))


def rich_table(comparison: Comparison, width: int = 200) -> RichTable:
    """The same table for a terminal of so many characters."""
    return tables.rich(content.summary(comparison, comparison.headline), width)
