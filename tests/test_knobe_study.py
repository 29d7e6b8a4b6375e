"""The study: effects of patches by hand, sentences that follow the figures, and the whole of it on tiny models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny as t
import yaml

from harness.analysis import read_settings, read_yaml
from harness.engines import lease
from harness.errors import InputError
from harness.report.sheet import write_sheet
from plugins.knobe_report import Findings, sheet
from plugins.knobe_settings import KnobeSettings, SweepSettings
from plugins.layer_patching_effects import difference, patch_effects
from plugins.layer_patching_sweep import COLUMNS
from plugins.studies.knobe import ANALYSIS

EXAMPLE = Path(__file__).parents[1] / "experiments" / "knobe.yaml"
INTO_TUNED, INTO_BASE = "base_into_tuned", "tuned_into_base"


def swept(patched: float, shuffled: float, items: int = 8, noise: float = 0.0) -> pd.DataFrame:
    """Base differs by 1 and tuned by 3 in every item; the patches by what is given, plus and minus `noise` in turn."""
    levels = {(INTO_TUNED, "", -1, "none", -1): 3, (INTO_BASE, "", -1, "none", -1): 1}
    for direction in (INTO_TUNED, INTO_BASE):
        levels |= {(direction, "mlp_out", 4, "patch", -1): patched}
        levels |= {(direction, "mlp_out", 4, "shuffled", seed): shuffled + (0.1 if seed else -0.1) for seed in (0, 1)}
    rows = []
    for key, level in levels.items():
        for item in range(items):
            shift = noise * (-1) ** item if key[3] == "patch" else 0
            rows += [(*key, 0.5, f"i{item}", "harm", 4 + level + shift), (*key, 0.5, f"i{item}", "help", 4.0)]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_effects_of_patches_by_hand() -> None:
    """Into tuned: change 1.5 - 3 = -1.5, control 2.9 - 3 averaged with 3.1 - 3 = 0, net -1.5, recovery -1.5 / -2. Into base:
    change .5, control 2, net -1.5, recovery .5 / 2. Eight items that agree: 2 of 256 exchanges are as extreme."""
    effects = patch_effects(swept(1.5, 3.0)).set_index("direction")
    assert difference(swept(1.5, 3.0)).value == pytest.approx(2)
    wanted = {"recipient": [3, 1], "donor": [1, 3], "patched": [1.5, 1.5], "change": [-1.5, 0.5], "control": [0, 2]}
    wanted |= {"net": [-1.5, -1.5], "recovery": [0.75, 0.25], "p": [2 / 256] * 2, "p_holm": [4 / 256] * 2}
    for name, values in wanted.items():
        assert effects[name].tolist() == pytest.approx(values), name
    assert effects["n"].tolist() == [8, 8] and effects["half"].isna().all()


def test_shares_of_nothing_are_not_given() -> None:
    assert patch_effects(swept(1.5, 3.0), least=2.5)["recovery"].isna().all()
    with pytest.raises(InputError, match="the control `shuffled`"):
        patch_effects(swept(1.5, 3.0).query("kind != 'shuffled'"))
    with pytest.raises(InputError, match="over 1 items"):
        patch_effects(swept(1.5, 3.0, items=1))


def findings(tuned: float, readable: bool = True, **more) -> Findings:
    """Base and base again without an effect, tuned with this one; 6 items, 4 trials."""
    draw, trials, scores = np.random.default_rng(1), [], []
    for model, effect in (("base", 0.0), ("base again", 0.0), ("tuned", tuned)):
        for item in range(6):
            for condition in ("harm", "help"):
                mean = 5 + effect * (condition == "harm") + 0.1 * draw.normal()
                scores.append((f"i{item}", condition, mean, 0.8, model))
                for trial in range(4):
                    rating = mean + 0.1 * draw.normal() if readable else np.nan
                    trials.append((trial, 1.0, f"i{item}", condition, "", rating, model))
    tables = (
        pd.DataFrame(trials, columns=["trial", "temperature", "item", "condition", "answer", "rating", "model"]),
        pd.DataFrame(scores, columns=["item", "condition", "rating", "mass", "model"]),
    )
    return Findings("x", "base", "base again", "tuned", *tables, **{"swept": None, "least": 0.05, "about": {}, **more})


def test_sentences_follow_the_figures(tmp_path) -> None:
    moved, still = (" ".join(sheet(findings(effect)).sentences) for effect in (2.0, 0.0))
    for scorer in ("Sampled", "Expected value"):
        assert f"{scorer}: from base to tuned Delta_Knobe changes by" in moved
    assert moved.count("lies beyond") == 2 and "harm is called more intentional" in moved
    assert still.count("cannot be told from") == 2 and "harm is called more" not in still
    assert "help is called more intentional" in " ".join(sheet(findings(-2.0)).sentences)
    silent = sheet(findings(2.0, readable=False))
    assert "Sampled ratings cannot be analysed" in " ".join(silent.sentences)
    assert "fewer than half" in " ".join(silent.sentences) and "lies beyond zero" in " ".join(silent.sentences)
    write_sheet(silent, tmp_path)


def test_sentences_of_the_sweep() -> None:
    carried = sheet(findings(2.0, swept=swept(1.5, 3.0)))
    nothing = sheet(findings(2.0, swept=swept(3.0, 3.0, noise=0.3)))
    hopeless = sheet(findings(2.0, swept=swept(3.0, 3.0, items=4, noise=0.3)))
    assert not any("none could have been" in s for s in nothing.sentences)
    assert any("With 4 pairs and 2 patches none could have been" in s for s in hopeless.sentences)
    few = sheet(findings(2.0, swept=swept(1.5, 3.0), least=2.5))
    assert any(
        s.startswith("2 of 2 patches move") and "net of it: mlp_out after block 4" in s for s in carried.sentences
    )
    assert any(s.startswith("0 of 2 patches move") and "none can be told" in s for s in nothing.sentences)
    assert any("of which patches bring back shares" in s for s in carried.sentences)
    assert any("too little to speak of shares" in s for s in few.sentences)


def settings(**changes) -> KnobeSettings:
    raw = {"name": "k", "model": "m", "tuned": "n", **changes}
    found = read_settings(raw, Path("k.yaml"), ANALYSIS.settings)
    assert isinstance(found, KnobeSettings)
    return found


def test_the_example_is_read_and_mistakes_are_named() -> None:
    found = read_settings(read_yaml(EXAMPLE), EXAMPLE, ANALYSIS.settings)
    assert isinstance(found, KnobeSettings) and found.tune and found.tune.topic == "immigration"
    for changes, message in (
        ({"tuned": None}, "either `tuned`"),
        ({"vignettes": "a", "originals": "b"}, "not both"),
        ({"sweep": {"controls": ["half"]}}, "must hold `shuffled`"),
        ({"sweep": {"sites": ["mlp_act"]}}, "resid_post"),
        ({"trails": 3}, "unknown key `trails`"),
        ({"trials": 1}, "`trials`"),
    ):
        with pytest.raises(InputError, match=message):
            settings(**changes)
    with pytest.raises(InputError, match="`pairs` is 99; there are 48"):
        ANALYSIS.run(settings(pairs=99), Path("unused"))


def test_blocks_of_a_sweep() -> None:
    assert SweepSettings(every=3).blocks(10) == [2, 5, 8, 9]
    assert SweepSettings().blocks(3) == [0, 1, 2] and SweepSettings(layers=[4, 1]).blocks(9) == [1, 4]


@pytest.fixture
def pair(tmp_path):
    """A tiny base and a tune of it whose context holds a vignette of one character a token."""
    base = t.build("llama", max_position_embeddings=1024)
    yield t.save(base, tmp_path / "base"), t.save(t.with_other_mlps(base), tmp_path / "tuned")
    lease.release()


def test_the_whole_study_on_tiny_models(stance_cache, tmp_path, pair) -> None:
    own = [
        {"text": f"{w} {c}", "question": "q?", "condition": k} for w in "abc" for c, k in (("x", "harm"), ("y", "help"))
    ]
    (tmp_path / "own.csv").write_text(pd.DataFrame(own).to_csv(index=False))
    raw = {"originals": str(tmp_path / "own.csv"), "trials": 2, "engine": "torch", "dtype": "float32", "stitched": [1]}
    raw |= {"sweep": {"controls": ["shuffled", "half"], "sites": ["resid_post", "mlp_out"]}}
    wanted = settings(model=pair[0], tuned=pair[1], **raw)
    found = ANALYSIS.run(wanted, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["01-rate-base", "02-rate-base-again", "03-rate-tuned", "04-sweep", "05-rate-stitched-after-1"]
    page = write_sheet(found, tmp_path / "out").read_text()
    assert "Sweep of resid_post" in page and "<svg" in page and found.sentences[0].startswith("3 pairs of vignettes")
    table = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert len(table) == 2 * 2 * 3
    last = table[table["patch"] == "resid_post 2, tuned into base"].iloc[0]
    assert last["patched"] == pytest.approx(last["donor"], abs=1e-3)  # norm and head are shared
    scores = pd.read_csv(tmp_path / "out" / "effects_expected.csv").set_index("model")
    middle = table[table["patch"] == "resid_post 1, base into tuned"].iloc[0]
    assert scores.loc["stitched after 1", "delta"] == pytest.approx(middle["patched"], abs=1e-3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("manifest.json")}
    again = ANALYSIS.run(wanted, tmp_path / "out")
    assert again.sentences == found.sentences
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(InputError, match="trials: 2 there, 3 now"):
        ANALYSIS.run(settings(model=pair[0], tuned=pair[1], **{**raw, "trials": 3}), tmp_path / "out")


def test_models_that_read_prompts_differently_are_refused(stance_cache, tmp_path, pair) -> None:
    file = Path(pair[1]) / "tokenizer.json"
    vocabulary = yaml.safe_load(file.read_text())["model"]["vocab"]
    file.write_text(file.read_text().replace(f'"a": {vocabulary["a"]}', f'"a": {vocabulary["b"]}', 1))
    with pytest.raises(InputError, match="read the prompts differently"):
        ANALYSIS.run(settings(model=pair[0], tuned=pair[1], pairs=2), tmp_path / "out")
