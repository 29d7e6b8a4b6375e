"""The reference, made from the code: commands from click, keys from the pydantic models, messages from the raises.

A page asks for a part with a line of its own, `<!-- reference: NAME -->`; docs/hooks.py puts the part there when the site is
built, and tests/test_docs.py checks that there is one. Nothing here is written to disk.

    python docs/reference.py commands
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"^<!-- reference: ([a-z-]+) -->$", re.MULTILINE)
OWN = "stance-harness"
VALUE = "…"  # stands for what is filled into a message
LINK = "[{0}](experiment-files.md#{0})"

# Which page explains the errors of which modules; the first pattern that fits counts. A ProofError is always `nothing`.
FAMILIES = {
    "plugins": [
        "harness/registry.py", "harness/localize.py", "harness/cli/extending.py", "plugins/__init__.py", "plugins/*",
    ],
    "models": [
        "harness/models.py", "harness/engines/cached.py", "harness/engines/*", "harness/variants.py", "harness/sites.py",
        "harness/projections.py", "harness/contrast*", "harness/hold.py", "harness/ranges.py", "harness/interventions.py",
        "harness/neurons.py", "harness/recipe.py", "harness/lmeval/stance_vllm.py",
        "harness/memory.py",
    ],
    "topics": [
        "harness/measure.py", "harness/topics/*", "harness/lmeval/*", "harness/judges/*", "harness/mitigation.py",
        "harness/anchor.py", "harness/margin.py", "harness/experiment.py", "harness/validity/study.py",
    ],
    "runs": [
        "harness/runs.py", "harness/checksums.py", "harness/files.py", "harness/locks.py", "harness/compare.py",
        "harness/steps.py",
    ],
    "files": ["*"],
}  # fmt: skip


def commands() -> str:
    """Every command with its arguments and options."""
    from harness.cli import main

    return "\n\n".join(_command(path, command) for path, command in walk(main, "stance"))


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and everything below it, by what is typed."""
    yield path, command
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            yield from walk(below, f"{path} {name}")


