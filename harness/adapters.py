"""LoRA adapters from anywhere: their settings checked before peft reads them, and merged with a proof that they act.

peft imports modules, un-pickles caches and runs patterns that an adapter's settings name. Here settings are taken that say
what is adapted and how much, names are names, and weights are safetensors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open

from harness.characters import one_line
from harness.checksums import digest, file_hash, intact
from harness.documents import read_object
from harness.errors import InputError, ProofError, choices
from harness.models import weights_hash
from harness.topics.explain import explain

PLAIN = re.compile(r"[\w.-]{1,200}")
# What peft writes beside these into every adapter; it acts only where a key that is refused is set.
SILENT = {
    *(
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
        "auto_mapping",
        "megatron_core",
        "task_type",
    ),
    *("qalora_group_size", "runtime_config", "loftq_config"),
}


class AdapterConfig(BaseModel):
    """The settings of adapter_config.json that may be set."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    peft_type: Literal["LORA"]
    r: int = Field(ge=1, le=65536)
    lora_alpha: float = Field(8, allow_inf_nan=False)
    lora_dropout: float = Field(0.0, ge=0, le=1)
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_pattern: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool | Literal["gaussian"] = True
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False

    @field_validator(
        "target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern"
    )
    @classmethod
    def _plain_names(cls, names: Any) -> Any:
        for name in [names] if isinstance(names, str) else names or ():
            if not PLAIN.fullmatch(name):
                raise ValueError("holds a pattern; expected names of modules, of letters, digits, `_`, `.` and `-`")
        return names


def adapter_config(adapter: Path) -> AdapterConfig:
    """The settings of an adapter's folder.

    Raises:
        InputError: no LoRA adapter in safetensors, an unfinished or an altered one, or settings that are not taken.
    """
    config = adapter / "adapter_config.json"
    if not config.is_file():
        intact(adapter)
        raise InputError(
            f"{adapter} has no adapter_config.json; expected a LoRA adapter, such as `stance tune` writes."
        )
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter} has no adapter_model.safetensors; adapters in other formats are not read.")
    try:
        read = AdapterConfig.model_validate(read_object(config))
    except ValidationError as error:
        raise InputError(f"{config}: {explain(error, AdapterConfig)}") from None
    if odd := [
        key
        for key, value in (read.model_extra or {}).items()
        if key not in SILENT and value is not None and value is not False
    ]:
        raise InputError(
            f"{config} sets {choices(key[:60] for key in odd[:5])}, which is not taken: peft may import or un-pickle what it "
            "names. Merge the adapter with peft, where you trust it, and give the merged model."
        )
    return read


def adapter_hash(adapter: Path) -> str:
    """What an adapter does to its base: its weights, and the settings that act (a scale, say), not where it was made.

    Raises:
        InputError: as `adapter_config`.
    """
    adapter_config(adapter)
    settings = read_object(adapter / "adapter_config.json")
    acting = {key: value for key, value in settings.items() if key not in SILENT}
    return digest([file_hash(adapter / "adapter_model.safetensors"), acting])


def check_adapter(adapter: Path, folder: str) -> AdapterConfig:
    """The adapter's settings, if it fits this base.

    Raises:
        InputError: as `adapter_config`, or an adapter made for another base.
    """
    read = adapter_config(adapter)
    if manifest := intact(adapter):
        lineage = manifest.get("lineage")
        made_from = str(lineage[0]) if isinstance(lineage, list) and lineage else ""
        mine = weights_hash(folder)
        if made_from != mine:
            raise InputError(
                f"Adapter {adapter} was trained on weights {made_from[:12]}, this model has {mine[:12]}; "
                "give the model it was trained on."
            )
    return read


def merged(model: Any, adapter: Path) -> tuple[Any, dict[str, float]]:
    """The model with the adapter in its weights, in its own precision, and how much of the adapted weights that changed.

    Raises:
        InputError: an adapter of another shape, or one that cannot be read.
        ProofError: no weight changed.
    """
    from peft import PeftModel, get_peft_model_state_dict

    dtype = next(model.parameters()).dtype
    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            stored = {key for key in file.keys() if ".lora_" in key}  # noqa: SIM118
        wrapped = PeftModel.from_pretrained(model.float(), str(adapter))
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, SafetensorError, OSError) as error:
        reason = one_line(str(error))[:200]
        raise InputError(
            f"Adapter {adapter} does not fit this model ({reason}); give the model it was made for."
        ) from None
    expected = {key for key in get_peft_model_state_dict(wrapped, save_embedding_layers=False) if ".lora_" in key}
    if stored != expected:
        odd = sorted(stored ^ expected)[0]
        raise InputError(
            f"Adapter {adapter} and this model have different layers (first: {odd}); give the model it was made for."
        )
    effect = _merge(wrapped, dtype)
    if not effect["changed_weights"] and not any(".modules_to_save." in key for key, _ in wrapped.named_parameters()):
        raise ProofError(
            f"Adapter {adapter} changed none of {effect['adapted_weights']:,} weights (in {dtype}, which is served): it is "
            "the base. Give an adapter that was trained."
        )
    return wrapped.unload().to(dtype), effect  # type: ignore[operator]


@torch.no_grad()
def _merge(wrapped: Any, dtype: torch.dtype) -> dict[str, float]:
    """Merge layer by layer, which holds one layer twice instead of the model."""
    from peft.tuners.lora import LoraLayer

    adapted = changed = 0
    largest = 0.0
    for layer in wrapped.modules():
        if not isinstance(layer, LoraLayer):
            continue
        base: Any = layer.get_base_layer()
        before = base.weight.to(dtype, copy=True)
        layer.merge()
        moved = (base.weight.to(dtype).float() - before.float()).abs()
        if not torch.isfinite(moved).all():
            raise InputError("The adapter holds weights that are no finite numbers; train it anew.")
        adapted += moved.numel()
        changed += int((moved > 0).sum())
        largest = max(largest, float(moved.max()))
    return {"adapted_weights": adapted, "changed_weights": changed, "largest_change": largest}
