from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import tiny as t
import torch

from harness import engines
from harness.engines import Settings, lease
from harness.engines.torch import TorchEngine
from harness.errors import InputError, ProofError
from harness.interventions import Op, applying
from harness.measure import Asked
from harness.models import load_model, weights_hash
from harness.recipe import lora_targets
from harness.sites import MLP_SITES
from harness.steps import measure_step
from harness.variants import Variant, export, materialise

REQUESTS = [(t.tokens(c, seed=c), t.tokens(n, seed=c + 50)) for c, n in ((2, 3), (9, 2), (5, 6))]
HALF = Op(scale=0.5)
pytestmark = pytest.mark.usefixtures("stance_cache")


def scores(folder: str) -> list[float]:
    return [s for s, _ in TorchEngine.from_folder(folder, Settings(max_length=64)).score_continuations(REQUESTS)]


def neurons_of(folder: str, site: str = "mlp_act", **more):
    return t.some_neurons(load_model(folder), site, made_in=weights_hash(folder), **more)


def adapter_of(model, path: Path) -> Path:
    """A LoRA adapter with random A and B on every projection of the blocks."""
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4,
        target_modules=lora_targets(model),
        init_lora_weights=False,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    peft.get_peft_model(model, config).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", t.ARCHITECTURES)
@pytest.mark.parametrize("site", MLP_SITES)
@pytest.mark.parametrize("op", [None, Op(scale=-1.5)], ids=["zero", "scale=-1.5"])
def test_a_materialised_scaling_serves_as_the_hooked_one(folder, name, site, op):
    neurons = neurons_of(folder(name), site)
    engine = TorchEngine.from_folder(folder(name), Settings(max_length=64))
    with applying(engine.model, neurons, op or Op(scale=0.0)):
        hooked = [s for s, _ in engine.score_continuations(REQUESTS)]
    served = scores(materialise(folder(name), None, neurons, op))
    assert served == pytest.approx(hooked, rel=1e-5, abs=1e-5)
    assert served != pytest.approx(scores(folder(name)), abs=1e-2)


@pytest.mark.parametrize("name", t.ARCHITECTURES)
def test_a_merged_adapter_serves_as_pefts_own_forward(folder, tmp_path, name):
    adapter = adapter_of(load_model(folder(name)), tmp_path / "adapter")
    own = peft.PeftModel.from_pretrained(load_model(folder(name)), str(adapter)).eval()
    merged = load_model(materialise(folder(name), adapter))
    expected = t.logits(own, t.tokens(9))
    torch.testing.assert_close(t.logits(merged, t.tokens(9)), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(t.logits(load_model(folder(name)), t.tokens(9)), expected, atol=0.1)


def test_adapter_and_neurons_together(folder, tmp_path):
    adapter, neurons = adapter_of(load_model(folder("llama")), tmp_path / "adapter"), neurons_of(folder("llama"))
    merged = load_model(materialise(folder("llama"), adapter))
    both = load_model(materialise(folder("llama"), adapter, neurons, HALF))
    with applying(merged, neurons, HALF):
        torch.testing.assert_close(t.logits(both, t.tokens(9)), t.logits(merged, t.tokens(9)), atol=1e-5, rtol=1e-5)


def test_nothing_to_change_is_the_models_own_folder(folder):
    assert materialise(folder("llama")) == str(Path(folder("llama")).resolve())


def test_a_variant_is_made_once_and_known_by_what_it_is_made_from(folder, tmp_path):
    neurons = neurons_of(folder("llama"))
    first = materialise(folder("llama"), None, neurons, HALF)
    made = Path(first, "manifest.json").stat().st_mtime_ns
    assert materialise(folder("llama"), None, neurons, HALF) == first
    assert Path(first, "manifest.json").stat().st_mtime_ns == made
    others = [
        materialise(folder("llama"), None, neurons, Op(scale=0.5000001)),
        materialise(folder("llama"), None, neurons_of(folder("llama"), seed=1), HALF),
        materialise(folder("llama"), None, neurons_of(folder("llama"), "mlp_out"), HALF),
        materialise(folder("llama"), adapter_of(load_model(folder("llama")), tmp_path / "a"), neurons, HALF),
        materialise(folder("mistral"), None, neurons_of(folder("mistral")), HALF),
    ]
    assert len({first, *others}) == 6


def test_the_variants_dtype_is_the_checkpoints(tmp_path):
    folder = t.save(t.build("llama").bfloat16(), tmp_path / "base")
    adapter = adapter_of(t.build("llama"), tmp_path / "adapter")
    assert load_model(materialise(folder, adapter, neurons_of(folder), HALF)).dtype == torch.bfloat16


def test_neurons_of_a_model_serve_its_descendants(folder, tmp_path):
    child = t.save(t.with_other_mlps(load_model(folder("llama"))), tmp_path / "child")
    neurons = neurons_of(folder("llama"))
    with pytest.raises(InputError, match="were found in a model"):
        materialise(child, None, neurons, HALF)
    Path(child, "manifest.json").write_text(json.dumps({"lineage": [weights_hash(folder("llama"))]}))
    assert scores(materialise(child, None, neurons, HALF)) != pytest.approx(scores(child), abs=1e-3)


def test_neurons_of_another_model_are_refused_even_where_the_variant_is_cached(folder):
    neurons = neurons_of(folder("llama"))
    materialise(folder("llama"), None, neurons, HALF)
    with pytest.raises(InputError, match="were found in a model"):
        materialise(folder("llama"), None, replace(neurons, model="another"), HALF)
    reshaped = replace(neurons, mask=neurons.mask.view(t.LAYERS * 2, -1))
    with pytest.raises(InputError, match="come from another model"):
        materialise(folder("llama"), None, reshaped, HALF)


def test_no_neurons_at_all_are_refused(folder):
    with pytest.raises(ProofError, match="the set is empty"):
        materialise(folder("llama"), None, neurons_of(folder("llama"), share=0.0), HALF)


def test_an_adapter_of_other_weights_is_refused(folder, tmp_path):
    adapter = adapter_of(load_model(folder("llama")), tmp_path / "adapter")
    (adapter / "manifest.json").write_text(json.dumps({"lineage": ["f" * 64]}))
    with pytest.raises(InputError, match=f"trained on weights {'f' * 12}"):
        materialise(folder("llama"), adapter)
    (adapter / "manifest.json").write_text(json.dumps({"lineage": [weights_hash(folder("llama"))]}))
    assert materialise(folder("llama"), adapter) != folder("llama")


@pytest.mark.parametrize(
    "other",
    [{"hidden_size": 64}, {"intermediate_size": 40}, {"num_hidden_layers": 2}, {"num_hidden_layers": 4}],
    ids=str,
)
def test_an_adapter_of_another_shape_is_refused(folder, tmp_path, other):
    adapter = adapter_of(t.build("llama", **other), tmp_path / "adapter")
    with pytest.raises(InputError, match="give the model it was made for"):
        materialise(folder("llama"), adapter)


def test_an_adapter_of_another_architecture_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="give the model it was made for"):
        materialise(folder("llama"), adapter_of(t.build("gpt_neox"), tmp_path / "adapter"))


