from __future__ import annotations

import copy
import gc
import weakref

import pytest
import tiny as t
import torch
from scipy.stats import spearmanr
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.errors import InputError, ProofError
from harness.projections import PROJECTION_SITES, projection_parts
from plugins import culnig, culnig_hooks
from plugins.culnig import Item, difference, general, remove, score, specific, stands_out, top

GATED = [name for name in t.ARCHITECTURES if name not in ("gpt2", "gpt_neox")]
ATTENTION = ("q", "k", "v")
ITEMS = [Item(t.tokens(length, seed=length + 1), 20 + length) for length in (5, 11, 3, 8, 11, 1, 7)]
SIZE = 8  # of a head in every tiny model


def sites_of(name: str) -> tuple[str, ...]:
    return PROJECTION_SITES if name in GATED else ATTENTION


def cut(path: str, output: torch.Tensor) -> dict[str, torch.Tensor]:
    """The sites in one module's output, as the model's own code reads them."""
    end = path.rsplit(".", 1)[-1]
    if end in ("gate_proj", "q_proj", "k_proj", "v_proj"):
        return {end.split("_")[0]: output}
    if end == "gate_up_proj":
        return {"gate": output.chunk(2, -1)[0]}
    if end == "qkv_proj":
        return dict(zip("qkv", output.split([4 * SIZE, 2 * SIZE, 2 * SIZE], -1), strict=True))
    if end == "c_attn":
        return dict(zip("qkv", output.chunk(3, -1), strict=True))
    if end == "query_key_value":
        heads = output.view(*output.shape[:-1], 4, 3 * SIZE).chunk(3, -1)
        return {site: part.reshape(*output.shape[:-1], -1) for site, part in zip("qkv", heads, strict=True)}
    return {}


def one_at_a_time(model, item: Item) -> tuple[dict[str, torch.Tensor], float]:
    """Activation times gradient [l, s, n] per site and P, of one item, by hooks of the test's own."""
    seen: list[tuple[str, torch.Tensor]] = []

    def keep(path):
        def hook(_module, _args, output):
            output.retain_grad()
            seen.append((path, output))

        return hook

    hooks = [m.register_forward_hook(keep(path)) for path, m in model.named_modules() if cut_able(path)]
    with torch.enable_grad():
        logits = model(input_ids=torch.tensor([item.ids]), use_cache=False).logits
        p = logits[0, -1].softmax(-1)[item.gold]
        p.backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    products: dict[str, list[torch.Tensor]] = {}
    for path, output in seen:
        values, gradients = cut(path, output.detach()[0]), cut(path, output.grad[0])
        for site, value in values.items():
            products.setdefault(site, []).append(value * gradients[site])
    return {site: torch.stack(rows) for site, rows in products.items()}, p.item()


def cut_able(path: str) -> bool:
    ends = ("gate_proj", "gate_up_proj", "q_proj", "k_proj", "v_proj", "qkv_proj", "attn.c_attn", "query_key_value")
    return path.endswith(ends)


def naive(model, items, clip=False, floored=()) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    for n, item in enumerate(items):
        products, p = one_at_a_time(model, item)
        for site, product in products.items():
            s = product.amax(1)
            s = s.clamp(min=0) if n in floored else s
            weighted = p * s
            sums[site] = sums.get(site, 0) + (weighted.clamp(min=0) if clip else weighted)
    return {site: total / len(items) for site, total in sums.items()}


