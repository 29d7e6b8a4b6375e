"""The documentation is true to the code: links, commands, targets, paths, messages and keys that it names exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
import yaml

from harness.cli import main
from harness.compare import Comparison
from harness.judges.settings import PREFIX, EndpointSettings
from harness.measure import COLUMNS
from harness.neurons import Neurons
from harness.runs import open_run

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PROJECT = [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")]
TEXTS = [*PAGES, *PROJECT]
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
SHELL = ("", "console", "sh", "bash")


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference", DOCS / "reference.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "PARTS"):
        spec.loader.exec_module(module)
    return module


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A page as the site has it, without its fenced blocks."""
    return FENCE.sub("", reference().filled(read(path)))


def anchors(path: Path) -> set[str]:
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", prose(path), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip()))
    return found


def page(name: str) -> str:
    return read(DOCS / name)


# Links


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_and_anchors_resolve(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading; there are {sorted(anchors(target))}"


def test_the_nav_lists_every_page_once() -> None:
    def leaves(node: Any) -> Iterator[str]:
        for entry in node.values() if isinstance(node, dict) else node:
            yield from [entry] if isinstance(entry, str) else leaves(entry)

    listed = Counter(leaves(yaml.safe_load(read(ROOT / "mkdocs.yml"))["nav"]))
    pages = [path.relative_to(DOCS).as_posix() for path in PAGES] + [f"project/{path.name}" for path in PROJECT]
    assert sorted(listed) == sorted(pages)
    assert set(listed.values()) == {1}


# Commands, targets, paths


def fenced_commands(path: Path) -> Iterator[str]:
    """Shell commands of the fenced blocks, one each: prompts, comments and assignments taken off."""
    for language, block in FENCE.findall(read(path)):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        if language not in SHELL:
            continue
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in prompted or lines:
            code = line.split(" #")[0].strip()
            yield from re.findall(r"\$\(([^)]+)\)", code)
            yield from (re.sub(r"^(\w+=\S* )+", "", part.strip()) for part in re.split(r"&&|;|\|", code))


def reached(words: list[str]) -> tuple[click.Command, list[str], bool]:
    """The command that the words begin with, the words left, and whether a placeholder stands for a command."""
    command: click.Command = main
    while isinstance(command, click.Group) and words:
        if not re.fullmatch(r"[a-z][a-z-]*", words[0]):
            return command, words, True
        assert words[0] in command.commands, f"no command {words[0]!r}; there are {sorted(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words, False


def check_command(text: str) -> None:
    words = [word for word in shlex.split(text)[1:] if word not in ("...", "…", "-q", "--quiet")]
    command, rest, _ = reached(words)
    context = click.Context(command, info_name=text)
    given, left, _ = command.make_parser(context).parse_args(rest)
    assert not left, f"{text}: nothing takes {left}"
    for parameter in command.params:
        value = given.get(parameter.name or "")
        complete = "..." not in text and not {"help", "schema"} & set(given)
        empty = value is None or value == [] or value == () or "UNSET" in repr(value)
        assert not (complete and parameter.required and empty), f"{text}: {parameter.name} is missing"
        if isinstance(parameter.type, click.Choice) and isinstance(value, str):
            assert value in parameter.type.choices, f"{text}: {value}"


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_commands_in_code_blocks_parse(path: Path) -> None:
    for text in fenced_commands(path):
        if text.split(" ")[0] == "stance":
            try:
                check_command(text)
            except click.UsageError as error:
                pytest.fail(f"{text}: {error.format_message()}")


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_commands_and_options_in_sentences_exist(path: Path) -> None:
    for text in INLINE.findall(prose(path)):
        if text.startswith("stance ") and not re.search(r"[<>|]", text):
            command, rest, open_ended = reached(text.split()[1:])
            known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
            named = {word.split("=")[0] for word in rest if word.startswith("--")}
            assert open_ended or not named - known - {"--help"}, text


def test_a_wrong_command_would_be_found() -> None:
    for text in ("stance evaluate --model M", "stance eval --model M", "stance cache info --out x"):
        with pytest.raises((AssertionError, click.UsageError)):
            check_command(text)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", read(ROOT / "Makefile"), re.MULTILINE))
    spoken = [text for text in [*INLINE.findall(prose(path)), *fenced_commands(path)] if text.startswith("make ")]
    asked = {word for text in spoken for word in text.split("#")[0].split()[1:] if re.fullmatch("[a-z]+", word)}
    assert asked <= targets, f"make has no {sorted(asked - targets)}"


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_paths_in_the_checkout_exist(path: Path) -> None:
    rooms = "harness|plugins|experiments|tasks|tests|benchmarks|requirements|docs|reports/examples"
    for found in set(re.findall(rf"(?<![\w/.-])(?:{rooms})/[\w./*-]*[\w*]", read(path))):
        assert list(ROOT.glob(found)), f"{found} is not there"


# Errors


def quoted_messages() -> list[tuple[str, str]]:
    blocks = [(name_of(path), block) for path in DOCS.glob("errors/*.md") for _, block in FENCE.findall(read(path))]
    return [(name, " ".join(block.split())) for name, block in blocks if block.startswith(("Error: ", "Refused: "))]


def test_quoted_messages_are_the_sources() -> None:
    """Constant parts stand in the source in that order. Where pydantic's words make up the message, it is asked."""
    from harness.topics import explain

    own = [m for m in reference().raised() if len(m.constant) > 20]
    explained = re.compile(r".+: (.+ line \d+: )?(unknown key `.+` \(known here: .+\)|`.+`: .+)\.")
    assert explain.__module__ and len(quoted_messages()) > 40
    for name, quoted in quoted_messages():
        kind, _, text = quoted.partition(": ")
        fitting = [m for m in own if m.proof == (kind == "Refused") and m.pattern.fullmatch(text)]
        assert fitting or (kind == "Error" and explained.fullmatch(text)), f"{name}: no source says {quoted}"


def test_an_invented_message_would_be_found() -> None:
    invented = "There is no model 'x': it is no folder here, and that is that."
    assert not [m for m in reference().raised() if len(m.constant) > 20 and m.pattern.fullmatch(invented)]


def test_unknown_keys_are_named_as_quoted() -> None:
    from pydantic import ValidationError

    from harness.config import Experiment
    from harness.topics import explain

    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate({"name": "x", "train": {"topics": ["a"], "epoch": 1}})
    assert f"mine.yaml: {explain(caught.value, Experiment)}" in page("errors/files.md")
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate({"name": "x", "train": {"topics": ["a"], "side": "centre"}})
    assert f"mine.yaml: {explain(caught.value, Experiment)}" in page("errors/files.md")


def test_every_family_has_a_page_with_all_its_messages() -> None:
    part = reference().made
    for name in (*reference().FAMILIES, "nothing"):
        assert f"<!-- reference: messages-{name} -->" in page(f"errors/{name}.md")
        assert part(f"messages-{name}").count("\n- ") > 5
    assert "Nothing is overwritten: give another --out" in part("messages-runs")


# The reference


def test_every_part_is_asked_for_once() -> None:
    asked = Counter(found for path in PAGES for found in reference().PLACE.findall(read(path)))
    assert asked == Counter(dict.fromkeys(reference().PARTS, 1))


def test_the_reference_names_every_command_and_option() -> None:
    made = reference().made("commands")
    for path, command in reference().walk(main, "stance"):
        assert f"## {path}\n" in made
        for option in (p for p in command.params if isinstance(p, click.Option)):
            assert f"`{option.opts[-1]}`" in made


def test_the_reference_names_keys_with_their_bounds_and_defaults() -> None:
    keys, studies = reference().made("experiment-keys"), reference().made("study-keys")
    assert '| `train.side` | `left` or `right` | `"right"` |' in keys
    assert "| `top` | number, > 0, ≤ 100 | `30.0` |" in keys
    assert '`train.recipe` | [recipe](experiment-files.md#recipe) | `{"mode": "full"' in studies
    assert all(f"## {name}\n" in studies for name in ("culnig", "knobe", "localizers", "mitigations", "neuronlens"))
    assert "| `agree` | `left` or `right` | **required** |" in reference().made("topic-keys")
    assert "### inhibitft\n" in reference().made("mitigation-options")


def test_run_folders_are_described_whole(tmp_path: Path) -> None:
    text = page("reference/run-folders.md")
    run = open_run(tmp_path / "run", "measure", {})
    run.finish()
    assert not [key for key in run.manifest if f"`{key}`" not in text]
    assert not [column for column in COLUMNS if f"| `{column}` |" not in text]


def test_neuron_files_are_described_whole(tmp_path: Path) -> None:
    from safetensors import safe_open

    from plugins.pnlac import Localization
    from plugins.pnlac_report import describe

    text = page("reference/neuron-sets.md")
    scores = {"a": torch.rand(2, 8), "b": torch.rand(2, 8)}
    Neurons(torch.ones(2, 8, dtype=torch.bool), "mlp_act", "hash", scores["a"]).save(tmp_path / "n.safetensors")
    with safe_open(tmp_path / "n.safetensors", framework="pt") as file:
        assert not [name for name in [*file.metadata(), *file.keys()] if f"`{name}`" not in text]
        assert f"`{file.metadata()['format']}`" in text
    found = describe(Localization("mlp_act", "hash", 30.0, scores, torch.rand(2, 8), {"a": 1, "b": 1}))
    assert not [key for key in found if f"`{key}`" not in text]


def test_comparisons_are_described_whole() -> None:
    text = page("reference/comparisons.md")
    missing = [f.name for f in dataclasses.fields(Comparison) if f"`{f.name}`" not in text and f.name != "samples"]
    assert not missing


def test_environment_variables_are_the_codes() -> None:
    code = "".join(read(path) for path in (ROOT / "harness").rglob("*.py"))
    told = "".join(map(read, PAGES))
    read_here = set(re.findall(r"environ(?:\.get\(|\[)[\"'](STANCE_[A-Z_]+)[\"']", code))
    read_here |= {f"{PREFIX}{field.name.upper()}" for field in dataclasses.fields(EndpointSettings)}
    assert {"STANCE_CACHE", "STANCE_TOPICS", "STANCE_VERBOSE"} <= read_here
    assert not [name for name in read_here if name not in told]
    named = set(re.findall(r"\bSTANCE_[A-Z_]+[A-Z]\b", told)) - {"STANCE_JUDGE_KEY"}
    assert named <= read_here


# The site


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands = read(tmp_path / "site" / "reference" / "commands.html")
    assert "stance-eval" in commands and "--order-seed" in commands
    pages = [read(path) for path in (tmp_path / "site").rglob("*.html")]
    assert not [found for text in pages for found in re.findall(r'<(?:script|link|img)[^>]+="https?://[^"]*"', text)]
