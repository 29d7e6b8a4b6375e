"""A pydantic error in words: where, what came, what was expected, what exists."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from harness.characters import one_line, shown
from harness.errors import choices

# Key of a topic -> its file and, for a list, the line of every entry; for anything else its own line.
Lines = dict[str, tuple[Path, list[int]]]


def explain(error: ValidationError, model: type[BaseModel], lines: Lines | None = None) -> str:
    """A pydantic error in one sentence per problem (at most five), with the line and the keys that exist."""
    parts = []
    for problem in error.errors()[:5]:
        place = ".".join(str(part)[:60] for part in problem["loc"]) or "the whole"
        if problem["type"] == "extra_forbidden":
            text = f"unknown key `{place}` (known here: {choices(names(_model_at(model, problem['loc'][:-1])))})"
        else:
            came = "" if problem["type"] in ("missing", "value_error") else f", came {shown(problem['input'])}"
            text = f"`{place}`: {problem['msg'].removeprefix('Value error, ')[:400]}{came}"
        parts.append(_line_of(problem["loc"], lines or {}) + text)
    more = f"; and {len(error.errors()) - 5} more" if len(error.errors()) > 5 else ""
    return one_line("; ".join(parts) + more + ".")


def _line_of(loc: tuple[int | str, ...], lines: Lines) -> str:
    file, numbers = lines.get(str(loc[0]) if loc else "", (None, []))
    entry = loc[1] if len(loc) > 1 and isinstance(loc[1], int) else 0
    return f"{file.name} line {numbers[entry]}: " if file and entry < len(numbers) else ""


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        for arg in getattr(field.annotation, "__args__", (field.annotation,)) if field else ():
            if isinstance(arg, type) and issubclass(arg, BaseModel):
                model = arg
    return model


def names(model: type[BaseModel]) -> list[str]:
    """The keys a user may write."""
    return [name for name in model.model_fields if name != "path"]
