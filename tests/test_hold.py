from __future__ import annotations

import copy
import re

import peft
import pytest
import tiny as t
import torch
from transformers import AutoModelForCausalLM

from harness.errors import InputError, ProofError
from harness.finetune import tune
from harness.hold import Hold, held_entries, prove_held
from harness.neurons import Neurons
from harness.recipe import Recipe
from harness.runs import Run
from harness.sites import MLP_SITES, mlps

HARSH = {
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "warmup_steps": 1,
    "gradient_accumulation": 2,
    "batch_size": 2,
    "epochs": 2,
    "dropout": 0.1,
    "rank": 4,
    "alpha": 8,
    "checkpoints": False,
}
# Parameters that write neurons, named here again so that the tests do not trust harness.sites.
WRITES = re.compile(
    r"\.(?P<layer>\d+)\.mlp\."
    r"(?P<module>gate_proj|up_proj|gate_up_proj|down_proj|dense_h_to_4h|dense_4h_to_h|c_fc|c_proj)\.(?P<kind>weight|bias)"
)
DOWN = ("down_proj", "dense_4h_to_h", "c_proj")


def written_by(neurons: Neurons, parameter: str, shape: torch.Size) -> torch.Tensor | None:
    """Entries of a parameter, as stored, that write the neurons; None where the parameter writes none of the site."""
    found = WRITES.search(parameter)
    if not found:
        return None
    chosen, module, kind = neurons.mask[int(found["layer"])], found["module"], found["kind"]
    if module == "gate_up_proj":
        chosen = torch.cat([chosen, chosen])
    if module in DOWN and kind == "bias" and neurons.site == "mlp_act":
        return None
    if module not in DOWN and neurons.site == "mlp_out":
        return None
    if kind == "bias":
        return chosen
    along_inputs = (module in DOWN) and neurons.site == "mlp_act"
    if module.startswith("c_"):  # GPT-2 stores inputs by outputs
        along_inputs = not along_inputs
    return (chosen[None, :] if along_inputs else chosen[:, None]).expand(shape)


def train(folder: str, path, mode: str, hold: Neurons | None, **changes) -> Run:
    path.mkdir(parents=True, exist_ok=True)
    run = Run(path, "tune", {})
    tune(run, folder, t.PAIRS, Recipe(**{**HARSH, "mode": mode, **changes}), 0, hold)
    return run


def weights(folder: str, adapter=None) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter:
        dtype = model.dtype
        model = peft.PeftModel.from_pretrained(model.float(), adapter).merge_and_unload().to(dtype)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def trained_weights(folder: str, run: Run, mode: str) -> dict[str, torch.Tensor]:
    return weights(folder, run.path) if mode == "lora" else weights(str(run.path))


def moves(folder: str, run: Run, mode: str, neurons: Neurons) -> tuple[float, float, int]:
    """Largest move of a held entry, share of the other entries beside them that moved, and the held entries seen."""
    base, after = weights(folder), trained_weights(folder, run, mode)
    held, others = [], []
    for name, old in base.items():
        mask = written_by(neurons, name, old.shape)
        if mask is not None:
            change = (after[name].double() - old.double()).abs()
            held.append(change[mask])
            others.append(change[~mask] if mode == "full" or name.endswith("weight") else change[:0].flatten())
    return float(torch.cat(held).max()), float((torch.cat(others) > 0).double().mean()), sum(map(len, held))


def test_batches_of_like_length_are_other_batches_of_the_same_examples(folder, tmp_path):
    runs = [train(folder("llama"), tmp_path / str(by), "full", None, group_by_length=by) for by in (False, True)]
    assert runs[0].notes["steps"] == runs[1].notes["steps"]
    assert runs[0].notes["loss"] != runs[1].notes["loss"]


# Every architecture sees both modes and both sites; those that store weights in their own way see every pairing.
CASES = [
    (name, mode, site)
    for number, name in enumerate(t.ARCHITECTURES)
    for mode in ("full", "lora")
    for site in MLP_SITES
    if name in ("llama", "phi3", "gpt2") or (mode == "full") == (site == MLP_SITES[number % 2])
]


@pytest.mark.parametrize(("name", "mode", "site"), CASES)
def test_held_entries_stay_and_their_neighbours_move(tiny, folder, tmp_path, name, mode, site):
    neurons = t.some_neurons(tiny(name), site)
    run = train(folder(name), tmp_path, mode, neurons)
    largest, share, entries = moves(folder(name), run, mode, neurons)
    assert entries > 0 and largest == 0.0
    assert share > 0.9
    assert run.notes["hold"]["moved_beside_them"] > 0 and run.notes["steps"] == 4


