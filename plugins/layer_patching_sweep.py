"""The sweep of Layer-Patching over vignettes: expected rating of every text under every patch (arXiv 2510.12229).

One block and one site at a time, at all positions, in both directions. Beside every patch stand its controls:

`shuffled`: the difference donor - recipient at the site, with its dimensions in random order. The step has the very size
of the patch's at every position and no meaning; a patch says something about what the donor carries there only where it
moves the ratings otherwise than such a step does.
`half`: the donor's activations in a random half of the dimensions. A dose, not a null: where a patch's effect is spread
evenly over dimensions it brings about half of it.

Ratings are read by expected value; sampling under a patch runs from a stitched checkpoint (layer_patching_stitch.py).

    table = sweep_ratings(base, tuned, tokenizer, vignettes, PATCH_SITES, [4, 9, 14])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from harness.activations import batches, pad, position_ids
from harness.engines import Tokens
from harness.errors import InputError, ProofError
from plugins.knobe import CONDITIONS
from plugins.knobe_ratings import Asked, Candidates, candidates, cells_of, expectation
from plugins.layer_patching import DIRECTIONS
from plugins.layer_patching_hooks import PATCH_SITES, PatchSite, Trace, check_layers, check_pair, record, resume

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Control = Literal["shuffled", "half"]
CONTROLS: tuple[Control, ...] = get_args(Control)
PATCH, NONE = "patch", "none"
COLUMNS = ["direction", "site", "layer", "kind", "seed", "largest", "item", "condition", "rating"]
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Row:
    """A sequence to run for a text, and what is read of it.

    Attributes:
        text: number of the text.
        sequence: prompt and as much of an answer as must be known to read the next token.
        reads: (candidate, places before the end, token): log P(token) there belongs to the candidate.
    """

    text: int
    sequence: Tokens
    reads: tuple[tuple[int, int, int], ...]


def rows_of(asked: Sequence[Candidates]) -> list[Row]:
    """As few sequences as all candidates of all texts can be read from: candidates that begin alike share one."""
    found: list[Row] = []
    for text, one in enumerate(asked):
        begun = {tuple(answer[:-1]) for answer in one.answers}
        longest = sorted(b for b in begun if not any(len(o) > len(b) and o[: len(b)] == b for o in begun))
        reads: dict[tuple[int, ...], list[tuple[int, int, int]]] = {prefix: [] for prefix in longest}
        for candidate, answer in enumerate(one.answers):
            prefix = next(p for p in longest if list(p[: len(answer) - 1]) == answer[:-1])
            reads[prefix] += [(candidate, len(prefix) - place, token) for place, token in enumerate(answer)]
        found += [Row(text, [*one.prompt, *prefix], tuple(reads[prefix])) for prefix in longest]
    return found


@torch.no_grad()
def sweep_ratings(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vignettes: Sequence[Asked],
    sites: Sequence[PatchSite],
    layers: Sequence[int],
    controls: Sequence[Control] = ("shuffled",),
    seeds: Sequence[int] = (0,),
    batch_tokens: int = BATCH_TOKENS,
) -> pd.DataFrame:
    """Expected ratings under every patch and control, and without any.

    Returns:
        One row per direction, site, layer, kind (patch, shuffled, half), seed (-1 for a patch), item and condition:
        largest (change of an activation, 0 where the models agree there), rating (0 to 10). Rows of kind `none` (site
        empty, layer -1) are the recipient's without a patch.

    Raises:
        InputError: models that do not fit each other, blocks that do not exist, no vignettes, sites or layers.
        ProofError: a site whose patches changed no activation in any of the blocks.
    """
    from harness.progress import bar

    check_pair(base, tuned)
    check_layers(base, layers)
    if not (vignettes and sites and layers):
        raise InputError(
            f"{len(vignettes)} vignettes, {len(sites)} sites, {len(layers)} layers: one of each is needed."
        )
    asked = [candidates(tokenizer, v.prompt(c)) for v in vignettes for c in CONDITIONS]
    rows = rows_of(asked)
    keep = 1 + max(back for row in rows for _, back, _ in row.reads)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    plan = _plan(sites, layers, controls, seeds)
    scores = {
        key: np.zeros((len(asked), len(asked[0].answers))) for key in [(d, *step) for d in DIRECTIONS for step in plan]
    }
    changed = dict.fromkeys(scores, 0.0)
    groups = list(batches([row.sequence for row in rows], batch_tokens))
    with bar(total=len(groups) * len(scores), what="patching") as progress:
        for group in groups:
            batch = [rows[n] for n in group]
            ids, mask = pad([row.sequence for row in batch], int(pad_id), base.device, left=True)  # type: ignore[arg-type]
            inputs = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": position_ids(mask)}
            traces = [record(model, inputs, sites, layers, keep) for model in (base, tuned)]
            for key in scores:
                direction, site, layer, kind, seed = key
                into = direction == DIRECTIONS[0]
                model, (own, donor) = (tuned, (traces[1], traces[0])) if into else (base, (traces[0], traces[1]))
                if kind == NONE:
                    logits = own.logits
                else:
                    given = donated(own, donor, site, layer, kind, seed)
                    difference = (given - own.at[site, layer])[mask]
                    changed[key] = max(changed[key], float(difference.abs().max()))
                    logits = resume(model, inputs, own, site, layer, given, keep)
                _read(scores[key], logits, batch)
                progress.update()
    for direction, site in product(DIRECTIONS, sites):
        if not any(changed[direction, site, layer, PATCH, -1] for layer in layers):
            raise ProofError(
                f"Patching {site} of blocks {', '.join(map(str, layers))} ({direction}) changed no activation; is the donor "
                "the recipient itself, or does the fine-tune begin above these blocks? Sweep later layers or another site."
            )
    return _table(scores, changed, vignettes)


def donated(own: Trace, donor: Trace, site: PatchSite, layer: int, kind: str, seed: int) -> Float[Tensor, "b s d"]:
    """What stands at the site under a patch or a control; dimensions depend on seed, site and layer alone."""
    mine, theirs = own.at[site, layer], donor.at[site, layer]
    if kind == PATCH:
        return theirs
    wide = mine.shape[-1]
    order = torch.from_numpy(np.random.default_rng([seed, layer, PATCH_SITES.index(site)]).permutation(wide)).to(
        mine.device
    )
    if kind == "shuffled":
        return mine + (theirs - mine)[..., order]
    chosen = torch.zeros(wide, dtype=torch.bool, device=mine.device)
    chosen[order[: wide // 2]] = True
    return torch.where(chosen, theirs, mine)


def _plan(
    sites: Sequence[PatchSite], layers: Sequence[int], controls: Sequence[Control], seeds: Sequence[int]
) -> list[tuple[Any, ...]]:
    kinds = [(PATCH, -1), *product(controls, seeds)]
    return [("", -1, NONE, -1), *((site, layer, *kind) for site, layer, kind in product(sites, layers, kinds))]


def _read(scores: Float[np.ndarray, "n k"], logits: Float[Tensor, "b s v"], batch: list[Row]) -> None:
    """Add the log-probabilities that were read from a batch to the candidates' sums."""
    logprobs = torch.log_softmax(logits.float(), -1)
    at = [(r, row.text, *read) for r, row in enumerate(batch) for read in row.reads]
    rows, texts, answers, backs, tokens = (torch.tensor(column) for column in zip(*at, strict=True))
    device = logprobs.device
    picked = logprobs[rows.to(device), logprobs.shape[1] - 1 - backs.to(device), tokens.to(device)]
    np.add.at(scores, (texts.numpy(), answers.numpy()), picked.double().cpu().numpy())


def _table(
    scores: dict[tuple[Any, ...], Float[np.ndarray, "n k"]],
    changed: dict[tuple[Any, ...], float],
    vignettes: Sequence[Asked],
) -> pd.DataFrame:
    def lines() -> Iterator[tuple[Any, ...]]:
        for key, logprobs in scores.items():
            for cell, rating in zip(cells_of(vignettes), expectation(logprobs)[0].tolist(), strict=True):
                yield (*key, changed[key], *cell, rating)

    return pd.DataFrame(lines(), columns=COLUMNS)
