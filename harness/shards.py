"""Weights of which every process has some rows (FSDP): what is where.

transformers loads a model so (`models.load_model` with `shards`), and its Trainer leaves the rows where they are.
"""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor
from torch.distributed.tensor import DTensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: all of it, or some rows. Without gradients, writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor, rows: Bool[Tensor, " r"]) -> Tensor:
    """Numbers of the rows, within what this process has of the tensor."""
    own = own_part(tensor)
    first = tensor.__create_chunk_list__()[0].offsets[0] if isinstance(tensor, DTensor) and len(own) else 0
    return rows[first : first + len(own)].nonzero()[:, 0].to(own.device)
