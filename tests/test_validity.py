"""Known models in, known verdicts out; then the whole study on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scripted
import tiny
from click.testing import CliRunner
from scripted import Scripted

from harness.cli import main
from harness.lmeval.roots import packaged_root
from harness.measure import Asked, measure
from harness.topics import Topic, load_topic
from harness.validity.page import sentences, tables, write_page
from harness.validity.reading import DOSES, Validity, read

TOPIC = "race"
ASKED = Asked((f"political_stance_{TOPIC}",), limit={"pairs": 12, "statements": 4, "open": 6})
LEANS = dict(zip(DOSES, (-1.0, -0.5, 0.0, 0.5, 1.0), strict=True))


@pytest.fixture(scope="module")
def race() -> Topic:
    return load_topic(packaged_root() / "political_stance" / f"{TOPIC}.yaml")


def samples(race: Topic, lean: float) -> pd.DataFrame:
    """A model that likes right answers by `lean` times a factor of each item, and always answers A."""
    sides = {getattr(i, side): sign for i in race.items for side, sign in (("left", -1), ("right", 1))}
    factor = {i.left: 1 + n % 3 for n, i in enumerate(race.items)} | {
        i.right: 1 + n % 3 for n, i in enumerate(race.items)
    }

    def likes(text: str) -> float:
        return 20 * lean * sides[text.strip()] * factor[text.strip()]

    refusing = "I cannot provide an opinion on that."
    says = (
        (lambda prompt: refusing if "y" in prompt[-80:] else "People differ on it.") if lean > 0 else "People differ."
    )
    return measure(Scripted(scripted.always("A"), says, likes), ASKED)[1]


@pytest.fixture(scope="module")
def validity(race: Topic) -> Validity:
    found = {dose: samples(race, lean) for dose, lean in LEANS.items()}
    found |= {"base-again": found["base"], "sampled-1": found["base"], "sampled-2": found["base"]}
    return read("m", TOPIC, found, ["statements: always A."], [], {"pairs": 12})


def test_a_format_that_follows_the_groups_passes_and_one_that_does_not_is_named(validity: Validity) -> None:
    groups = validity.known_groups.set_index("measure")
    assert groups.loc["pairs.nats", "passes"] and groups.loc["pairs.nats", "low"] > 0
    assert groups.loc["pairs.nats", "p"] < 0.01
    assert not groups.loc["statements.stance", "passes"] and groups.loc["statements.stance", "apart"] == pytest.approx(
        0
    )
    assert "statements.stance" in validity.failing() and "pairs.nats" not in validity.failing()
    said = sentences(validity)
    assert any(s.startswith("Paired preference: left-tuned, base and right-tuned are ordered rightly") for s in said)
    assert any(s.startswith("Statements: NOT valid on this model") for s in said)


def test_reliability_is_high_where_items_move_together_and_missing_where_nothing_moves(validity: Validity) -> None:
    found = validity.reliability.set_index("measure")["split_half"]
    assert found["pairs.nats"] > 0.95
    assert pd.isna(found["statements.stance"])


def test_identical_samplings_agree_and_the_noise_floor_is_zero(validity: Validity) -> None:
    assert set(validity.noise.values()) == {0.0}
    assert validity.retest["shift"].abs().max() == pytest.approx(0)


def test_refusals_are_compared_within_the_prompt(validity: Validity) -> None:
    rows = validity.refusals.set_index("model")
    assert rows.loc["base", "left"] == rows.loc["base", "right"] == 0
    assert rows.loc["right", "difference"] == pytest.approx(rows.loc["right", "right"] - rows.loc["right", "left"])


def test_the_page_holds_the_tables_escapes_and_says_what_fails(validity: Validity, tmp_path: Path) -> None:
    hostile = Validity(**{**vars(validity), "model": "<script>alert(1)</script>"})
    page = write_page(hostile, tmp_path).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "NOT valid on this model" in page and "http" not in page.split("<body>")[1]
    assert all(heading in page for heading, _, _ in tables(validity))
    stored = json.loads((tmp_path / "validity.json").read_text())
    assert stored["failing"] == validity.failing() and len(stored["known_groups"]) == len(validity.known_groups)


def test_the_whole_study_runs_and_is_kept(tmp_path: Path) -> None:
    made = tiny.build("llama", max_position_embeddings=1024, num_hidden_layers=2)
    model = tiny.save(made, tmp_path / "base", chat=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mode: full\nepochs: 0.2\nlearning_rate: 1.0e-2\nbatch_size: 16\ncheckpoints: false\n")
    out = tmp_path / "out"
    command: list[Any] = [
        *("validate", "--model", model, "--topic", TOPIC, "--recipe", str(recipe), "--engine", "torch"),
        *("--tasks", f"political_stance_{TOPIC}", "--limit", "pairs=4,statements=2,open=3", "--dtype", "float32"),
        *("--axes", "wording=original,forcing=soft", "--out", str(out)),
    ]
    first = CliRunner().invoke(main, command, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    folders = {p.name[3:] for p in out.iterdir() if p.is_dir()}
    assert folders == {
        *("measure-base", "measure-base-again", "measure-sampled-1", "measure-sampled-2"),
        *(f"{step}-{name}" for step in ("tune", "measure") for name in DOSES if name != "base"),
    }
    stored = json.loads((out / "validity.json").read_text())
    assert stored["topic"] == TOPIC and {row["measure"] for row in stored["known_groups"]} >= {"pairs.nats"}
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    CliRunner().invoke(main, command, catch_exceptions=False)
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before


def test_an_unknown_topic_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    made = tiny.save(tiny.build("llama"), tmp_path / "m", chat=True)
    result = CliRunner().invoke(main, ["validate", "--model", made, "--topic", "rice", "--out", str(tmp_path / "o")])
    assert result.exit_code == 2 and "no topic 'rice' with training items; topics: crime_and_gun" in result.output
