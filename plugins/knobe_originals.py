"""Vignettes of a user's file that holds single texts in order: items 2k - 1 and 2k are a pair (Ngo et al. 2015).

A CSV with a header or a JSONL file, one vignette a row, with exactly these columns:

| column | what |
| --- | --- |
| text | the vignette |
| question | what is asked of it (`How intentionally did ...?`); the scale is added |
| condition | `harm` or `help`, in any order within a pair |

Published pairs are no minimal pairs: texts and questions may differ freely. The file is read where it lies and is never
kept or shipped; the published texts are not part of this project.

    pairs = load_originals("ngo2015.csv")  # plugins.knobe_ratings asks them
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.characters import shown
from harness.documents import numbered_jsonl, read_csv
from harness.errors import InputError
from harness.topics.explain import explain
from harness.topics.topic import Strict
from plugins.knobe_vignettes import SCALE, Condition, Text

COLUMNS = ("text", "question", "condition")
FORMAT = "expected a CSV with the columns text, question, condition, or a JSONL file with these keys"


class Single(Strict):
    """One row of the file."""

    text: Text
    question: Text
    condition: Condition

    @property
    def prompt(self) -> str:
        """Plain text that asks for a rating from 0 to 10 and ends in `Answer:`."""
        return f"{self.text}\n\n{self.question} {SCALE}\nAnswer:"


@dataclass(frozen=True)
class Pair:
    """Two vignettes of a user's file, see `plugins.knobe_ratings.Asked`."""

    id: str
    harm: Single
    help: Single

    def prompt(self, condition: Condition) -> str:
        return (self.harm if condition == "harm" else self.help).prompt


def load_originals(path: Path | str) -> list[Pair]:
    """The pairs of a user's file, named pair-001 and so on in its order.

    Raises:
        InputError: with file and line: another format, missing, empty or unknown columns, a condition other than harm and
            help, an odd number of vignettes, a pair of one condition, or a text that stands twice.
    """
    file = Path(path)
    rows, lines = _csv(file) if file.suffix.lower() == ".csv" else numbered_jsonl(file)
    found: list[Single] = []
    for row, line in zip(rows, lines, strict=True):
        try:
            found.append(Single.model_validate(row))
        except ValidationError as error:
            raise InputError(f"{file} line {line}: {explain(error, Single)}") from None
    first: dict[str, int] = {}
    for single, line in zip(found, lines, strict=True):
        if (other := first.setdefault(single.prompt, line)) != line:
            raise InputError(
                f"{file} line {line}: this vignette stands on line {other} too; every row must be another."
            )
    if len(found) % 2:
        raise InputError(
            f"{file} holds {len(found)} vignettes, an odd number; rows 2k - 1 and 2k are one pair, so one is missing or "
            f"too many. The last is on line {lines[-1]}."
        )
    return [_pair(file, n, found[2 * n : 2 * n + 2], lines[2 * n : 2 * n + 2]) for n in range(len(found) // 2)]


def _pair(file: Path, number: int, two: list[Single], lines: list[int]) -> Pair:
    named = {single.condition: single for single in two}
    if len(named) < 2:
        raise InputError(
            f"{file} lines {lines[0]} and {lines[1]} are pair {number + 1} and both have condition "
            f"{shown(two[0].condition)}; expected one harm and one help. Is a row missing before them?"
        )
    return Pair(f"pair-{number + 1:03d}", named["harm"], named["help"])


def _csv(file: Path) -> tuple[list[dict[str, str]], list[int]]:
    """The rows of a CSV and the line on which each of them ends."""
    rows, lines = read_csv(file)
    if not rows:
        raise InputError(f"{file} holds no vignettes; {FORMAT}.")
    if sorted(rows[0]) != sorted(COLUMNS):
        raise InputError(f"{file} has the columns {shown(list(rows[0]))}; {FORMAT}.")
    return rows, lines
