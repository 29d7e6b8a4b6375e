from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import InputError
from harness.neurons import FORMAT, Neurons

MASK = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 0]], dtype=torch.bool)
SCORES = torch.tensor([[0.1, 0.9, 9.0, 9.0, 0.5, 9.0], [9.0, 0.4, 0.8, 0.3, 9.0, 9.0]])
ONE = Neurons(MASK, "mlp_act", "model-a", SCORES)
OTHER = Neurons(MASK.roll(1, 1), "mlp_act", "model-a")


def members(neurons: Neurons) -> set[tuple[int, int]]:
    return {(layer, i) for layer in range(len(neurons.mask)) for i in neurons.indices(layer).tolist()}


def test_members_counts_and_layers():
    assert len(ONE) == 6 and ONE.per_layer == [3, 3]
    assert members(ONE) == {(0, 0), (0, 1), (0, 4), (1, 1), (1, 2), (1, 3)}


@pytest.mark.parametrize("scores", [SCORES, None])
def test_loading_gives_what_was_saved(tmp_path, scores):
    saved = replace(ONE, scores=scores)
    saved.save(tmp_path / "n.safetensors")
    loaded = Neurons.load(tmp_path / "n.safetensors")
    assert torch.equal(loaded.mask, saved.mask) and (loaded.site, loaded.model) == ("mlp_act", "model-a")
    assert loaded.scores is None if scores is None else torch.equal(loaded.scores, scores)


def test_a_transposed_mask_can_be_saved(tmp_path):
    Neurons(MASK.T, "mlp_act", "m").save(tmp_path / "n.safetensors")
    assert torch.equal(Neurons.load(tmp_path / "n.safetensors").mask, MASK.T)


def test_set_algebra_is_that_of_sets():
    a, b = members(ONE), members(OTHER)
    assert a != b and a & b
    assert (members(ONE & OTHER), members(ONE | OTHER), members(ONE - OTHER)) == (a & b, a | b, a - b)
    assert ONE.jaccard(OTHER) == len(a & b) / len(a | b)


def test_jaccard_of_two_empty_sets_is_one():
    assert (ONE - ONE).jaccard(OTHER - OTHER) == 1.0


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.01, {(0, 1)}),
        (1 / 6, {(0, 1)}),
        (0.5, {(0, 1), (1, 2), (0, 4)}),
        (5 / 6, {(0, 1), (1, 2), (0, 4), (1, 1), (1, 3)}),
        (1.0, members(ONE)),
    ],
)
def test_top_share_takes_the_best_members_over_all_layers(share, expected):
    assert members(ONE.top(share)) == expected


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_share_outside_its_range_is_refused(share):
    with pytest.raises(InputError, match="share is"):
        ONE.top(share)


def test_share_of_an_empty_or_unscored_set_is_refused():
    with pytest.raises(InputError, match="no neurons"):
        (ONE - ONE).top(0.5)
    with pytest.raises(InputError, match="no scores"):
        OTHER.top(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_random_control_has_as_many_per_layer_and_none_of_the_excluded(seed):
    mask = torch.zeros(4, 50, dtype=torch.bool)
    for layer, count in enumerate((0, 3, 10, 25)):
        mask[layer, :count] = True
    chosen = Neurons(mask, "mlp_act", "m")
    control = chosen.random_like(seed, exclude=chosen)
    assert control.per_layer == chosen.per_layer
    assert len(control & chosen) == 0


def test_random_control_fills_up_from_the_excluded_where_too_few_are_left():
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[0, :7] = True
    chosen = Neurons(mask, "mlp_act", "m")
    control = chosen.random_like(0, exclude=chosen)
    assert len(control) == 7 and len(control - chosen) == 3


def test_random_control_depends_on_the_seed_alone():
    wide = Neurons(torch.arange(200).remainder(4).eq(0).view(2, 100), "mlp_act", "m")
    assert torch.equal(wide.random_like(1).mask, wide.random_like(1).mask)
    assert not torch.equal(wide.random_like(1).mask, wide.random_like(2).mask)


@pytest.mark.parametrize(
    "stranger",
    [
        Neurons(MASK, "mlp_out", "model-a"),
        Neurons(MASK, "mlp_act", "model-b"),
        Neurons(MASK[:, :5], "mlp_act", "model-a"),
        Neurons(MASK[:1], "mlp_act", "model-a"),
    ],
    ids=["site", "model", "width", "layers"],
)
def test_sets_of_different_address_do_not_combine(stranger):
    combine = (ONE.__and__, ONE.__or__, ONE.__sub__, ONE.jaccard, lambda s: ONE.random_like(0, exclude=s))
    for operation in combine:
        with pytest.raises(InputError, match="cannot be combined"):
            operation(stranger)


def test_a_model_they_do_not_belong_to_is_refused():
    ONE.check_model(6, 2, ["tuned", "model-a"])
    with pytest.raises(InputError, match="the model has 2 x 7"):
        ONE.check_model(7, 2, ["model-a"])
    with pytest.raises(InputError, match="the model has 3 x 6"):
        ONE.check_model(6, 3, ["model-a"])
    with pytest.raises(InputError, match="were found in a model"):
        ONE.check_model(6, 2, ["model-b"])


def truncated(path):
    ONE.save(path)
    path.write_bytes(path.read_bytes()[:-20])


BAD_FILES = {
    "pickle": lambda path: path.write_bytes(pickle.dumps({"mask": [1]})),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncated,
    "no metadata": lambda path: save_file({"mask": MASK.to(torch.uint8)}, path),
    "no mask": lambda path: save_file({"x": torch.ones(2)}, path, metadata={"format": FORMAT, "site": "mlp_act"}),
    "other site": lambda path: save_file(
        {"mask": torch.ones(2, 2)}, path, metadata={"format": FORMAT, "site": "heads"}
    ),
    "flat mask": lambda path: save_file({"mask": torch.ones(4)}, path, metadata={"format": FORMAT, "site": "mlp_act"}),
    "other scores": lambda path: save_file(
        {"mask": torch.ones(2, 2), "scores": torch.ones(2, 3)}, path, metadata={"format": FORMAT, "site": "mlp_act"}
    ),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_set_of_neurons_is_refused(tmp_path, kind):
    path = tmp_path / "n.safetensors"
    BAD_FILES[kind](path)
    with pytest.raises(InputError):
        Neurons.load(path)
