"""Other packages' plugins: found, refused with their package's name, and the example package installed and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny as t
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from harness.analysis import Analysis
from harness.cli import main
from harness.contrast import contrasts
from harness.errors import InputError, ProofError
from harness.interventions import ZERO, Op
from harness.lmeval.roots import packaged_root
from harness.localize import localize_step
from harness.registry import PREFIX, find, installed
from harness.topics import find_topics
from harness.variants import Variant
from plugins import load

EXAMPLE = Path(__file__).parents[1] / "docs" / "example_plugin"
USED = """
import json, sys
from click.testing import CliRunner
from harness.cli import main

said = []
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said.append(done.output)
print(json.dumps(said))
"""

Package = Callable[..., None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Makes a package with entry points importable: `package(name, code, group, **entry points)`."""

    def make(name: str, code: str, group: str, **entries: str) -> None:
        folder = tmp_path / name
        info = folder / f"{name}-2.1.dist-info"
        info.mkdir(parents=True)
        (folder / f"{name}_code.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
        lines = [f"{key} = {name}_code:{value}" for key, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{PREFIX}{group}]", *lines]))
        monkeypatch.delitem(sys.modules, f"{name}_code", raising=False)
        monkeypatch.syspath_prepend(folder)

    return make


# Loading


def test_our_own_plugins_are_found_with_their_package():
    plugin = find("localizers", "pnlac")
    assert (plugin.package, plugin.target) == ("stance-harness", "plugins.pnlac:localize")
    assert plugin.summary(load("localizers", "pnlac")).startswith("PNLAC over topics.")
    assert isinstance(load("analyses", "neuronlens"), Analysis)
    assert find("analyses", "neuronlens").summary(load("analyses", "neuronlens")).startswith("NeuronLens as a study")


def test_the_types_are_in_one_place():
    import plugins
    from plugins import protocols

    assert all(getattr(plugins, name) is getattr(protocols, name) for name in plugins.PROTOCOLS)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        plugins.Nothing  # noqa: B018


def test_a_missing_plugin_names_those_that_exist():
    with pytest.raises(InputError, match=r"no plugin 'pnlack' among localizers; installed: pnlac"):
        load("localizers", "pnlack")


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("import nothing_of_that_name", r"ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def other(): ...", r"AttributeError: .*has no attribute 'it'"),
        ("it = 1 / 0", "ZeroDivisionError"),
        ("it = 3", "gave int; expected a function of base, tuned"),
    ],
)
def test_a_broken_plugin_names_package_and_entry_point(package: Package, code: str, match: str):
    package("brokenone", code, "localizers", mine="it")
    with pytest.raises(InputError, match=match) as caught:
        load("localizers", "mine")
    assert "package brokenone 2.1, entry point brokenone_code:it" in str(caught.value)


@pytest.mark.parametrize("group", ["mitigations", "analyses"])
def test_a_plugin_of_another_type_is_refused(package: Package, group: str):
    package("wrongtype", "def it(): ...", group, mine="it")
    with pytest.raises(InputError, match=r"wrongtype 2\.1.*gave function; expected a"):
        load(group, "mine")


def test_two_plugins_of_one_name_name_both_packages(package: Package):
    for name in ("twin_a", "twin_b"):
        package(name, "def it(*_, **__): ...", "localizers", mine="it")
    with pytest.raises(InputError, match=r"There are 2 plugins 'mine'.*twin_a 2\.1.*twin_b 2\.1.*rename"):
        load("localizers", "mine")


def test_a_package_that_stands_twice_on_the_path_counts_once(package: Package, tmp_path: Path, monkeypatch):
    package("seen_twice", "def it(*_, **__): ...", "localizers", mine="it")
    shutil.copytree(tmp_path / "seen_twice", tmp_path / "copy")
    monkeypatch.syspath_prepend(tmp_path / "copy")
    assert [p.name for p in installed("localizers")].count("mine") == 1


