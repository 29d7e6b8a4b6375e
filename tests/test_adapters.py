"""Adapters from anywhere: settings that would import or un-pickle are refused, and one without effect is no variant."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.adapters import adapter_config
from harness.checksums import intact
from harness.errors import InputError, ProofError
from harness.models import load_config, load_model, load_tokenizer, resolve
from harness.variants import Variant, materialise

pytestmark = pytest.mark.usefixtures("stance_cache")


@pytest.fixture
def adapter(folder, tmp_path: Path) -> Path:
    """A LoRA adapter of the tiny Llama, with weights."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(load_model(folder("llama")), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def changed(adapter: Path, **keys: object) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return adapter


def test_a_merged_adapter_states_what_it_changed(folder, adapter: Path) -> None:
    assert adapter_config(adapter).r == 4
    made = intact(Path(materialise(folder("llama"), adapter)))["effect"]["adapter"]
    assert made["changed_weights"] > 0.9 * made["adapted_weights"] and made["largest_change"] > 0
    assert Variant(folder("llama"), adapter).effect() == made and Variant(folder("llama")).effect() is None


def test_another_scale_is_another_variant_and_another_place_of_the_base_is_none(folder, adapter: Path) -> None:
    base = folder("llama")
    served, spec = materialise(base, adapter), Variant(base, adapter).spec()
    changed(adapter, base_model_name_or_path="elsewhere", peft_version="9")
    assert materialise(base, adapter) == served and Variant(base, adapter).spec() == spec
    changed(adapter, lora_alpha=64)
    assert materialise(base, adapter) != served and Variant(base, adapter).spec() != spec


@pytest.mark.parametrize("factor", [0.0, 1e-30, float("nan")])
def test_an_adapter_that_changes_nothing_or_breaks_is_refused(folder, adapter: Path, factor: float) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    scaled = {k: v * factor if "lora_B" in k else v for k, v in weights.items()}
    save_file(scaled, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError if factor != factor else ProofError, match=r"no finite|changed none"):
        materialise(folder("llama"), adapter)


@pytest.mark.parametrize(
    "keys",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"corda_config": {"cache_file": "x.pt"}},
        {"eva_config": {"rho": 2.0}},
        {"trainable_token_indices": [1]},
        {"target_modules": "(a|a)*b"},
        {"target_modules": ["(a+)+$"]},
        {"rank_pattern": {"(a+)+$": 4}},
        {"init_lora_weights": "corda"},
        {"peft_type": "PROMPT_TUNING"},
        {"r": 0},
        {"r": "4"},
        {"lora_alpha": float("inf")},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_settings_that_reach_out_or_make_no_sense_are_refused(adapter: Path, keys: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        adapter_config(changed(adapter, **keys))


def test_other_formats_and_broken_weights_are_refused(folder, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(InputError, match="does not fit this model"):
        materialise(folder("llama"), adapter)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="other formats are not read"):
        materialise(folder("llama"), adapter)


def test_a_models_own_code_is_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    own = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    for load in (load_config, load_model, load_tokenizer):
        with pytest.raises(InputError, match=r"is never run|architecture"):
            load(resolve(str(tmp_path)))
    assert not ran.exists()


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"model_type": 7}', "{" * 2000, '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_config_that_is_none_is_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["model.bin", "pytorch_model.bin", "model.pt", "model.zip", "model.tar.gz", "model.gguf"]
)
def test_archives_and_pickles_are_no_models(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    for given in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=r"other formats are not read|has no config\.json"):
            resolve(str(given))
