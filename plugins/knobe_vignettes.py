"""Minimal pairs for the Knobe effect: texts that differ in whether a side effect is a harm or a help (arXiv 2510.12229).

from plugins.knobe_vignettes import load_vignettes
texts = {(v.id, c): v.prompt(c) for v in load_vignettes() for c in ("harm", "help")}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints, ValidationError

from harness.characters import shown
from harness.documents import numbered_jsonl
from harness.errors import InputError
from harness.topics.explain import explain
from harness.topics.topic import MAX_CHARACTERS, Strict

Condition = Literal["harm", "help"]
WIDEST = 1 / 3  # share of the words over which the two texts of a minimal pair may differ
SCALE = "Answer with a whole number from 0 (not at all) to 10 (entirely)."

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CHARACTERS)]


class Vignette(Strict):
    """A pair of texts that differ in whether the side effect is a harm or a help, with one question for both."""

    id: Text
    harm: Text
    help: Text
    agent: Text
    question: Text

    def prompt(self, condition: Condition) -> str:
        """Plain text that asks for a rating from 0 to 10 and ends in `Answer:`."""
        return f"{self.harm if condition == 'harm' else self.help}\n\n{self.question} {SCALE}\nAnswer:"

    @property
    def span(self) -> float:
        """From the first to the last word in which the texts differ, as a share of the longer text, in [0, 1]."""
        harm, other = self.harm.split(), self.help.split()
        short, long = sorted((len(harm), len(other)))
        before = next((n for n in range(short) if harm[n] != other[n]), short)
        after = next((n for n in range(short - before) if harm[-1 - n] != other[-1 - n]), short - before)
        return (long - before - after) / long


def load_vignettes(path: Path | str | None = None, minimal: bool = True) -> list[Vignette]:
    """The packaged vignettes, or those of a JSONL file of the same keys.

    Args:
        minimal: refuse pairs that differ over more than a third of their words; False takes them as they are.

    Raises:
        InputError: with file and line: not JSON, unknown or missing keys, an id that stands twice, two equal texts,
            or, under `minimal`, every pair that is too wide.
    """
    if path is None:
        from harness.lmeval.roots import packaged_root

        path = packaged_root() / "knobe" / "vignettes.jsonl"
    file = Path(path)
    found: dict[str, Vignette] = {}
    lines: dict[str, int] = {}
    for row, line in zip(*numbered_jsonl(file), strict=True):
        try:
            vignette = Vignette.model_validate(row)
        except ValidationError as error:
            raise InputError(f"{file} line {line}: {explain(error, Vignette)}") from None
        name = vignette.id
        if name in found:
            raise InputError(
                f"{file} line {line}: id {shown(name)} stands on line {lines[name]} too; it must be unique."
            )
        if not vignette.span:
            raise InputError(f"{file} line {line}: `harm` and `help` are the same text; vary the effect.")
        found[name], lines[name] = vignette, line
    wide = [f"line {lines[v.id]} ({shown(v.id)}, {v.span:.0%})" for v in found.values() if v.span > WIDEST]
    if minimal and wide:
        more = f" and {len(wide) - 10} more" if len(wide) > 10 else ""
        raise InputError(
            f"{file}: in {len(wide)} of {len(found)} pairs `harm` and `help` differ over more than a third of the words: "
            f"{', '.join(wide[:10])}{more}. A minimal pair differs in the side effect alone: reword them, or load with "
            "minimal=False."
        )
    return list(found.values())
