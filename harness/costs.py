"""What a model costs: parameters, bytes, and the rate at which this machine multiplies matrices.

seconds = operations per parameter x parameters / (rate x EFFICIENCY)
"""

from __future__ import annotations

import re
import time
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from harness.recipe import Recipe, chosen_modules, lora_targets

# Share of the measured rate that whole steps reach, with what they spend beside the model's products.
EFFICIENCY = 0.6
SIDE = {"cpu": 512, "cuda": 4096}  # of the products that a rate is measured on
OWN_FILES = 30_000  # bytes: manifest.json, an adapter's or a model's configuration
BYTES_PER_DOCUMENT = 500  # of a measurement's samples and results; text varies
_NAMED = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([bm])(?![a-z0-9])", re.IGNORECASE)


class ModelCost:
    """Parameters and bytes of a model's folder, without its weights; or, where it is not here, what its name says."""

    def __init__(self, name: str, folder: str | None) -> None:
        self.name, self.folder = name, folder

    @cached_property
    def _skeleton(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from harness.models import load_config, quiet

        assert self.folder is not None
        with torch.device("meta"), quiet():
            return AutoModelForCausalLM.from_config(load_config(self.folder))

    @cached_property
    def parameters(self) -> float | None:
        """Those that are multiplied: all but input embeddings that are not the head as well. None where nothing says."""
        if self.folder is None:
            said = _NAMED.findall(self.name.rsplit("/", 1)[-1])
            return float(said[-1][0]) * (1e9 if said[-1][1].lower() == "b" else 1e6) if said else None
        inner, head = self._skeleton.get_input_embeddings(), self._skeleton.get_output_embeddings()
        count = sum(parameter.numel() for parameter in self._skeleton.parameters())
        tied = head is not None and head.weight is inner.weight
        return count - (0 if tied else inner.weight.numel())

    @property
    def source(self) -> str:
        """Where the count of parameters comes from."""
        if self.folder is not None:
            return "from its configuration"
        return "by its name; it is not on this machine" if self.parameters else "unknown: it is not on this machine"

    @property
    def dtype(self) -> str:
        """In which the checkpoint is stored, and which `auto` runs it in."""
        if self.folder is None:
            return "bfloat16"
        from harness.models import load_config

        return str(getattr(load_config(self.folder), "dtype", None) or "float32").removeprefix("torch.")

    @property
    def weights(self) -> int | None:
        """Bytes of a copy with its tokenizer."""
        if self.folder is None:
            return None if self.parameters is None else int(2 * self.parameters)
        return sum(f.stat().st_size for f in Path(self.folder).iterdir() if f.is_file())

    def adapter(self, recipe: Recipe) -> int | None:
        """Bytes of a LoRA adapter in float32, with the tokenizer that is kept beside it."""
        if self.folder is None:
            return None
        modules, targets = dict(self._skeleton.named_modules()), lora_targets(self._skeleton)
        names = chosen_modules(self._skeleton, recipe.only or ["*"])
        shapes = [modules[name].weight.shape for name in names if name.rsplit(".", 1)[-1] in targets]
        beside = [f for f in Path(self.folder).iterdir() if f.name.startswith(("tokenizer", "vocab", "merges"))]
        return 4 * recipe.rank * sum(sum(shape) for shape in shapes) + sum(f.stat().st_size for f in beside) + OWN_FILES

    @property
    def layers(self) -> int | None:
        return None if self.folder is None else int(self._skeleton.config.get_text_config().num_hidden_layers)

    def neurons(self, sets: int) -> int | None:
        """Bytes of scores of every MLP neuron, float32, of so many sets."""
        if self.folder is None:
            return None
        config = self._skeleton.config.get_text_config()
        width = int(getattr(config, "intermediate_size", 0) or 4 * config.hidden_size)
        return 4 * sets * int(config.num_hidden_layers) * width + OWN_FILES

    def seconds(self, work: float, dtype: str) -> float | None:
        """Time of so many operations per parameter on this machine."""
        if self.parameters is None:
            return None
        return work * self.parameters / (rate(dtype) * EFFICIENCY)


@lru_cache(maxsize=4)
def rate(dtype: str, lasting: float = 0.5) -> float:
    """Floating-point operations a second of a linear map: the fastest of those of about so many seconds.

    The fastest, since other programs take their share of a machine by turns.
    """
    import torch
    from torch.nn.functional import linear

    from harness.models import device
    from harness.process import quicken_float32

    place = device()
    if place == "cpu" and dtype == "float32":
        quicken_float32()
    side = SIDE[place]
    x = torch.randn(side, side, device=place).to(getattr(torch, dtype))
    repeats = 1 if place == "cpu" else 100
    fastest, begun = float("inf"), time.perf_counter()
    linear(x, x)  # the first also chooses kernels
    while time.perf_counter() - begun < lasting or fastest == float("inf"):
        before = time.perf_counter()
        for _ in range(repeats):
            linear(x, x)
        if place != "cpu":
            torch.cuda.synchronize()
        fastest = min(fastest, (time.perf_counter() - before) / repeats)
    return 2 * side**3 / fastest
