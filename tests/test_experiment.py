"""The whole method on a tiny model: every step, its artefacts, and doing it again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from click.testing import CliRunner

from harness.cli import main
from harness.config import load_experiment
from harness.errors import InputError
from harness.experiment import prepare

TASKS = [f"political_stance_{t}_{k}" for t in ("immigration", "race", "science") for k in ("pairs", "statements")]


def experiment(folder: Path, model: str, **changes: Any) -> Path:
    config = {
        "name": "tiny",
        "model": model,
        "train": {
            "topics": ["immigration"],
            "recipe": {"mode": "full", "epochs": 1, "learning_rate": 1e-2, "batch_size": 16, "checkpoints": False},
        },
        "measure": {
            "tasks": TASKS,
            "limit": 4,
            "engine": "torch",
            "dtype": "float32",
            "axes": {"wording": ["original"], "forcing": ["soft"]},
        },
        "localize": {"prompts": 4},
        "patch": {"limit": 2, "tasks": TASKS[::2]},
        "inhibit": {"shares": [0.5], "random_seeds": [0]},
        **changes,
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tiny.build("llama", max_position_embeddings=1024, num_hidden_layers=2)
    return tiny.save(made, tmp_path_factory.mktemp("base"), chat=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model: str) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("study")
    path = experiment(folder, model)
    result = CliRunner().invoke(main, ["run", str(path), "--out", str(folder / "out")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return path, folder / "out", result.output


def test_every_step_is_a_complete_run_folder(done: Any) -> None:
    steps = {p.name[3:] for p in done[1].glob("[0-9][0-9]-*")}
    expected = {
        *("measure-base", "measure-base-again", "tune", "measure-tuned", "localize"),
        *("patch-none", "patch-general", "patch-random-0"),
        *("tune-inhibited-50pct", "measure-inhibited-50pct", "tune-random-50pct-0", "measure-random-50pct-0"),
    }
    # Specific neurons are patched where there are any; on a random model that is a matter of chance.
    assert expected <= steps <= expected | {"patch-specific"}
    assert all((p / "manifest.json").is_file() for p in done[1].glob("[0-9][0-9]-*"))


def test_the_report_and_its_data_are_written(done: Any) -> None:
    names = {p.name for p in done[1].iterdir() if p.is_file()}
    assert {"index.html", "report.md", "summary.csv", "comparison.json"} <= names
    assert "index.html" in done[2]


def test_held_entries_are_proven_in_the_manifest(done: Any) -> None:
    held = [json.loads(p.read_text()) for p in done[1].glob("*-tune-*50pct*/manifest.json")]
    assert len(held) == 2
    assert all(m["hold"]["held_entries"] > 0 and m["hold"]["moved_beside_them"] > 0 for m in held)
    assert held[0]["hold"]["neurons"] == held[1]["hold"]["neurons"]


def test_the_empty_patch_is_the_base_and_the_general_one_is_not(done: Any) -> None:
    effects = {p.parent.name[3:]: json.loads(p.read_text())["effect"] for p in done[1].glob("*-patch-*/manifest.json")}
    assert effects["patch-none"]["largest_change"] == 0
    assert effects["patch-general"]["largest_change"] > 0


def test_the_second_run_does_nothing_and_says_the_same(done: Any) -> None:
    path, out, _ = done
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/manifest.json")}
    table = (out / "summary.csv").read_bytes()
    begun = time.perf_counter()
    result = CliRunner().invoke(main, ["run", str(path), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert time.perf_counter() - begun < 30
    assert {p: p.stat().st_mtime_ns for p in out.glob("*/manifest.json")} == before
    assert (out / "summary.csv").read_bytes() == table


def test_a_removed_step_is_made_again_with_the_same_numbers(done: Any) -> None:
    path, out, _ = done
    table = (out / "summary.csv").read_bytes()
    (out / "04-measure-tuned" / "manifest.json").unlink()
    assert CliRunner().invoke(main, ["run", str(path), "--out", str(out)], catch_exceptions=False).exit_code == 0
    assert (out / "summary.csv").read_bytes() == table


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"trian": {}}, "unknown key `trian`"),
        ({"train": {"topics": ["immigration"], "recipe": {"lr": 1}}}, "unknown key `train.recipe.lr`"),
        ({"train": {"topics": ["climate"]}}, "no topic climate to tune on"),
        ({"inhibit": {"shares": [1.5]}}, "inhibit.shares holds 1.5"),
        ({"measure": {"tasks": ["political_stance_rice"]}}, "no task 'political_stance_rice'"),
        ({"localize": {"site": "resid"}}, "localize.site"),
        ({"localize": {"site": "resid_post"}}, "inhibit needs neurons that weights of their own write"),
        ({"inhibit": {"shares": [0.1], "random_seeds": []}}, "inhibit.random_seeds"),
    ],
)
def test_a_wrong_experiment_is_refused_before_a_model_is_loaded(
    tmp_path: Path, model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(load_experiment(experiment(tmp_path, model, **changes)), tmp_path / "out")


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model 'no-such-model'"):
        prepare(load_experiment(experiment(tmp_path, "no-such-model")), tmp_path / "out")
