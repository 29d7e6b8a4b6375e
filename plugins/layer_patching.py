"""Layer-Patching as a sweep over layers and sites (arXiv 2510.12229): where does a fine-tune's change sit?

recovery = (patched - recipient) / (donor - recipient)
`patched` is the recipient's score while it carries the donor's activations after one layer, at one site, at all
positions: 0 says that the patch changes nothing, 1 that the recipient scores like the donor; neither is a bound.
Both directions are swept: base into tuned asks which layers take the change back, tuned into base which bring it about.

`resid_post` after block l is everything the donor's blocks 0..l wrote, so recovery after the last block is 1 by
construction, and a rise over layers says where the change is complete, not where it is made. Early and middle layers
and the sites inside a block are what inform, beside as many random neurons per layer.

Does nothing where base and tuned score alike: there is no difference to recover, and a share of noise is refused.

    sweep(score, range(30), ("resid_post", "mlp_out"), base=0.24, tuned=1.60)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal, get_args

import pandas as pd

from harness.characters import shown
from harness.errors import InputError, choices

Direction = Literal["base_into_tuned", "tuned_into_base"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
LEAST = 0.05  # in the score's units; a sensible value is the noise floor of base against base
COLUMNS = ["direction", "site", "layer", "recipient", "donor", "patched", "recovery"]


def recovery(patched: float, recipient: float, donor: float, least: float = LEAST) -> float:
    """The share of the donor-recipient difference that a patch brings back; NaN where the patched score is NaN.

    Raises:
        InputError: donor and recipient differ by less than `least` (in the score's units), or either is not a number.
    """
    if not math.isfinite(least) or least <= 0:
        raise InputError(f"`least` is {least}; expected a positive difference in the score's units.")
    if not (math.isfinite(recipient) and math.isfinite(donor)):
        raise InputError(f"The scores are {recipient} and {donor}; both models need a finite score without a patch.")
    if abs(donor - recipient) < least:
        raise InputError(
            f"The models score {recipient:.6g} and {donor:.6g}, which differ by {abs(donor - recipient):.3g}, less than "
            f"{least:.3g} (`least`): there is too little to divide by. Fine-tune further, measure with more items, or lower "
            "`least` if the noise floor allows it."
        )
    return (patched - recipient) / (donor - recipient)


def sweep(
    score: Callable[[int, str, Direction], float],
    layers: Sequence[int],
    sites: Sequence[str],
    base: float,
    tuned: float,
    least: float = LEAST,
) -> pd.DataFrame:
    """Recovery at every layer and site, in both directions.

    Args:
        score: (layer, site, direction) -> the recipient's score under that patch; NaN where it could not be scored.
        layers: block numbers from 0, each patched by itself.
        base: the base's score without a patch; `tuned` likewise, in the same units.
        least: the smallest difference of the two that is divided by, in the score's units.

    Returns:
        One row per direction, site and layer, in that order: direction, site, layer, recipient, donor, patched
        (scores), recovery (a share).

    Raises:
        InputError: no layers or sites, one of them twice, a negative layer, or as `recovery`; before the first patch.
    """
    for name, given in (("layers", list(layers)), ("sites", list(sites))):
        if not given or len(set(given)) < len(given):
            raise InputError(f"`{name}` is {shown(given)}; expected at least one, each of them once.")
    if below := [layer for layer in layers if layer < 0]:
        raise InputError(f"Layers are counted from 0 up, came {choices(below)}.")
    recovery(base, base, tuned, least)
    rows = []
    for direction, site, layer in product(DIRECTIONS, sites, layers):
        donor, recipient = (base, tuned) if direction == "base_into_tuned" else (tuned, base)
        patched = float(score(layer, site, direction))
        share = recovery(patched, recipient, donor, least)
        rows.append((direction, site, layer, recipient, donor, patched, share))
    return pd.DataFrame(rows, columns=COLUMNS)