def _command(path: str, command: click.Command) -> str:
    parts = [f"## {path}", _help(command.help or "")]
    context = click.Context(command, info_name=path)
    if not isinstance(command, click.Group):
        parts.append(f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```")
    rows = [_option(option, context) for option in command.params if isinstance(option, click.Option)]
    if rows:
        parts.append(_table(("option", "takes", "default", "what it does"), rows))
    return "\n\n".join(filter(None, parts))


def _help(text: str) -> str:
    """click's help as Markdown: what is marked with \\b keeps its lines."""
    blocks = inspect.cleandoc(text.partition("\f")[0]).split("\n\n")
    verbatim = [block.startswith("\b") for block in blocks]
    return "\n\n".join(
        f"```text\n{re.sub(r'^Example: +', '', block.lstrip(chr(8)).strip())}\n```" if kept else " ".join(block.split())
        for block, kept in zip(blocks, verbatim, strict=True)
    )


def _option(option: click.Option, context: click.Context) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    takes = "" if option.is_flag else _takes(option, context)
    many = " May be repeated." if option.multiple else ""
    plain = option.is_flag or option.multiple or isinstance(option.default, bool)
    known = isinstance(option.default, (str, int, float)) and not plain
    default = "**required**" if option.required else f"`{option.default}`" if known else ""
    return names, takes, default, f"{option.help or ''}{many}".strip()


def _takes(option: click.Option, context: click.Context) -> str:
    if isinstance(option.type, click.Choice):
        return " or ".join(f"`{value}`" for value in option.type.choices)
    return " or ".join(f"`{part}`" for part in option.make_metavar(context).split("|"))


def experiment_keys() -> str:
    """Every key of an experiment file without `analysis`, section by section."""
    from harness.config import Experiment

    sections = [f"## {name}\n\n{_keys(kind, links={})}" for name, kind in _shared().items()]
    return "\n\n".join([_keys(Experiment, links=_shared()), *sections])


def _shared() -> dict[str, type[BaseModel]]:
    """Sections that several files have: explained once, linked elsewhere."""
    from harness.config import LocalizeSettings, MeasureSettings
    from harness.recipe import Recipe

    return {"recipe": Recipe, "measure": MeasureSettings, "localize": LocalizeSettings}


def study_keys() -> str:
    """Every key of the studies that this package brings."""
    from harness.registry import installed

    parts = []
    for plugin in installed("analyses"):
        if plugin.package == OWN:
            settings: type[BaseModel] = plugin.load().settings
            parts += [f"## {plugin.name}", f"In the file: `analysis: {plugin.name}`.", _keys(settings, links=_shared())]
    return "\n\n".join(parts)


def mitigation_options() -> str:
    """Options of every mitigation that this package brings."""
    from harness.registry import installed

    parts = []
    for plugin in installed("mitigations"):
        if plugin.package == OWN:
            kind: type[BaseModel] = plugin.load()
            parts += [f"### {plugin.name}", _keys(kind, links={})]
    return "\n\n".join(parts)


def topic_keys() -> str:
    """Every key of a topic file, list by list."""
    from harness.topics import topic

    lists: dict[str, type[BaseModel]] = {
        "items": topic.Item, "statements": topic.Statement, "paraphrases": topic.Worded, "prompts": topic.Prompt,
        "choices": topic.Choice, "neutral_answers": topic.NeutralAnswer,
    }  # fmt: skip
    found = [row for row in _rows(topic.Topic, None, "", None) if row[0] != "`path`"]
    parts = [_table(("key", "takes", "default"), [row[:3] for row in found]), "## axes", _keys(topic.Axes, links={})]
    for name, kind in lists.items():
        parts += [f"## An entry of {name}", _keys(kind, links=None)]
    return "\n\n".join(parts)


Links = dict[str, type[BaseModel]] | None  # None: sections inside are named and not listed


def _keys(model: type[BaseModel], links: Links) -> str:
    own = model.__doc__ if model.__doc__ and model.__doc__ != BaseModel.__doc__ else ""
    rows = list(_rows(model, links, "", None))
    head = ("key", "takes", "default", "what it is") if any(row[3] for row in rows) else ("key", "takes", "default")
    table = _table(head, [row[: len(head)] for row in rows]) if rows else "No options."
    nested = [f"`{name}`: {_prose(kind.__doc__)}" for name, kind in _sections(model, links, "") if kind.__doc__]
    return "\n\n".join(filter(None, [_prose(own), table, *nested]))


def _rows(model: type[BaseModel], links: Links, prefix: str, given: BaseModel | None) -> Iterator[tuple[str, ...]]:
    """`given`: the section's values where it is left out, which may differ from those of its model."""
    for name, field in model.model_fields.items():
        default = _default(field) if given is None else _json(getattr(given, name))
        said = (default, field.description or "")
        inner = _inner(field.annotation)
        linked = next((title for title, kind in (links or {}).items() if kind is inner), None)
        if inner is None or links is None or linked is not None:
            yield f"`{prefix}{name}`", LINK.format(linked) if linked else _type(field), *said
            continue
        listed = get_origin(field.annotation) in (list, tuple)
        if field.is_required() or field.default is None:
            yield f"`{prefix}{name}`", "list of sections" if listed else "section", *said
        values = field.default if isinstance(field.default, BaseModel) else None
        yield from _rows(inner, links, f"{prefix}{name}{'[]' * listed}.", values)


def _sections(model: type[BaseModel], links: Links, prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        inner = _inner(field.annotation)
        if links is not None and inner is not None and inner not in links.values():
            yield f"{prefix}{name}", inner
            yield from _sections(inner, links, f"{prefix}{name}.")


def _inner(annotation: Any) -> type[BaseModel] | None:
    found = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
    return found[0] if found else None


def _type(field: FieldInfo) -> str:
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
    limits = [(sign, getattr(m, key, None)) for m in field.metadata for key, sign in bounds.items()]
    return ", ".join([_named(field.annotation), *(f"{sign} {limit}" for sign, limit in limits if limit is not None)])


def _named(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_named(a) for a in args if a is not type(None))
    if origin in (list, tuple):
        return f"list of {_named(args[0])}"
    if origin is dict:
        return f"mapping of {_named(args[0])} to {_named(args[1])}"
    if hasattr(annotation, "__metadata__"):
        return _named(args[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    plain = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Path: "path", Any: "anything"}
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    return _json(field.get_default(call_default_factory=True))


def _json(value: Any) -> str:
    text = json.dumps(value, default=_plain)
    return "" if text in ("null", "[]", "{}") else f"`{text}`"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else str(value)


@dataclass(frozen=True)
class Message:
    """An error as the source writes it: constant parts, and what is filled in between them."""

    module: str
    line: int
    proof: bool
    parts: tuple[str | None, ...]

    @property
    def constant(self) -> str:
        return "".join(part or "" for part in self.parts)

    @property
    def pattern(self) -> re.Pattern[str]:
        """Fits the message with anything filled in; runs of white space are one blank."""
        text = "".join(".+?" if part is None else re.escape(part) for part in self.parts)
        return re.compile(text, re.DOTALL)

    @property
    def family(self) -> str:
        """The page under docs/errors that explains it."""
        found = (name for name, patterns in FAMILIES.items() if any(fnmatch(self.module, p) for p in patterns))
        return "nothing" if self.proof else next(found)


@cache
def raised() -> tuple[Message, ...]:
    """Every InputError and ProofError that the source makes."""
    files = sorted(path for room in ("harness", "plugins") for path in (ROOT / room).rglob("*.py"))
    return tuple(message for path in files for message in _messages(path))


def _messages(path: Path) -> Iterator[Message]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        named = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if isinstance(node, ast.Call) and named in ("InputError", "ProofError") and node.args:
            parts = tuple(_parts(node.args[0]))
            yield Message(path.relative_to(ROOT).as_posix(), node.lineno, named == "ProofError", parts)


def _parts(node: ast.expr) -> Iterator[str | None]:
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from _parts(value) if isinstance(value, ast.Constant) else (None,)
    elif isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.args[0], (ast.JoinedStr, ast.Constant)):
        yield from _parts(node.args[0])
    else:
        yield None


def messages(family: str) -> Callable[[], str]:
    """The part of a page that lists every message of its family."""

    def listed() -> str:
        found = [m for m in raised() if m.family == family and len(m.constant) > 20]
        return "\n".join(f"- {_shown(m)} <small>`{m.module}`</small>" for m in found)

    return listed


def _shown(message: Message) -> str:
    text = " ".join("".join(VALUE if part is None else part for part in message.parts).split())
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts = [text.replace("`", "'")]
    prose = [re.sub(r"([\\*_\[\]#|])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    code = [f"`{part}`" for part in parts[1::2]]
    return "".join(a + b for a, b in zip_longest(prose, code, fillvalue=""))


def _prose(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table without the columns that would be empty."""
    kept = [n for n in range(len(head)) if any(row[n] for row in rows)]
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line[n] for n in kept)} |" for line in lines)


def measured(name: str) -> Callable[[], str]:
    """The table of a benchmark, as it was last written."""

    def part() -> str:
        file = Path(__file__).parent.parent / "benchmarks" / "results" / f"{name}.json"
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        shown = [tuple(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows]
        return _table(tuple(rows[0]), shown)

    return part


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "experiment-keys": experiment_keys,
    "study-keys": study_keys,
    "mitigation-options": mitigation_options,
    "topic-keys": topic_keys,
    **{f"benchmark-{name}": measured(name) for name in ("scale",)},
    **{f"messages-{name}": messages(name) for name in (*FAMILIES, "nothing")},
}


@cache
def made(name: str) -> str:
    """A part by name.

    Raises:
        KeyError: there is none of that name; PARTS lists them.
    """
    return PARTS[name]()


def filled(text: str) -> str:
    """A page with its parts put in."""
    return PLACE.sub(lambda found: made(found[1]), text)


if __name__ == "__main__":
    print(made(sys.argv[1]))
