"""The verbs from Python: the tutorial's blocks in order, what they give, and that the commands give the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from click.testing import CliRunner

import harness
from harness.cli import main
from harness.errors import InputError

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
MODEL = 'model = "smollm2-135m-instruct"'
TASK = "political_stance_race_pairs"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tiny.build("llama", max_position_embeddings=1024, num_hidden_layers=2)
    return tiny.save(made, tmp_path_factory.mktemp("base"), chat=True)


@pytest.fixture(scope="module")
def tutorial(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The page's names after its last block, which ran in an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("notebook")
        patch.chdir(folder)
        patch.setenv("STANCE_CACHE", str(folder / "cache"))
        text = PAGE.read_text(encoding="utf-8")
        blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
        assert MODEL in blocks[0][1]
        names: dict[str, Any] = {"folder": folder}
        for block in blocks:
            line = text[: block.start(1)].count("\n")
            code = "\n" * line + block[1].replace(MODEL, f"model = {base!r}")
            exec(compile(code, str(PAGE), "exec"), names)
        yield names


def test_the_tutorial_runs_and_its_frames_hold_what_the_page_says(tutorial: dict[str, Any]) -> None:
    stance = tutorial["base"].stance
    assert list(stance.columns) == ["measure", "topic", "value", "low", "high", "n"]
    assert set(stance["topic"]) == {"immigration", "race"} and set(stance["n"]) == {4}
    assert set(stance["measure"]) == {"pairs.nats", "pairs.stance", "statements.stance", "statements.top"}
    assert (stance["low"] <= stance["value"]).all() and (stance["value"] <= stance["high"]).all()
    assert len(tutorial["tuned_model"].loss) == tutorial["tuned_model"].manifest["steps"] == 6
    assert set(tutorial["found"].layers["set"]) == {"general", "immigration", "race"}
    assert set(tutorial["pairs_in_nats"]["run"]) == {"base-again", "tuned", "held", "random"}
    assert set(tutorial["shifts"]["run"]) == {"base-again", "tuned"}
    for page in ("mine", "small"):
        assert (tutorial["folder"] / "reports" / page / "index.html").is_file()
    assert not (tutorial["folder"] / "runs" / "rice").exists()


def test_a_measurements_stance_is_the_comparisons(tutorial: dict[str, Any]) -> None:
    compared = tutorial["comparison"].stance
    own = tutorial["base"].stance
    of_base = compared[compared["run"] == "base"][list(own.columns)].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_base, own)
    nats = own.query("measure == 'pairs.nats' and topic == 'race'")["value"].item()
    pairs = tutorial["base"].samples.query("format == 'pairs' and topic == 'race'")
    assert nats == pytest.approx(pairs["values"].map(lambda text: json.loads(text)["nats"]).mean(), abs=1e-12)


def test_a_measurement_is_read_again_without_its_model(tutorial: dict[str, Any]) -> None:
    read = harness.Measurement.load(tutorial["folder"] / "runs" / "base")
    pd.testing.assert_frame_equal(read.stance, tutorial["base"].stance)
    assert read.manifest["documents"] == len(read.samples)
    with pytest.raises(InputError, match="tuned-model holds a tune; expected a measurement"):
        harness.Measurement.load(tutorial["folder"] / "runs" / "tuned-model")


def test_a_command_and_its_function_take_each_others_runs(base: str, tmp_path: Path, stance_cache: Path) -> None:
    """Were any default different, the second call would be refused as another run."""
    out = tmp_path / "run"
    arguments = ["eval", "--model", base, "--engine", "torch", "--tasks", TASK, "--limit", "2", "--out", str(out)]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    made = (out / "manifest.json").read_bytes()
    harness.evaluate(base, engine="torch", tasks=[TASK], limit=2, out=out)
    assert (out / "manifest.json").read_bytes() == made
    with pytest.raises(InputError, match=r"limit: 2 there, 3 now"):
        harness.evaluate(base, engine="torch", tasks=[TASK], limit=3, out=out)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"engine": "tpu"}, "engine is 'tpu'; choose from torch, vllm"),
        ({"chat_template": "yes"}, "chat_template is 'yes'; choose from auto, off, on"),
        ({"role": "best"}, "role is 'best'; choose from base, control"),
        ({"tasks": TASK}, "expected a list of task names"),
        ({"topics_dir": ["nowhere"]}, "nowhere is no folder"),
        ({"op": "zero"}, "go together"),
    ],
)
def test_what_is_wrong_is_said_before_a_folder_is_made(
    base: str, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        harness.evaluate(base, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_recipes_keys_are_checked_and_arguments_win(base: str, tmp_path: Path, stance_cache: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in tiny.PAIRS))
    with pytest.raises(InputError, match="learning_rat"):
        harness.tune(base, data, recipe={"learning_rat": 1}, out=tmp_path / "t")
    recipe = {"mode": "full", "epochs": 9, "learning_rate": 1e-2, "checkpoints": False}
    made = harness.tune(base, data, recipe=recipe, epochs=1, out=tmp_path / "t")
    assert made.manifest["spec"]["recipe"]["epochs"] == 1 and made.manifest["spec"]["recipe"]["mode"] == "full"


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import harness, sys; print(*sys.modules); print(harness.Measurement, 'evaluate' in dir(harness))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    loaded, named = done.stdout.splitlines()
    assert not {"harness.api", "pandas", "torch", "lm_eval", "typing_extensions"} & set(loaded.split())
    assert named == "<class 'harness.results.Measurement'> True"
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        _ = harness.evaluat  # pyright: ignore


def test_every_name_of_the_package_is_there_whichever_modules_were_imported() -> None:
    """A module of the package under one of these names would take its place as soon as it is imported."""
    for name in harness.__all__:
        assert callable(getattr(harness, name)) and f"harness.{name}" not in sys.modules
        assert not (Path(harness.__file__).parent / f"{name}.py").exists()