def close(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for site, value in expected.items():
        torch.testing.assert_close(
            found[site].double(), value.double(), rtol=0, atol=tolerance * float(value.abs().max())
        )


@pytest.mark.parametrize("name", t.ARCHITECTURES)
@pytest.mark.parametrize("clip", [False, True])
def test_scores_equal_autograd_one_item_at_a_time(tiny, name, clip):
    model = tiny(name)
    found = score(model, ITEMS, sites_of(name), clip_control=clip)
    close(found.sites, naive(model, ITEMS, clip))
    assert found.items == len(ITEMS)
    kv = t.HIDDEN // (1 if name in ("gpt2", "gpt_neox") else 2)
    widths = {"gate": t.INTERMEDIATE, "q": t.HIDDEN, "k": kv, "v": kv}
    assert {site: s.shape for site, s in found.sites.items()} == {
        site: (t.LAYERS, widths[site]) for site in sites_of(name)
    }
    assert all(s.dtype == torch.float64 for s in found.sites.values())


@pytest.mark.parametrize("name", t.ARCHITECTURES)
def test_padding_batching_and_order_change_nothing(tiny, name):
    model = copy.deepcopy(tiny(name)).double()
    together = score(model, ITEMS, sites_of(name), batch_tokens=1000)
    alone = score(model, ITEMS, sites_of(name), batch_tokens=1)
    backwards = score(model, ITEMS[::-1], sites_of(name), batch_tokens=24)
    for other in (alone, backwards):
        close(other.sites, together.sites, 1e-9)
        assert other.probability == pytest.approx(together.probability)


@pytest.mark.parametrize("site", PROJECTION_SITES)
def test_one_site_scores_as_it_does_among_all(tiny, site):
    for name in ("llama", "phi3"):
        alone, among = score(tiny(name), ITEMS, [site]).sites, score(tiny(name), ITEMS).sites
        close(alone, {site: among[site]}, 1e-5)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_parts_are_what_the_attention_reads(tiny, name, monkeypatch):
    # At position 0 rotary embeddings turn by nothing, so queries, keys and values must be the parts' own numbers.
    model, read, wrote = copy.deepcopy(tiny(name)), [], []

    def attention(module, query, key, value, *args, **kwargs):
        read.append([x[0, :, 0].flatten() for x in (query, key, value)])
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "noting", attention)
    model.config._attn_implementation = "noting"
    for parts in projection_parts(model, ATTENTION):

        def note(_module, _args, output, parts=parts):
            wrote.append([parts[site].take(output)[0, 0] for site in ATTENTION])

        module = parts["q"].module
        if all(part.module is module for part in parts.values()):
            module.register_forward_hook(note)
        else:
            wrote.append([])
            for site in ATTENTION:
                parts[site].module.register_forward_hook(lambda _m, _a, out, row=wrote[-1]: row.append(out[0, 0]))
    t.logits(model, ITEMS[0].ids)
    assert len(read) == len(wrote) == t.LAYERS
    for ours, theirs in zip(wrote, read, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_compatible_differs_exactly_where_pads_would_win(tiny):
    model = copy.deepcopy(tiny("llama")).double()
    short = Item(t.tokens(4, seed=3), 40)
    items = [short, Item(t.tokens(9, seed=4), 41)]
    products, p = one_at_a_time(model, short)
    plain, compatible = (score(model, items, compatible=flag).sites for flag in (False, True))
    for site, product in products.items():
        pads_win = product.amax(1) < 0
        clear = product.amax(1).abs() > 1e-6 * product.abs().max()  # below, the norms' float32 decides the sign
        assert torch.equal((compatible[site] != plain[site])[clear], pads_win[clear])
        assert 0 < pads_win.float().mean() < 1
        expected = torch.where(pads_win, plain[site] - p * product.amax(1) / 2, plain[site])
        close({site: compatible[site]}, {site: expected}, 1e-5)
    alone = [Item(short.ids, n) for n in (40, 42)]
    close(score(model, alone, compatible=True).sites, score(model, alone).sites, 0)


def test_compatible_pads_are_those_of_sixteen_items_in_their_order(tiny):
    model = copy.deepcopy(tiny("llama")).double()
    items = [Item(t.tokens(3 + (n == 5), seed=n), 30 + n) for n in range(16)]
    items += [Item(t.tokens(2, seed=50 + n), 60 + n) for n in range(3)]
    floored = set(range(16)) - {5}
    for batch_tokens in (1, 24, 1000):
        found = score(model, items, compatible=True, batch_tokens=batch_tokens)
        close(found.sites, naive(model, items, floored=floored), 1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_one_pass_gives_both_modes(tiny, clip):
    model = tiny("llama")
    for flag, found in enumerate(culnig.score_both(model, ITEMS, clip_control=clip)):
        close(found.sites, score(model, ITEMS, clip_control=clip, compatible=bool(flag)).sites, 0)
        assert found.items == len(ITEMS)


def test_clipping_is_per_item(tiny):
    model, a, b = copy.deepcopy(tiny("llama")).double(), ITEMS[0], ITEMS[3]
    one, other = (score(model, [item]).sites for item in (a, b))
    clipped = score(model, [a, b], clip_control=True).sites
    close(clipped, {site: (one[site].clamp(min=0) + other[site].clamp(min=0)) / 2 for site in one}, 1e-9)
    assert any(bool(((one[site] < 0) != (other[site] < 0)).any()) for site in one)


def test_a_toy_by_hand(tiny):
    """A value neuron that alone decides between two tokens: a = 2 at one token, 4 at the other."""
    model = copy.deepcopy(tiny("llama")).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.fill_(1.0)
        half = t.HIDDEN**-0.5  # an embedding of mean square 1/d times sqrt(d) keeps its size through the norm
        model.model.embed_tokens.weight[10, 0] = 1.0
        layer = model.model.layers[0].self_attn
        layer.v_proj.weight[0, 0] = 2.0 * half
        layer.o_proj.weight[1, 0] = 1.0
        model.lm_head.weight[11, 1] = 1.0
    # v[0] = 2 up to the norm's epsilon. The hidden state (1, 2, 0, ..) is normed by sqrt(32 / 5): a logit 2 sqrt(32 / 5).
    root5, scale = 5.0**0.5, 32.0**0.5
    z = 2 * scale / root5
    p = torch.tensor(z).double().exp() / (torch.tensor(z).double().exp() + t.VOCAB - 1)
    # d(a / sqrt(1 + a^2)) / da = (1 + a^2)^(-3/2), so a dP/da = 2 * P (1 - P) * scale / 5^1.5; S = P times that.
    expected = float(p * 2 * p * (1 - p) * scale / 5**1.5)
    found = score(model, [Item([10], 11)])
    assert found.sites["v"][0, 0].item() == pytest.approx(expected, rel=1e-4)
    assert found.probability == pytest.approx(float(p), rel=1e-4)
    assert sum(int(s.count_nonzero()) for s in found.sites.values()) == 1


def test_agrees_with_ablating_one_neuron_at_one_position(tiny):
    model, item = copy.deepcopy(tiny("llama")).double(), Item(t.tokens(3, seed=2), 33)

    def probability(site, layer, position):
        """P with each neuron in turn set to 0 at one position: one row of the batch per neuron."""
        part = projection_parts(model, [site])[layer][site]
        where = torch.arange(part.width)

        def zeroed(_module, _args, output):
            output[where, position, where] = 0.0
            return output

        handle = part.module.register_forward_hook(zeroed)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([item.ids] * part.width), use_cache=False).logits[:, -1]
        handle.remove()
        return logits.softmax(-1)[:, item.gold]

    p = t.logits(model, item.ids)[-1].softmax(-1)[item.gold]
    found = score(model, [item]).sites
    for site in PROJECTION_SITES:
        effect = torch.stack(
            [
                torch.stack([p - probability(site, layer, n) for n in range(len(item.ids))]).amax(0)
                for layer in range(t.LAYERS)
            ]
        )
        s, effect = found[site].flatten(), effect.flatten()
        large = s.abs() > 0.05 * s.abs().max()
        assert (s.sign() == effect.sign())[large].double().mean() > 0.7, site
        assert spearmanr(s, effect).statistic > 0.5, site


def test_what_is_kept_does_not_grow_with_the_items(tiny, monkeypatch):
    model, kept = tiny("llama"), []
    state_reduce = culnig_hooks.Sums.reduce
    alive: list[weakref.ref] = []

    def reduce(self, layer, site, product):
        alive.append(weakref.ref(product))
        state_reduce(self, layer, site, product)
        kept.append(sum(ref() is not None for ref in alive))

    monkeypatch.setattr(culnig_hooks.Sums, "reduce", reduce)
    few, many = ([Item(t.tokens(6, seed=n), 40 + n % 50) for n in range(count)] for count in (4, 40))
    peaks = []
    for items in (few, many):
        kept.clear()
        score(model, items, batch_tokens=24)
        peaks.append(max(kept))
    assert peaks[0] == peaks[1] <= 2
    assert not any(ref() is not None for ref in alive)


def test_no_activation_outlives_its_batch(tiny):
    gc.collect()
    gc.disable()
    try:
        counts = []
        for count in (4, 40):
            before = live_tensors()
            found = score(
                tiny("llama"), [Item(t.tokens(6, seed=n), 40 + n % 50) for n in range(count)], batch_tokens=24
            )
            counts.append(live_tensors() - before)
            del found
    finally:
        gc.enable()
    assert counts[0] == counts[1]


def live_tensors() -> int:
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_the_model_is_left_as_it_was(tiny):
    model = copy.deepcopy(tiny("llama"))
    model.lm_head.weight.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    before = t.logits(model, ITEMS[0].ids)
    score(model, ITEMS)
    with pytest.raises(RuntimeError, match="stop"):
        score(model, ITEMS, advance=stop)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(t.logits(model, ITEMS[0].ids), before)


def stop(_n: int) -> None:
    raise RuntimeError("stop")


def test_bfloat16_ranks_much_as_float32(tiny):
    exact, rough = score(tiny("llama"), ITEMS).sites, score(tiny("llama"), ITEMS, dtype=torch.bfloat16).sites
    for site in exact:
        assert spearmanr(exact[site].flatten(), rough[site].flatten()).statistic > 0.95


def test_advance_counts_the_items(tiny):
    done = []
    score(tiny("llama"), ITEMS, ["gate"], batch_tokens=12, advance=done.append)
    assert sum(done) == len(ITEMS) and len(done) > 1


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_a_model_without_a_gate_is_refused_that_site(tiny, name):
    with pytest.raises(InputError, match="has no gate"):
        score(tiny(name), ITEMS)


def test_an_unknown_fused_layout_is_refused(tiny):
    model = copy.deepcopy(tiny("gpt_neox"))
    model.config.model_type = "unheard_of"
    with pytest.raises(InputError, match="cannot tell queries"):
        score(model, ITEMS, ATTENTION)


def test_wrong_input_is_refused(tiny):
    model = tiny("llama")
    for items, match in (([], "No items"), ([Item([], 5)], "empty prompt"), ([Item([5], t.VOCAB)], "outside the voc")):
        with pytest.raises(InputError, match=match):
            score(model, items)
    with pytest.raises(InputError, match="No site"):
        score(model, ITEMS, [])


def test_scores_that_are_all_zero_are_refused(tiny):
    model = copy.deepcopy(tiny("llama"))
    torch.nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(ProofError, match="All scores are zero"):
        score(model, ITEMS)


def test_selection_by_hand():
    culture = {"gate": torch.tensor([[5.0, 1.0], [3.0, 2.0]]), "q": torch.tensor([[4.0], [9.0]])}
    control = {"gate": torch.tensor([[4.5, 0.0], [0.0, 2.0]]), "q": torch.tensor([[0.0], [8.5]])}
    scores = difference(culture, control)
    assert {k: v.tolist() for k, v in scores.items()} == {"gate": [[0.5, 1.0], [3.0, 0.0]], "q": [[4.0], [0.5]]}
    chosen = top(scores, 0.5)  # 3 of 6: 4, 3, 1
    assert {k: v.int().tolist() for k, v in chosen.items()} == {"gate": [[0, 1], [1, 0]], "q": [[1], [0]]}
    assert {k: int(v.sum()) for k, v in top(scores, 0.01).items()} == {"gate": 0, "q": 1}
    left = remove(chosen, {"gate": torch.tensor([[True, True], [False, False]])})
    assert {k: v.int().tolist() for k, v in left.items()} == {"gate": [[0, 0], [1, 0]], "q": [[1], [0]]}
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="share is"):
            top(scores, share)
    with pytest.raises(InputError, match="different sites"):
        difference(culture, {"gate": control["gate"]})


