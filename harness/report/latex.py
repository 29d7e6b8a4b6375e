"""A Table as LaTeX: booktabs, intervals under their values, every label escaped.

Labels and topics are not ours. What they hold becomes text: no command, no new cell, no line break, no ligature.
"""

from __future__ import annotations

import re
import unicodedata

from harness.report.tables import MINUS, NONE, Row, Table

PREAMBLE = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}; \\input this file where the table shall stand.\n"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",  # a shorthand of babel's in several languages
    "[": "{[}",  # after a line's end a bracket or a star would be read as its argument
    "]": "{]}",
    "*": "{*}",
    MINUS: "$-$",
    NONE: r"\textendash{}",
    "\N{EM DASH}": r"\textemdash{}",
    "\N{INFINITY}": r"$\infty$",
    "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
}
# Fits the table to the line where it is wider.
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def escape(text: object) -> str:
    """One line that LaTeX prints as it stands; control characters become question marks."""
    line = "".join(_character(character) for character in " ".join(str(text).split()))
    return re.sub("-(?=-)", "-{}", line)  # two in a row would be one dash


def _character(character: str) -> str:
    unknown = unicodedata.category(character).startswith("C")
    return "?" if unknown else SPECIAL.get(character, character)


def latex(table: Table, name: str, note: str = "") -> str:
    """A `table` environment with the label `tab:NAME` and a caption, which ends in the note if there is one."""
    caption = ". ".join(escape(text) for text in (table.caption, note) if text)
    head = " & ".join(escape(text) for text in (table.corner, *table.columns))
    lines = [
        r"\begin{table}[tbp]",
        r"\centering",
        rf"\caption{{{caption}.}}",
        rf"\label{{tab:{name}}}",
        FIT,
        rf"\begin{{tabular}}{{@{{}}l{'r' * len(table.columns)}@{{}}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *(line for row in table.rows for line in _lines(row)),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return PREAMBLE + "\n".join(lines) + "\n"


def _lines(row: Row) -> list[str]:
    """Label and values; under them, small, the note and the intervals, where there are any."""
    values = [_bold(cell.text, row.strong or cell.strong) for cell in row.cells]
    small = [_small(row.note), *(_small(cell.interval) for cell in row.cells)]
    lines = [" & ".join([_bold(row.label, row.strong), *values])]
    lines += [" & ".join(small)] if any(small) else []
    return [*(rf"{line} \\" for line in lines), *([r"\addlinespace"] if any(small) else [])]


def _bold(text: str, strong: bool) -> str:
    return rf"\textbf{{{escape(text)}}}" if strong else escape(text)


def _small(text: str) -> str:
    return rf"{{\scriptsize {escape(text)}}}" if text else ""
