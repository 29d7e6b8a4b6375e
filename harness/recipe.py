"""What is trained, and how: the recipe of a fine-tune and the modules that it reaches.

LoRA adapts attention and MLP projections alike, so that holding MLP neurons can act.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from harness.errors import InputError, choices
from harness.sites import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Recipe(BaseModel):
    """How to train. Defaults follow InhibitFT's published LoRA recipe (arXiv 2508.02360) except `batch_size`.

    `only`: patterns (`*.mlp.*`) of the names of the linear maps that are trained; empty for everything.
    `group_by_length` puts examples of like length into a batch, which saves padding and changes their order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["lora", "full"] = "lora"
    epochs: float = Field(6, gt=0)
    learning_rate: float = Field(2e-5, gt=0)
    batch_size: int = Field(8, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    max_length: int = Field(1024, ge=8)
    group_by_length: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoints: bool = True
    only: list[str] = []


def lora_targets(model: torch.nn.Module) -> list[str]:
    """Names of every linear map inside the decoder blocks: attention and MLP."""
    from transformers.pytorch_utils import Conv1D

    layers = decoder_layers(model)
    names = {
        name.rsplit(".", 1)[-1] if "." in name else name
        for name, module in layers[0].named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }
    return sorted(names)


def chosen_modules(model: torch.nn.Module, patterns: list[str]) -> list[str]:
    """Names of the linear maps of the decoder blocks that a pattern (fnmatch) names.

    Raises:
        InputError: a pattern that names none.
    """
    from transformers.pytorch_utils import Conv1D

    blocks = {id(module) for module in decoder_layers(model).modules()}
    names = [
        name
        for name, module in model.named_modules()
        if id(module) in blocks and isinstance(module, (torch.nn.Linear, Conv1D))
    ]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise InputError(f"recipe.only names {pattern!r}, which fits no module; modules: {choices(names[:12])} ...")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def freeze_but(model: torch.nn.Module, patterns: list[str]) -> None:
    """Leave the weights and biases of the chosen modules trainable, and nothing else."""
    model.requires_grad_(False)
    for name in chosen_modules(model, patterns):
        model.get_submodule(name).requires_grad_(True)


def with_lora(base: PreTrainedModel, recipe: Recipe) -> Any:
    """The model under a new LoRA adapter that changes nothing yet (peft's)."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = lora_targets(base)
    if recipe.only:
        targets = [name for name in chosen_modules(base, recipe.only) if name.rsplit(".", 1)[-1] in targets]
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in base.modules()),
    )
    return get_peft_model(base, config)