def test_a_folder_that_is_no_adapter_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        materialise(folder("llama"), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        materialise(folder("llama"), tmp_path)


def test_an_exported_checkpoint_is_the_served_variant(folder, tmp_path):
    llama, neurons = folder("llama"), neurons_of(folder("llama"), "mlp_act")
    made = export(tmp_path / "out", llama, None, neurons, HALF)
    assert made["effect"]["changed_weights"] > 0
    assert scores(str(tmp_path / "out")) == scores(materialise(llama, None, neurons, HALF))
    with pytest.raises(InputError, match="not empty"):
        export(tmp_path / "out", llama, None, neurons, HALF)
    with pytest.raises(InputError, match="nothing to export"):
        export(tmp_path / "other", llama, None, None, None)
    with pytest.raises(InputError, match="cannot be written into weights"):
        export(tmp_path / "other", llama, None, neurons, Op(scale=0.0, shift=1.0))
    with pytest.raises(InputError, match="mlp_act, mlp_out"):
        export(tmp_path / "other", llama, None, neurons_of(llama, "resid_post"), HALF)


class WithAdapters:
    """The Torch engine in the place of one that computes adapters beside the base; what it is told is kept."""

    def __init__(self, folder: str, settings: Settings) -> None:
        self.folder, self.told = folder, []
        self.inner = TorchEngine.from_folder(folder, replace(settings, adapters="merge"))

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def adapt(self, adapter):
        self.told.append(adapter)
        self.inner.swap(materialise(self.folder, Path(adapter)) if adapter else self.folder)
        return 0.5


def test_an_adapter_beside_the_base_is_measured_on_the_base(tmp_path, monkeypatch):
    long = t.save(t.build("llama", max_position_embeddings=1024), tmp_path / "base")
    variant = Variant(long, adapter_of(load_model(long), tmp_path / "adapter"))
    asked, settings = Asked(("political_stance_race_pairs",), limit=2), Settings(dtype="float32")
    merged = measure_step(tmp_path / "merged", variant, asked, engine="torch", settings=settings)
    base = measure_step(tmp_path / "plain", Variant(long), asked, engine="torch", settings=settings)
    started = []

    def start(_name, folder, settings):
        started.append(WithAdapters(folder, settings))
        return started[-1]

    monkeypatch.setattr(engines, "start", start)
    settings = replace(settings, adapters="request")
    beside = measure_step(tmp_path / "beside", variant, asked, engine="torch", settings=settings)
    lease.release()
    assert [engine.folder for engine in started] == [long]
    assert started[0].told == [str(variant.adapter), None]
    results = [json.loads((run.path / "results.json").read_text())["results"] for run in (merged, beside, base)]
    assert results[0] == results[1] != results[2]
    assert beside.spec["adapters"] == "request" and "adapters" not in merged.spec
    assert beside.manifest["effect"] == {"adapter": {"largest_change": 0.5}}
    assert merged.manifest["effect"]["adapter"]["changed_weights"] > 0 and "effect" not in base.manifest


def test_answers_from_the_cache_come_with_the_effect_they_were_given_under(tmp_path):
    """The op changed something when the answers were made; a run that only reads them states it too."""
    long = t.save(t.build("llama", max_position_embeddings=1024), tmp_path / "base")
    neurons = t.some_neurons(load_model(long), "mlp_act", made_in=weights_hash(long))
    neurons.save(tmp_path / "some.safetensors")
    variant = Variant(long, neurons=tmp_path / "some.safetensors", op=Op.parse("zero"))
    asked, settings = Asked(("political_stance_race_pairs",), limit=2), Settings(dtype="float32")
    first, second = (
        measure_step(tmp_path / name, variant, asked, engine="torch", settings=settings) for name in ("first", "second")
    )
    assert first.manifest["requests"]["asked"] and second.manifest["requests"] == {
        "asked": 0,
        "from_cache": first.manifest["requests"]["asked"],
    }
    assert second.manifest["effect"] == first.manifest["effect"] and first.manifest["effect"]["largest_change"] > 0
