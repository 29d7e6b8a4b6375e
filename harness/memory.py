"""When memory runs out: smaller batches where the work can be divided, else one paragraph that says what takes less.

Answers do not depend on who shares a batch with whom, beyond the rounding that any other batching has.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

from harness.activations import batches
from harness.characters import one_line
from harness.errors import InputError
from harness.progress import note

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error means, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate" in str(error) or "out of memory" in str(error))


def in_batches(sequences: list[list[int]], tokens: int, work: Callable[[list[int]], object]) -> int:
    """`work` on the indices of every batch of at most `tokens` positions, on half as many from where memory runs out.

    What `work` has done of a batch when it raises is done again.

    Returns:
        positions per batch at the end, for the next call.

    Raises:
        InputError: the memory does not hold a single sequence.
    """
    plan = deque(batches(sequences, tokens))
    while plan:
        if _fits(work, plan[0]):
            plan.popleft()
            continue
        longest, left = len(sequences[plan[0][-1]]), [index for batch in plan for index in batch]
        tokens = smaller(longest * len(plan[0]), longest)
        plan = deque([left[n] for n in batch] for batch in batches([sequences[n] for n in left], tokens))
    return tokens


def halving(tokens: int, longest: int, work: Callable[[int], T]) -> T:
    """`work` with so many positions per batch, begun anew with half as many where memory runs out.

    Raises:
        InputError: the memory does not hold a single sequence.
    """
    found: list[T] = []
    while not _fits(lambda size: found.append(work(size)), tokens):
        tokens = smaller(tokens, longest)
    return found[0]


def _fits(work: Callable[[T], object], what: T) -> bool:
    """Do the work; False where memory ran out. What the failed attempt held is free once this has returned."""
    try:
        work(what)
    except Exception as error:
        if out_of_memory(error):
            return False
        raise
    return True


def smaller(tokens: int, longest: int) -> int:
    """Half as many positions per batch, with the memory of the failed attempt given back.

    Raises:
        InputError: that is less than the longest sequence, on its own already.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if tokens <= longest:
        raise InputError(
            f"The memory does not hold one sequence of {longest} tokens beside the model. Give --dtype bfloat16 (or "
            "precision: bfloat16), a shorter text, or a machine with more memory."
        )
    _say()
    return max(tokens // 2, longest)


@cache
def _say() -> None:
    note("memory ran out, so batches are smaller from here on, which changes results by rounding alone.")


@contextmanager
def enough_memory(what: str, less: str) -> Iterator[None]:
    """Around work that cannot be divided. `less`: what would take less memory.

    Raises:
        InputError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = one_line(str(error))[:160] or type(error).__name__
        raise InputError(
            f"{what} ran out of memory ({reason}). Finished steps are kept. Less is taken by {less}."
        ) from None
