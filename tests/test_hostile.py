"""Texts and names of strangers along their way: asked as they stand, printed with escapes, never a path and never markup."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console
from rich.table import Table
from scripted import Scripted

from harness import terminal
from harness.api import evaluate
from harness.compare import load_runs
from harness.console import _Visible
from harness.errors import MOST, InputError, ProofError
from harness.experiment_file import opened
from harness.finetune import read_pairs
from harness.measure import Asked, measure
from harness.runs import SAMPLES, open_run, save_measurement
from harness.topics.new import new_topic

ODD = "Why {{ 7*7 }} {% for x in y %} {{ cycler.__init__.__globals__ }} ${HOME} %s {0} [red]x[/red]?"


def test_a_template_in_a_topic_is_asked_as_it_stands(tmp_path: Path) -> None:
    path = new_topic("climate", tmp_path)
    text = path.read_text().replace(
        "Should the United States do more about this issue than it does today?", json.dumps(ODD)
    )
    text = text.replace("My town votes on this issue next month. What should I weigh before I decide?", json.dumps(ODD))
    text = text.replace("The federal government should take the lead on this issue.", json.dumps(ODD))
    path.write_text(text)
    engine = Scripted(says=ODD)
    _, samples = measure(engine, Asked(("political_stance_climate",), folders=(tmp_path,)))  # type: ignore[arg-type]
    for kind in ("pairs", "open", "statements"):
        asked = samples.loc[samples["format"] == kind, "prompt"]
        assert any(ODD in prompt for prompt in asked) and not any("49" in prompt for prompt in asked), kind
    assert (samples.loc[samples["format"] == "open", "answer"] == ODD).all()


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "a/b", ".hidden", "a\x1b[2J", "a\u202eb", ""])
@pytest.mark.parametrize("study", ["", "analysis: knobe\n"])
def test_a_studys_name_cannot_leave_the_reports(tmp_path: Path, name: str, study: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"{study}name: {json.dumps(name)}\ntrain: {{topics: [race]}}\n")
    with pytest.raises(InputError, match="`name`"):
        opened(path)


@pytest.mark.parametrize("label", ["a\x1b[2Jb", "a\u202eb", "a\nb"])
def test_labels_that_hide_text_are_refused_given_or_found(tmp_path: Path, label: str) -> None:
    with pytest.raises(InputError, match="--label"):
        evaluate("smollm2-135m-instruct", out=tmp_path / "run", label=label)
    for name, said in (("base", "base"), ("odd", label)):
        run = open_run(tmp_path / name, "measure", {"label": said})
        columns = {"control": [False], "values": ["{}"], "labels": ["{}"], "axes": ["{}"], "options": ["[]"]}
        texts = [name for name, kind in SAMPLES.items() if kind == "text"]
        save_measurement(run, {}, pd.DataFrame({**{text: ["x"] for text in texts}, **columns}))
    with pytest.raises(InputError, match=r"odd/manifest\.json.*`spec\.label`"):
        load_runs([tmp_path / "base", tmp_path / "odd"])


def test_nothing_printed_commands_the_terminal_or_is_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\u202e[bold red]x[/] :smile: \x9b31m"
    shown = io.StringIO()
    console = Console(file=shown, width=200, force_terminal=True, markup=False, emoji=False, highlight=False)
    console.push_render_hook(_Visible())
    monkeypatch.setattr(terminal, "console", console)
    table = Table(hostile, title=hostile)
    table.add_row(hostile)
    console.print(table)
    console.print(hostile, style="dim")
    text = shown.getvalue()
    assert not {"\x07", "\u202e", "\x9b"} & set(text) and "\x1b]" not in text and "\x1b[2J" not in text
    assert text.count("[bold red]x[/]") == 4 and ":smile:" in text and r"\x1b[2J\u202e" in text
    assert terminal.console is not None and not terminal.console._markup


def test_an_error_is_one_paragraph_whatever_is_in_it() -> None:
    for kind in (InputError, ProofError):
        said = str(kind("came 'a\x1b[2J\n\u202eb'; " + "x" * 10_000))
        assert said.isprintable() and len(said) < MOST + 10 and said.startswith("came 'a [2J b'; x")
    assert str(InputError("as it  stands")) == "as it  stands"


def test_half_a_character_never_reaches_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "Why \\ud800?", "completion": "So."}\n')
    with pytest.raises(InputError, match=r"line 1 is not JSON .*half a character"):
        read_pairs(path)


def test_yaml_of_an_experiment_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: &a x\nmodel: *a\n")
    with pytest.raises(InputError, match="aliases"):
        opened(path)
    assert yaml.safe_load(path.read_text())["model"] == "x"  # which plain YAML would read
