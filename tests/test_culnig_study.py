"""The study from end to end on a tiny model: localisation, training, page; what it refuses and what it does not repeat."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import tiny as t
import torch

from harness.analysis import read_settings
from harness.errors import InputError
from harness.lmeval.roots import task_manager
from harness.models import weights_hash
from harness.projections import PROJECTION_SITES, projection_parts
from harness.report.sheet import write_sheet
from plugins import culnig_extra
from plugins import load as load_plugin
from plugins.culnig import difference, general, score
from plugins.culnig_extra import check_extra, extra_step
from plugins.culnig_items import items
from plugins.culnig_localise import country_names, localise, material, mean
from plugins.culnig_sets import load, members, size
from plugins.culnig_settings import Settings
from plugins.culnig_training import choose, pairs
from plugins.studies.culnig import ANALYSIS


@pytest.fixture(scope="module")
def long_model():
    return t.build("llama", max_position_embeddings=1024)


def settings(folder, **more):
    quick = {"mode": "full", "epochs": 1, "learning_rate": 1e-3, "checkpoints": False}
    keys = {
        "name": "c",
        "model": folder,
        "engine": "torch",
        "max_length": 1024,
        "limit": 2,
        "localise": {"items": 2, "copying": 1},
        "specific": [],
        "random_seeds": [0],
        "train": {"recipe": quick},
    }
    return Settings.model_validate({**keys, **more})


def test_the_study_end_to_end(long_model, tmp_path, stance_cache, capsys):
    model = t.save(long_model, tmp_path / "m", chat=True)
    page = ANALYSIS.run(settings(model), tmp_path / "out")
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders[:5] == [
        "01-measure-base",
        "02-measure-base-again",
        "03-measure-base-noquestion",
        "04-localise",
        "05-measure-suppress-general",
    ]
    located = next(tmp_path.glob("out/*-localise"))
    general_set = load(located / "general.safetensors", weights_hash(model))
    assert 0 < size(general_set) <= int(0.01 * t.LAYERS * t.INTERMEDIATE) + int(0.002 * t.LAYERS * 4 * 16) + 1
    effects = next(s.table for s in page.sections if s.name == "effects")
    assert effects is not None
    done = set(effects["condition"])
    assert {"suppress-general", "enhance-general", "trained-most", "trained-fewest"} <= done
    # Both measurements of the base are the same model: nothing but the order of requests differs.
    tuned = json.loads(next(tmp_path.glob("out/*-trained-most/manifest.json")).read_text())
    assert tuned["spec"]["recipe"]["only"] and tuned["moved"]["share_of_weights"] <= 0.1
    assert all(text.strip() for text in page.sentences) and "20 culture questions" in page.sentences[0]
    html = write_sheet(page, tmp_path / "page").read_text(encoding="utf-8")
    assert "trained-most" in html and "<svg" in html

    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("manifest.json")}
    again = ANALYSIS.run(settings(model), tmp_path / "out")
    assert again.sentences == page.sentences
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("manifest.json")}
    with pytest.raises(InputError, match="limit: 2 there, 3 now"):
        ANALYSIS.run(settings(model, limit=3), tmp_path / "out")


@pytest.mark.parametrize(
    "change, match",
    [
        ({"specific": ["atlantis"]}, "specific names atlantis"),
        ({"random_seeds": []}, "random_seeds is empty"),
        ({"train": {"recipe": {"mode": "lora"}}}, "mode: full"),
        ({"limit": 30, "localise": {"items": 9}}, "must not be measured"),
        ({"model": "nowhere-at-all"}, "There is no model"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(tmp_path, change, match):
    with pytest.raises(InputError, match=match):
        ANALYSIS.run(settings("m", **change), tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_file_names_the_analysis_and_unknown_keys_are_errors(tmp_path):
    assert load_plugin("analyses", "culnig") is ANALYSIS
    with pytest.raises(InputError, match="limits"):
        read_settings({"analysis": "culnig", "name": "x", "limits": 3}, tmp_path / "x.yaml", Settings)


def test_localisation_is_the_papers_difference(long_model):
    tokenizer, given = t.tokenizer(), material(2, 2, 1)
    found = localise(long_model, tokenizer, False, given, ["usa"])
    asked = [q for rows in given.culture.values() for q in rows]
    passages = [q for rows in given.copying.values() for q in rows]
    culture = score(long_model, items(asked, tokenizer, False)).sites
    control = score(long_model, items([q.without_text() for q in asked], tokenizer, False), clip_control=True).sites
    copying = score(long_model, items(passages, tokenizer, False)).sites
    assert members(found.sets["general"]) == members(general(culture, control, copying))
    assert members(found.sets["general-unfiltered"]) == members(general(culture, control))
    assert set(found.probability["culture"]) == set(country_names())
    with pytest.raises(InputError, match="country atlantis"):
        localise(long_model, tokenizer, False, given, ["atlantis"])


def test_the_mean_over_countries_is_the_mean_over_items(long_model):
    tokenizer, given = t.tokenizer(), material(1, 1, 1)
    rows = [items(rows, tokenizer, False) for rows in list(given.culture.values())[:2]]
    by_country = {str(n): score(long_model, one).sites for n, one in enumerate(rows)}
    together = score(long_model, rows[0] + rows[1]).sites
    apart = difference(mean(by_country), together)
    assert max(float(s.abs().max()) for s in apart.values()) < 1e-5 * max(
        float(s.abs().max()) for s in together.values()
    )


def test_what_finds_neurons_is_not_measured():
    given = material(18, 18, 4)
    assert set(given.culture) == set(country_names()) and len(given.culture) == 10
    for rows in given.culture.values():
        assert len(rows) == 18 and min(int(q.id.rsplit("-", 1)[1]) for q in rows) == 19
    assert all(len(rows) == 4 for rows in given.copying.values())


def masks_of(model, sites):
    widths = {site: part.width for site, part in projection_parts(model, sites)[0].items()}
    return {site: torch.zeros(t.LAYERS, width, dtype=torch.bool) for site, width in widths.items()}


def test_modules_with_most_and_with_fewest(tiny):
    model, masks = tiny("llama"), masks_of(tiny("llama"), PROJECTION_SITES)
    masks["q"][1, :9] = True
    masks["gate"][2, :5] = True
    masks["v"][0, :2] = True
    most, fewest = (choose(model, masks, which, share=0.1) for which in ("most", "fewest"))
    assert most.modules[0] == "model.layers.1.self_attn.q_proj" and most.neurons >= 9
    assert fewest.neurons == 0 and not set(most.modules) & set(fewest.modules)
    total = sum(p.numel() for p in model.parameters())
    for one in (most, fewest):
        held = sum(p.numel() for name in one.modules for p in model.get_submodule(name).parameters())
        assert one.parameters == held <= 0.1 * total
    assert choose(model, masks, "fewest", seed=1).modules != fewest.modules
    for which, share, match in (
        ("some", 0.1, "which is"),
        ("most", 1e-6, "takes 0 of"),
        ("most", 0.99, "takes 12 of 12"),
    ):
        with pytest.raises(InputError, match=match):
            choose(model, masks, which, share)


def test_fused_modules_count_all_their_sites(tiny):
    model, masks = tiny("phi3"), masks_of(tiny("phi3"), PROJECTION_SITES)
    masks["q"][1, :2] = True
    masks["k"][1, :2] = True
    masks["v"][2, :3] = True
    assert choose(model, masks, "most", 0.3).modules[:2] == [f"model.layers.{n}.self_attn.qkv_proj" for n in (1, 2)]


def test_training_pairs_end_in_the_letter():
    rows = material(2, 2, 1).culture["usa"]
    for pair, question in zip(pairs(rows), rows, strict=True):
        assert pair == {"prompt": question.prompt, "completion": "ABCD"[question.answer]}


def test_tasks_of_lm_eval_are_measured_by_name(long_model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        culnig_extra, "_manager", task_manager
    )  # reads our folders only, lm-eval's thousands take seconds
    with pytest.raises(InputError, match="does not know"):
        check_extra(["no_such_task_at_all"])
    check_extra([])
    folder = t.save(long_model, tmp_path / "m")
    run = extra_step(tmp_path / "e", folder, ["culture_control_grammar"], 3, engine="torch")
    frame = pd.read_parquet(run.path / "extra.parquet")
    assert len(frame) == 3 and set(frame["acc"]) <= {0.0, 1.0} and set(frame["task"]) == {"culture_control_grammar"}
    assert extra_step(tmp_path / "e", folder, ["culture_control_grammar"], 3, engine="torch").complete
