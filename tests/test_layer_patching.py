"""Layer-Patching on tiny models: identities of a patch, the stitched checkpoint, the sweep against unpatched scoring."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import tiny as t
import torch

from harness.activations import pad, position_ids
from harness.engines import Settings
from harness.engines.torch import TorchEngine
from harness.errors import InputError, ProofError
from harness.models import load_model
from harness.sites import decoder_layers, mlps
from plugins.knobe_ratings import Candidates, expected
from plugins.knobe_vignettes import Vignette
from plugins.layer_patching_hooks import PATCH_SITES, module_at, record, replacing, resume
from plugins.layer_patching_stitch import stitch, stitched
from plugins.layer_patching_sweep import donated, rows_of, sweep_ratings

every_model = pytest.mark.parametrize("name", t.ARCHITECTURES)
every_site = pytest.mark.parametrize("site", PATCH_SITES)
LAYERS = range(t.LAYERS)
MIDDLE = 1


def inputs() -> dict[str, torch.Tensor]:
    """Two sequences of different length, padded on the left."""
    ids, mask = pad([t.tokens(11, 1), t.tokens(7, 2)], t.PAD, left=True)
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": position_ids(mask)}


def whole(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(), use_cache=False, logits_to_keep=2).logits


def traces(*models):
    return [record(model, inputs(), PATCH_SITES, LAYERS, 2) for model in models]


@every_model
def test_a_residual_patch_is_the_stitched_model(tiny, name):
    recipient, donor = tiny(name), t.build(name, seed=1)
    own, given = traces(recipient, donor)
    for layer in LAYERS:
        model = copy.deepcopy(recipient)
        stitch(donor, model, layer)
        patched = resume(recipient, inputs(), own, "resid_post", layer, given.at["resid_post", layer], 2)
        assert torch.allclose(patched, whole(model), atol=1e-5)
        assert not torch.allclose(patched, own.logits, atol=1e-2)


@every_model
@every_site
def test_passing_over_blocks_changes_nothing(tiny, name, site):
    """Against hooks alone, with every block computed."""
    recipient, donor = tiny(name), t.build(name, seed=1)
    own, given = traces(recipient, donor)
    for layer in LAYERS:
        new = given.at[site, layer]
        with replacing(recipient, site, {layer: new}):
            wanted = whole(recipient)
        assert torch.allclose(resume(recipient, inputs(), own, site, layer, new, 2), wanted, atol=1e-5)
        assert not torch.allclose(wanted, own.logits, atol=1e-3)
    assert torch.equal(whole(recipient), own.logits)  # nothing is left behind


@every_model
def test_the_recipients_own_activations_change_nothing(tiny, name):
    own = traces(tiny(name))[0]
    for site in PATCH_SITES:
        for layer in LAYERS:
            same = resume(tiny(name), inputs(), own, site, layer, own.at[site, layer], 2)
            assert torch.allclose(same, own.logits, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_of_several_residual_patches_the_last_counts(tiny, name):
    recipient, donor = tiny(name), t.build(name, seed=1)
    own, given = traces(recipient, donor)
    with replacing(recipient, "resid_post", {layer: given.at["resid_post", layer] for layer in (0, MIDDLE)}):
        several = whole(recipient)
    last = resume(recipient, inputs(), own, "resid_post", MIDDLE, given.at["resid_post", MIDDLE], 2)
    assert torch.allclose(several, last, atol=1e-5)


@every_model
def test_the_last_block_gives_the_donor_where_norm_and_head_are_shared(tiny, name):
    recipient = tiny(name)
    donor = t.with_other_mlps(recipient)
    own, given = traces(recipient, donor)
    last = t.LAYERS - 1
    patched = resume(recipient, inputs(), own, "resid_post", last, given.at["resid_post", last], 2)
    assert torch.allclose(patched, given.logits, atol=1e-5) and not torch.allclose(patched, own.logits, atol=1e-2)


def test_the_last_block_is_read_by_the_recipients_norm_and_head(tiny):
    recipient, donor = tiny("llama"), t.build("llama", seed=1)
    own, given = traces(recipient, donor)
    last = t.LAYERS - 1
    patched = resume(recipient, inputs(), own, "resid_post", last, given.at["resid_post", last], 2)
    with torch.no_grad():
        by_hand = recipient.lm_head(recipient.model.norm(given.at["resid_post", last][:, -2:]))
    assert torch.allclose(patched, by_hand, atol=1e-5) and not torch.allclose(patched, given.logits, atol=1e-2)


@every_model
def test_the_parts_of_a_block_add_up(tiny, name):
    """Stream before + attention + MLP = stream after, where no norm comes between."""
    if name.startswith("gemma"):
        pytest.skip("a norm follows attention and MLP")
    trace = traces(tiny(name))[0]
    for layer in LAYERS:
        total = trace.entering[layer] + trace.at["attn_out", layer] + trace.at["mlp_out", layer]
        assert torch.allclose(total, trace.at["resid_post", layer], atol=1e-5)


def test_modules_of_sites(tiny):
    model = tiny("gpt2")
    assert module_at(model, "attn_out", 1) is model.transformer.h[1].attn
    assert module_at(model, "mlp_out", 2) is mlps(model)[2].down.module
    with pytest.raises(InputError, match="blocks 0 to 2"):
        record(model, inputs(), ["attn_out"], [3])


def test_a_passed_over_block_keeps_a_forward_of_its_own(tiny):
    model = copy.deepcopy(tiny("llama"))
    own, given = traces(model, t.build("llama", seed=1))
    block = decoder_layers(model)[0]
    kept = block.forward = block.forward
    resume(model, inputs(), own, "resid_post", 1, given.at["resid_post", 1], 2)
    assert vars(block)["forward"] is kept and "forward" not in vars(decoder_layers(model)[1])


def test_controls_keep_the_size_of_the_step(tiny):
    own, given = traces(tiny("llama"), t.build("llama", seed=1))
    step = given.at["mlp_out", 1] - own.at["mlp_out", 1]
    shuffled = donated(own, given, "mlp_out", 1, "shuffled", 0) - own.at["mlp_out", 1]
    assert torch.allclose(shuffled.norm(dim=-1), step.norm(dim=-1), rtol=1e-4) and not torch.allclose(shuffled, step)
    assert not torch.allclose(shuffled, donated(own, given, "mlp_out", 1, "shuffled", 1) - own.at["mlp_out", 1])
    half = donated(own, given, "mlp_out", 1, "half", 0)
    taken = (half == given.at["mlp_out", 1]).all(dim=(0, 1))
    assert int(taken.sum()) == t.HIDDEN // 2
    assert torch.equal(half[..., ~taken], own.at["mlp_out", 1][..., ~taken])


def saved(folder: Path, model) -> str:
    return t.save(model, folder)


@pytest.mark.parametrize(("name", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("gemma2", True)])
def test_a_stitched_folder_is_the_patched_model(stance_cache, tmp_path, name, tied):
    recipient, donor = (t.build(name, seed, tie_word_embeddings=tied) for seed in (0, 1))
    folder = stitched(saved(tmp_path / "donor", donor), saved(tmp_path / "recipient", recipient), MIDDLE)
    model = load_model(folder)
    recipient, donor = (load_model(str(tmp_path / name)) for name in ("recipient", "donor"))
    own, given = traces(recipient, donor)
    patched = resume(recipient, inputs(), own, "resid_post", MIDDLE, given.at["resid_post", MIDDLE], 2)
    assert torch.allclose(whole(model), patched, atol=1e-5)
    assert model.config.tie_word_embeddings is False  # tied embeddings differed, so they were untied
    head = model.get_output_embeddings().weight
    assert torch.equal(head, recipient.get_output_embeddings().weight)
    assert torch.equal(model.get_input_embeddings().weight, donor.get_input_embeddings().weight)
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    assert manifest["effect"]["untied"] == int(tied) and manifest["effect"]["changed"] > 0
    assert stitched(str(tmp_path / "donor"), str(tmp_path / "recipient"), MIDDLE) == folder
    assert stance_cache in Path(folder).parents


def test_equal_embeddings_stay_tied(stance_cache, tmp_path):
    recipient = t.build("llama", tie_word_embeddings=True)
    donor = t.with_other_mlps(recipient)
    folder = stitched(saved(tmp_path / "donor", donor), saved(tmp_path / "recipient", recipient), 0)
    model = load_model(folder)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    first, second = (decoder_layers(model)[n].mlp.down_proj.weight for n in (0, 1))
    assert torch.equal(first, decoder_layers(donor)[0].mlp.down_proj.weight)
    assert torch.equal(second, decoder_layers(recipient)[1].mlp.down_proj.weight)


def test_stitching_a_model_to_itself_is_refused(tiny):
    with pytest.raises(ProofError, match="the recipient itself"):
        stitch(tiny("llama"), copy.deepcopy(tiny("llama")), 1)
    with pytest.raises(InputError, match=r"Qwen2.* and Llama"):
        stitch(tiny("qwen2"), copy.deepcopy(tiny("llama")), 1)
    with pytest.raises(InputError, match="blocks 0 to 2"):
        stitch(t.build("llama", 1), copy.deepcopy(tiny("llama")), 3)


def test_candidates_share_sequences():
    """One digit a token after a blank [5]: all eleven are read from prompt + blank + 1."""
    digits = [10 + k for k in range(10)]
    asked = Candidates([7, 8], (*([5, d] for d in digits), [5, 11, 10]))
    (row,) = rows_of([asked])
    assert row.sequence == [7, 8, 5, 11]
    assert (3, 2, 5) in row.reads and (3, 1, 13) in row.reads and (10, 0, 10) in row.reads
    assert sorted(row.reads) == sorted(
        [(k, 2, 5) for k in range(11)] + [(k, 1, 10 + k) for k in range(10)] + [(10, 1, 11), (10, 0, 10)]
    )
    assert asked.nested
    single = Candidates([7, 8], tuple([20 + k] for k in range(11)))
    assert [r.sequence for r in rows_of([single])] == [[7, 8]] and not single.nested
    fork = Candidates([7], (*([30 + k] for k in range(9)), [40, 1], [41, 1]))
    assert [r.sequence for r in rows_of([fork])] == [[7, 40], [7, 41]]
    assert sum(len(r.reads) for r in rows_of([fork])) == 9 + 2 * 2


VIGNETTES = [
    Vignette(id=f"v{n}", harm=f"{w} hurts", help=f"{w} helps", agent="x", question="q?") for n, w in enumerate("ab")
]


@pytest.fixture(scope="module")
def pair():
    base = t.build("llama", max_position_embeddings=256)
    return base, t.with_other_mlps(base)


def by_engine(model):
    return expected(TorchEngine(model, t.tokenizer(), Settings(max_length=256)), VIGNETTES)["rating"].to_numpy()


def test_the_sweep_agrees_with_the_engines_scoring(pair):
    """Rows without a patch are the recipients'; after the last block, tuned into base is the tuned model, as norm and head
    are shared; batching changes nothing."""
    table = sweep_ratings(*pair, t.tokenizer(), VIGNETTES, PATCH_SITES, [0, 2], ["shuffled", "half"], [0, 1])
    base, tuned = map(by_engine, pair)
    assert not np.allclose(base, tuned, atol=1e-3)
    at = table.set_index(["direction", "site", "layer", "kind", "seed"]).sort_index()
    assert at.loc[("tuned_into_base", "", -1, "none", -1), "rating"].to_numpy() == pytest.approx(base, abs=1e-4)
    assert at.loc[("base_into_tuned", "", -1, "none", -1), "rating"].to_numpy() == pytest.approx(tuned, abs=1e-4)
    last = at.loc[("tuned_into_base", "resid_post", 2, "patch", -1), "rating"].to_numpy()
    assert last == pytest.approx(tuned, abs=1e-4)
    # The fine-tune is one of MLPs, so that the first block's attention gives the same in both.
    alike = at.loc[("base_into_tuned", "attn_out", 0, "patch", -1)]
    assert (alike["largest"] == 0).all() and alike["rating"].to_numpy() == pytest.approx(tuned, abs=1e-4)
    assert len(table) == 2 * (1 + 3 * 2 * (1 + 2 * 2)) * 4
    small = sweep_ratings(*pair, t.tokenizer(), VIGNETTES, PATCH_SITES, [0, 2], ["shuffled", "half"], [0, 1], 150)
    assert small["rating"].to_numpy() == pytest.approx(table["rating"].to_numpy(), abs=1e-4)


def test_a_sweep_of_one_model_is_refused(pair):
    with pytest.raises(ProofError, match=r"mlp_out of blocks 1 .base_into_tuned. changed no activation"):
        sweep_ratings(pair[0], copy.deepcopy(pair[0]), t.tokenizer(), VIGNETTES, ["mlp_out"], [1], [], [])
    with pytest.raises(InputError, match="1 vignettes, 0 sites"):
        sweep_ratings(*pair, t.tokenizer(), VIGNETTES[:1], [], [1])