def test_standing_out_by_hand():
    # Over a, b, c: 1 1 4 has mean 2 and deviation sqrt 2, so z = -0.71, -0.71, 1.41; 2 2 2 never varies; 0 3 3: 0.71 for b.
    countries = {
        name: {"gate": torch.tensor([row])}
        for name, row in {"a": [1.0, 2.0, 0.0], "b": [1, 2, 3.0], "c": [4, 2, 3.0]}.items()
    }
    found = {name: stands_out(name, countries)["gate"].int().tolist()[0] for name in countries}
    assert found == {"a": [0, 0, 0], "b": [0, 0, 1], "c": [1, 0, 1]}
    assert stands_out("b", countries, 0.8)["gate"].any().item() is False
    for name, among in (("d", countries), ("a", {"a": countries["a"]})):
        with pytest.raises(InputError, match="two or more"):
            stands_out(name, among)


def test_general_and_specific_by_hand():
    ranks = torch.arange(1000.0)
    culture = {"gate": ranks.view(2, 500), "q": ranks.view(2, 500), "v": (1000 + ranks).view(2, 500)}
    zero = {site: torch.zeros_like(s) for site, s in culture.items()}
    found = general(culture, zero)
    assert {site: int(m.sum()) for site, m in found.items()} == {"gate": 10, "q": 0, "v": 4}  # 1% of 1000, 0.2% of 2000
    assert found["gate"].flatten()[-10:].all() and found["v"].flatten()[-4:].all()
    copying = {**zero, "gate": (ranks % 997).view(2, 500)}  # its top ten are 987..996
    copying["v"] = ranks.view(2, 500)  # with q's zeros: top 1% of 2000 are the last 20 of v
    kept = general(culture, zero, copying)
    assert kept["gate"].flatten().nonzero().flatten().tolist() == [997, 998, 999]
    assert not kept["v"].any() and not kept["q"].any()

    countries = {"here": culture, "there": {**zero, "v": culture["v"] + 1}, "else": zero}
    assert {site: int(m.sum()) for site, m in specific("here", countries).items()} == {"gate": 0, "q": 0, "v": 9}
    countries["there"]["v"] = 9 * culture["v"]  # now the ninth stands far above
    assert not specific("here", countries)["v"].any()
    countries["there"]["v"] = zero["v"]
    assert not specific("here", countries, copying)["v"].any()