@pytest.mark.parametrize("site", MLP_SITES)
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_without_the_hold_the_same_entries_move(tiny, folder, tmp_path, mode, site):
    run = train(folder("llama"), tmp_path, mode, None)
    largest, *_ = moves(folder("llama"), run, mode, t.some_neurons(tiny("llama"), site))
    assert largest > 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_bfloat16_checkpoint_is_held_exactly(tiny, tmp_path, mode, precision):
    folder = t.save(copy.deepcopy(tiny("llama")).bfloat16(), tmp_path / "base", chat=True)
    neurons = t.some_neurons(tiny("llama"), "mlp_act")
    run = train(folder, tmp_path / "run", mode, neurons, precision=precision)
    largest, share, _ = moves(folder, run, mode, neurons)
    assert largest == 0.0 and share > 0.5
    if mode == "full":
        assert weights(str(run.path))["model.norm.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_training_resumed_after_an_interruption_is_the_uninterrupted_one(tiny, folder, tmp_path, monkeypatch, mode):
    neurons = t.some_neurons(tiny("llama"), "mlp_act")
    whole = train(folder("llama"), tmp_path / "whole", mode, neurons, checkpoints=True)

    def interrupt(_self, _args, state, _control, **_):
        if state.epoch >= 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Hold, "on_epoch_begin", interrupt)
        train(folder("llama"), tmp_path / "run", mode, neurons, checkpoints=True)
    (tmp_path / "run" / "checkpoints" / "checkpoint-3").mkdir()  # as one killed while it was being written
    steps = []
    monkeypatch.setattr(
        Hold, "on_epoch_begin", lambda _self, _args, state, _control, **_: steps.append(state.global_step)
    )
    run = train(folder("llama"), tmp_path / "run", mode, neurons, checkpoints=True)
    assert steps == [2] and run.notes["steps"] == 4
    assert moves(folder("llama"), run, mode, neurons)[0] == 0.0
    ours, theirs = (trained_weights(folder("llama"), r, mode) for r in (run, whole))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert not (tmp_path / "run" / "checkpoints").exists()


def step(model, optimizer):
    ids = torch.tensor([t.tokens(12)])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("site", MLP_SITES)
def test_zeroed_gradients_alone_do_not_hold_against_weight_decay(site):
    model = t.build("gpt_neox")
    neurons = t.some_neurons(model, site)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    held = {name: mask for name, p in base.items() if (mask := written_by(neurons, name, p.shape)) is not None}
    keeper = Hold(model, neurons)
    keeper.attach(model)
    parameters = dict(model.named_parameters())
    step(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1))
    for name, mask in held.items():
        assert not parameters[name].grad[mask].any() and parameters[name].grad[~mask].any()
        assert not torch.equal(parameters[name][mask], base[name][mask])
    keeper.restore()
    for name, mask in held.items():
        assert torch.equal(parameters[name][mask], base[name][mask])
        assert not torch.equal(parameters[name][~mask], base[name][~mask])


def test_a_detached_hold_lets_gradients_through():
    model = t.build("llama")
    keeper = Hold(model, t.some_neurons(model, "mlp_out", share=1.0))
    keeper.attach(model)
    keeper.detach()
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(mlp.down.weight.grad.any() for mlp in mlps(model))


def test_holding_what_is_not_trained_is_refused():
    model = t.build("llama")
    keeper = Hold(model, t.some_neurons(model, "mlp_act"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".mlp." not in name)
    with pytest.raises(ProofError, match="train the MLP too"):
        keeper.attach(model)


def test_holding_mlp_neurons_while_lora_adapts_attention_alone_is_refused():
    model = t.build("llama")
    keeper = Hold(model, t.some_neurons(model, "mlp_act"))
    with pytest.raises(ProofError, match="train the MLP too"):
        keeper.attach(peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"])))


def test_holding_nothing_or_neurons_of_another_shape_is_refused(tiny):
    model = tiny("llama")
    some = t.some_neurons(model, "mlp_act")
    with pytest.raises(InputError, match="ordinary fine-tune"):
        Hold(model, some - some)
    for shape in ((t.LAYERS, t.HIDDEN), (t.LAYERS + 1, t.INTERMEDIATE), (t.LAYERS - 1, t.INTERMEDIATE)):
        with pytest.raises(InputError, match="come from another model"):
            held_entries(model, Neurons(torch.ones(shape, dtype=torch.bool), "mlp_act", "m"))


def moved_copy(model):
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.get_output_embeddings().weight.add_(0.1)
    return moved


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("site", MLP_SITES)
def test_the_proof_sees_a_single_held_entry_that_moved(tiny, name, site):
    model = tiny(name)
    neurons = t.some_neurons(model, site)
    for parameter, old in model.named_parameters():
        mask = written_by(neurons, parameter, old.shape)
        if mask is None:
            continue
        for allowed in (True, False):
            trained = moved_copy(model)
            place = tuple((mask != allowed).nonzero()[-1].tolist())
            with torch.no_grad():
                dict(trained.named_parameters())[parameter][place] += 1e-6
            if allowed:
                assert prove_held(model, trained, neurons)["held_largest_move"] == 0.0
            else:
                with pytest.raises(ProofError, match="the hold failed"):
                    prove_held(model, trained, neurons)


def test_the_proof_refuses_a_model_that_was_not_trained(tiny):
    with pytest.raises(ProofError, match="No weight moved"):
        prove_held(tiny("llama"), copy.deepcopy(tiny("llama")), t.some_neurons(tiny("llama"), "mlp_act"))
