"""A pydantic error in words: where, what came, what was expected, what exists."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from harness.errors import choices

# List of a topic -> its file and the line of every entry.
Lines = dict[str, tuple[Path, list[int]]]


def explain(error: ValidationError, model: type[BaseModel], lines: Lines | None = None) -> str:
    """A pydantic error in one sentence per problem (at most five), with the line and the keys that exist."""
    parts = []
    for problem in error.errors()[:5]:
        place = ".".join(str(part) for part in problem["loc"]) or "the whole"
        if problem["type"] == "extra_forbidden":
            text = f"unknown key `{place}` (known here: {choices(names(_model_at(model, problem['loc'][:-1])))})"
        else:
            came = "" if problem["type"] in ("missing", "value_error") else f", came {str(problem['input'])[:60]!r}"
            text = f"`{place}`: {problem['msg'].removeprefix('Value error, ')}{came}"
        parts.append(_line_of(problem["loc"], lines or {}) + text)
    more = f"; and {len(error.errors()) - 5} more" if len(error.errors()) > 5 else ""
    return "; ".join(parts) + more + "."


def _line_of(loc: tuple[int | str, ...], lines: Lines) -> str:
    if len(loc) < 2 or not isinstance(loc[1], int) or loc[0] not in lines:
        return ""
    file, numbers = lines[str(loc[0])]
    return f"{file.name} line {numbers[loc[1]]}: " if loc[1] < len(numbers) else ""


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