def test_the_listing_says_what_is_broken_and_goes_on(package: Package):
    package("brokenone", "it = 1 / 0", "localizers", mine="it")
    package("misspelt", "def it(*_): ...", "localisers", mine="it")
    package("shadowed", "def it(value): ...", "interventions", scale="it")
    result = CliRunner().invoke(main, ["plugins", "--json"], catch_exceptions=False)
    rows = {(row["group"], row["name"]): row for row in json.loads(result.output)["plugins"]}
    assert result.exit_code == 0 and rows["localizers", "pnlac"]["error"] is None
    assert "ZeroDivisionError" in rows["localizers", "mine"]["error"]
    assert "group that nothing reads" in rows["localisers", "mine"]["error"]
    assert "scale is built in" in rows["interventions", "scale"]["error"]
    shown = CliRunner().invoke(main, ["plugins"], catch_exceptions=False).output
    assert (
        shown.index("localizers") < shown.index("interventions") < shown.index("analyses") < shown.index("localisers")
    )
    assert "Broken: Plugin 'mine' of localizers (package brokenone 2.1" in shown


# Interventions


def test_an_installed_intervention_is_an_op(package: Package):
    code = """
from harness.interventions import Op
def mirrored(value):
    "Change the sign."
    return Op(scale=-float(value or 1))
"""
    package("mirror", code, "interventions", mirror="mirrored")
    assert Op.parse("mirror") == Op(scale=-1.0) and str(Op.parse("mirror")) == "scale=-1"
    assert Op.parse("mirror=0.5").apply(torch.tensor([2.0, -4.0])).tolist() == [-1.0, 2.0]
    assert Op.parse("zero") == ZERO
    with pytest.raises(InputError, match=r"mirror 2\.1.*refuses 'much': could not convert"):
        Op.parse("mirror=much")
    with pytest.raises(InputError, match="Installed beside them: mirror"):
        Op.parse("miror")


@pytest.mark.parametrize(
    ("made", "match"),
    [("'zero'", "gave str; expected harness.interventions.Op"), ("Op(scale=float('nan'))", "expected finite scale")],
)
def test_an_intervention_that_gives_no_op_is_refused(package: Package, made: str, match: str):
    package("oddop", f"from harness.interventions import Op\ndef it(value): return {made}", "interventions", odd="it")
    with pytest.raises(InputError, match=match):
        Op.parse("odd")


def test_no_two_ops_have_one_text():
    ops = [Op(), ZERO, Op(0.0, 2.0), Op(2.0), Op(2.0, 1.0), Op(2.0, 1.5), Op(0.1234567), Op(0.12345671)]
    ops += [
        Op(low=-1.0, high=1.0, inside=0.0),
        Op(2.0, low=-1.0, high=1.0, inside=0.0),
        Op(2.0, 1.0, -1.0, 1.0, 0.0),
        Op(0.0, 0.0, -1.0, 1.0, 0.0),
    ]
    assert len({str(op) for op in ops}) == len(ops)


# Localisers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    base = t.build("llama", max_position_embeddings=1024, num_hidden_layers=2)
    made = tmp_path_factory.mktemp("models")
    return t.save(base, made / "base", chat=True), t.save(t.with_other_mlps(base), made / "tuned", chat=True)


LOCALISER = """
import torch
from plugins.protocols import Localization
def it(base, tuned, prompts, site, model, *, top, advance, kind="fine", **_):
    shape = (2, 47) if kind == "narrow" else (2, 48)
    scores = {topic: torch.arange(float(shape[0] * shape[1])).view(shape) for topic in prompts}
    if kind == "zero":
        scores = {topic: one * 0 for topic, one in scores.items()}
    if kind == "infinite":
        scores = {topic: one / 0 for topic, one in scores.items()}
    if kind == "other":
        scores = {"weather": one for one in scores.values()}
    found = Localization(site, model, top, scores, torch.rand(shape))
    return scores if kind == "scores" else found
def strict(base, tuned, prompts, site, model, *, top, advance, floor=1.0): ...
"""


def localized(out: Path, models: tuple[str, str], method: str, **options: Any):
    topics = find_topics([packaged_root()])
    chosen = [topics["immigration"], topics["science"]]
    return localize_step(
        out, *map(Variant, models), chosen, top=10.0, prompts=2, method=method, options=options
    )  # fmt: skip


def test_another_packages_localiser_makes_the_same_files(package, models, stance_cache, tmp_path):
    package("ranks", LOCALISER, "localizers", mine="it")
    run = localized(tmp_path / "run", models, "mine")
    kept = load_file(run.path / "neurons.safetensors")
    assert kept["general"].flatten().nonzero().flatten().tolist() == list(range(86, 96))  # the last 10 of 96
    assert "package ranks 2.1" in run.manifest["spec"]["method"]
    with pytest.raises(InputError, match="made otherwise"):
        localized(tmp_path / "run", models, "pnlac")


