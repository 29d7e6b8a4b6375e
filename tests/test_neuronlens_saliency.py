"""NeuronLens' saliency over all layers, against a loop over layers and sequences."""

from __future__ import annotations

import copy

import pytest
import tiny as t
import torch

from harness.errors import InputError
from harness.sites import SITES, decoder_layers, mlps
from plugins.neuronlens_saliency import saliency

LEFT = [t.tokens(length, seed=length) for length in (5, 11, 3, 8)]
RIGHT = [t.tokens(length, seed=20 + length) for length in (4, 9, 2, 7, 10)]


def naive(model, site: str, ids: list[int]) -> torch.Tensor:
    """[l, n] at the last token, one hook and one pass per layer."""
    rows = []
    for block, mlp in zip(decoder_layers(model), mlps(model), strict=True):
        seen = []

        def keep(_module, args, out, seen=seen):
            out = out[0] if isinstance(out, tuple) else out
            seen.append((args[0] if site == "mlp_act" else out)[0, -1])

        handle = (block if site == "resid_post" else mlp.down.module).register_forward_hook(keep)
        t.logits(model, ids)
        handle.remove()
        rows.append(seen[0])
    return torch.stack(rows)


@pytest.mark.parametrize("name", t.ARCHITECTURES)
@pytest.mark.parametrize("site", SITES)
def test_both_kinds_equal_the_loop(tiny, name, site):
    model = copy.deepcopy(tiny(name)).double()
    left, right = (torch.stack([naive(model, site, ids) for ids in side]) for side in (LEFT, RIGHT))
    spread = ((left.var(0, correction=0) + right.var(0, correction=0)) / 2).sqrt()
    wanted = {"mean": torch.cat([left, right]).abs().mean(0), "distance": (left.mean(0) - right.mean(0)).abs() / spread}
    for kind, scores in wanted.items():
        for batch_tokens in (1, 24, 2048):
            found = saliency(model, LEFT, RIGHT, site, kind, batch_tokens)
            torch.testing.assert_close(found, scores, rtol=1e-6, atol=1e-6)
        swapped = saliency(model, RIGHT, LEFT, site, kind)
        torch.testing.assert_close(swapped, found, rtol=1e-9, atol=1e-9)


def test_two_equal_sides_have_no_distance(tiny):
    assert saliency(tiny("llama"), LEFT, LEFT, kind="distance").max() < 1e-5
    assert saliency(tiny("llama"), LEFT, RIGHT, kind="distance").min() > 0


def test_wrong_input_is_refused(tiny):
    model = tiny("llama")
    for left, right in ((LEFT[:1], RIGHT), (LEFT, []), (LEFT, [[5], []])):
        with pytest.raises(InputError, match="expected two or more of each"):
            saliency(model, left, right)
    with pytest.raises(InputError, match="kind is 'size'"):
        saliency(model, LEFT, RIGHT, kind="size")
    with pytest.raises(InputError, match="no site 'gate'"):
        saliency(model, LEFT, RIGHT, "gate")
