"""Adapters that vLLM computes beside the base, request by request: which ones it can."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from harness.adapters import adapter_config
from harness.errors import InputError

MOST_RANK = 64


def check_beside(adapter: Path) -> None:
    """Refuse what has to be merged.

    Raises:
        InputError: an adapter of too high a rank, or of the embeddings or the head.
    """
    rank = adapter_config(adapter).r
    if rank > MOST_RANK:
        raise InputError(
            f"{adapter} has rank {rank}; up to {MOST_RANK} are served beside the base. Use adapters=merge."
        )
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        outside = [key for key in file.keys() if ".layers." not in key and ".h." not in key]  # noqa: SIM118
    if outside:
        raise InputError(f"{adapter} changes {outside[0]}, which is served merged alone. Use adapters=merge.")