@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [
        ("scores", InputError, "gave dict; expected plugins.Localization"),
        ("narrow", InputError, r"scores of immigration came as \(2, 47\); expected finite numbers of shape \(2, 48\)"),
        ("infinite", InputError, r"expected finite numbers"),
        ("other", InputError, "localised weather at mlp_act"),
        ("zero", ProofError, "scores every neuron 0"),
    ],
)
def test_a_result_that_is_no_localisation_is_refused(package, models, stance_cache, tmp_path, kind, error, match):
    package("ranks", LOCALISER, "localizers", mine="it")
    with pytest.raises(error, match=match) as caught:
        localized(tmp_path / "run", models, "mine", kind=kind)
    assert "package ranks 2.1, entry point ranks_code:it" in str(caught.value)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_an_option_that_a_localiser_does_not_take_is_named(package, models, tmp_path):
    package("ranks", LOCALISER, "localizers", mine="strict")
    with pytest.raises(InputError, match="takes no option depth; its options: floor"):
        localized(tmp_path / "run", models, "mine", depth=1)
    with pytest.raises(InputError, match="takes no option top"):
        localized(tmp_path / "run", models, "mine", top=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pair", ["floor", "=1", "a b=1", "floor=[1"])
def test_options_are_key_and_value(models, tmp_path, pair):
    arguments = ["localize", "plugin", "pnlac", "--base", models[0], "--tuned", models[1], "--out", str(tmp_path / "r")]
    result = CliRunner().invoke(main, [*arguments, "--option", pair])
    assert result.exit_code == 2 and "expected" in result.output and "--option is" in result.output


# The example package


def test_the_example_package_is_installed_listed_and_used(models, tmp_path):
    site, source = tmp_path / "site", tmp_path / "source"
    shutil.copytree(EXAMPLE, source)
    pip = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *pip], check=True, capture_output=True, timeout=120)
    located, answers = tmp_path / "located", tmp_path / "answers"
    study = tmp_path / "one_op.yaml"
    study.write_text(
        f"analysis: one_op\nname: tiny\nmodel: {models[1]}\nneurons: {located}/general.safetensors\nop: soften=0.5\n"
        "tasks: [political_stance_immigration_pairs]\nlimit: 4\nengine: torch\n"
    )
    two = ["--base", models[1], "--tuned", models[0]]
    options = ["--topics", "immigration", "--prompts", "2", "--top", "20", "--option", "floor=0.1"]
    commands = [
        ["plugins", "--json"],
        ["localize", "plugin", "relative_shift", *two, *options, "--out", str(located)],
        ["run", str(study), "--out", str(answers)],
    ]
    env = {**os.environ, "PYTHONPATH": str(site), "STANCE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USED, json.dumps(commands)], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    listed = [
        row
        for row in json.loads(json.loads(done.stdout.splitlines()[-1])[0])["plugins"]
        if row["package"] == "stance-example"
    ]
    assert {(row["group"], row["name"]) for row in listed} == {
        ("localizers", "relative_shift"),
        ("interventions", "soften"),
        ("analyses", "one_op"),
    }
    assert all(row["error"] is None and row["summary"] for row in listed)
    assert (load_file(located / "neurons.safetensors")["general"]).sum() == 19  # 20% of 2 x 48
    found = json.loads((answers / "findings.json").read_text())
    means = {row["neurons"]: row["nats per token"] for row in found["tables"]["means"]}
    assert len(set(means.values())) == 3 and found["sentences"][0].startswith("scale=0.5 ")
    net = float(found["sentences"][0].split(": ")[1].split(" ")[0])
    assert net == pytest.approx(means["chosen"] - means["random"], abs=6e-4)


def test_the_examples_score_is_the_shift_over_the_size(models, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    from stance_example import relative_shift

    from harness.contrast import Sequence
    from harness.models import load_model

    base, tuned = (load_model(folder, torch.float32) for folder in models)
    prompts = {"a": [Sequence(t.tokens(9))], "b": [Sequence(t.tokens(7, 1), 3)]}
    found = relative_shift(base, tuned, prompts, "mlp_act", "m", top=10.0, advance=lambda _: None, floor=0.5)
    sums = contrasts(base, tuned, prompts, "mlp_act")
    assert found.tokens == {"a": 9, "b": 4}
    assert torch.allclose(found.scores["b"] * (sums["b"].size.cpu() + 0.5), sums["b"].score.cpu())
