"""One Comparison -> a before/after report: one self-contained HTML page, and the same as files (docs/exports.md).

Every number a reader sees, in the page, in Markdown, in LaTeX and in the terminal, is written by `tables.number`; the
CSV, Parquet and JSON files hold the same numbers in full precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import sweep, writable
from harness.locks import locked
from harness.report import content, tables

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from harness.compare import Comparison

__all__ = ["rich_table", "summary_table", "write_report"]
_TABLES = ("summary", "stance", "shift", "tradeoff", "dose", "matrix-*", "neurons-*", "quality-*", "rates-*")
_FIGURES = ("stance", "shift", "tradeoff", "dose", "layers")
EARLIER = (
    *(f"tables/{name}.tex" for name in _TABLES),
    *(f"figures/{name}.{kind}" for name in _FIGURES for kind in ("svg", "png")),
    "model-card*.md",
)


def write_report(comparison: Comparison, out: Path) -> Path:
    """Write the page, report.md, CSV, samples.parquet, comparison.json, tables, figures and model cards.

    Tables, figures and cards of an earlier report in the same folder are removed where this one has none.

    Returns:
        The path of index.html, which is written last.

    Raises:
        InputError: the folder cannot be written, or another process writes there.
    """
    from harness.report import export, figure_files, model_card, page
    from harness.report.text_files import write_text

    out = Path(out)
    html = page.render(comparison)
    with locked(out), writable(out):
        sweep(out)
        for folder in (out / "tables", out / "figures"):
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
        for pattern in EARLIER:
            for path in out.glob(pattern):
                path.unlink()
        export.write_csv(comparison, out)
        export.write_parquet(comparison, out / "samples.parquet")
        export.write_comparison(comparison, out / "comparison.json")
        write_text(out / "report.md", export.markdown(comparison))
        export.write_tables(comparison, out / "tables")
        figure_files.write_figures(comparison, out / "figures")
        model_card.write_cards(comparison, out)
        write_text(out / "index.html", html)
    return out / "index.html"


def summary_table(comparison: Comparison) -> str:
    """The headline measure as a Markdown table that also reads well as plain text."""
    return tables.markdown(content.summary(comparison, comparison.headline))


def rich_table(comparison: Comparison, width: int = 200) -> RichTable:
    """The same table for a terminal of so many characters."""
    return tables.rich(content.summary(comparison, comparison.headline), width)
