"""Choice scoring against lm-eval's own models: the same documents, options and log-probabilities.

    python benchmarks/choice_scoring.py --documents 64 --rounds 3

Documents are the packaged statements with four options, in the model's chat template, asked cold (nothing cached) and again
(contexts repeat, as they do under another order of options), and the packaged pairs: two long answers after one question.
Peers are lm-eval's `vllm` and `hf` in bfloat16, `hf` at three batch sizes, of which the best counts. Log-probabilities are
compared in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import Peer, arguments, median, publish, take_turns

LETTERS = (" A", " B", " C", " D")
OPTIONS = "A. Strongly agree\nB. Agree\nC. Disagree\nD. Strongly disagree\nAnswer:"
BATCHES = (8, 16, 32)


def requests(tokenizer: Any, kind: str, count: int) -> list[tuple[Any, list[int], list[int]]]:
    """lm-eval's requests: (key, context tokens, continuation tokens)."""
    from harness.lmeval.roots import packaged_root
    from harness.topics import find_topics

    found = []
    topics = list(find_topics([packaged_root()]).values())
    for number in range(count):
        topic = topics[number % len(topics)]
        if kind == "choices":
            statement = topic.statements[number // len(topics)]
            question, answers = f"{statement.text}\n{OPTIONS}", LETTERS
        else:
            item = topic.split("measure")[number // len(topics)]
            question, answers = item.question, (item.left, item.right)
        turn = [{"role": "user", "content": question}]
        context = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        head = tokenizer(context, add_special_tokens=False)["input_ids"]
        found += [(None, head, tokenizer(a, add_special_tokens=False)["input_ids"]) for a in answers]
    return found


def serve(
    kind: str, model: str, dtype: str, documents: int, pairs: int, batch: int = 8
) -> dict[str, Callable[[], Any]]:
    """Functions of one candidate: `choices` and `pairs` (cold), `again` (the choices with their contexts cached)."""
    if kind == "hf":
        from lm_eval.models.huggingface import HFLM

        lm: Any = HFLM(pretrained=model, dtype=dtype, batch_size=batch, device="cpu")
    elif kind == "vllm":
        from lm_eval.models.vllm_causallms import VLLM

        lm = VLLM(pretrained=model, dtype=dtype, max_model_len=1024)
    else:
        from harness.lmeval.stance_vllm import StanceVLLM

        lm = StanceVLLM(pretrained=model, dtype=dtype, max_model_len=1024, block_size=32)
    asked = {name: requests(lm.tokenizer, name, n) for name, n in (("choices", documents), ("pairs", pairs))}

    def cold(name: str) -> list[float]:
        if kind != "hf":
            lm.model.reset_prefix_cache()
        return again(name)

    def again(name: str) -> list[float]:
        return [float(score) for score, _ in lm._loglikelihood_tokens(asked[name], disable_tqdm=True)]

    again("choices")  # warm-up: compilation, allocation
    return {"choices": lambda: cold("choices"), "pairs": lambda: cold("pairs"), "again": lambda: again("choices")}


def compare(peers: dict[str, Peer], what: str, rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Median seconds and answers of every peer, the peers taking turns."""
    seconds, answers = take_turns({name: (peer, what) for name, peer in peers.items()}, rounds)
    return {name: median(taken) for name, taken in seconds.items()}, answers


def main() -> None:
    from harness.models import resolve

    given = arguments(__doc__ or "", model="smollm2-135m-instruct", documents=64, pairs=24, rounds=3)
    options = {"model": resolve(given.model), "documents": given.documents, "pairs": given.pairs}
    rows = []
    peers = {"stance-vllm": Peer(serve, kind="ours", dtype="bfloat16", **options)}
    peers["lm-eval vllm"] = Peer(serve, kind="vllm", dtype="bfloat16", **options)
    for batch in BATCHES:
        peers[f"lm-eval hf, batch {batch}"] = Peer(serve, kind="hf", dtype="bfloat16", batch=batch, **options)
    for what, documents in (("choices", given.documents), ("again", given.documents), ("pairs", given.pairs)):
        seconds, _ = compare(peers, what, given.rounds)
        ours = seconds["stance-vllm"]
        for name, taken in seconds.items():
            rows.append(
                {"asked": what, "model": name, "documents/s": documents / taken, "ours is faster by": taken / ours}
            )
    for peer in peers.values():
        peer.close()
    exact = {
        name: Peer(serve, kind=kind, dtype="float32", **options) for name, kind in (("ours", "ours"), ("hf", "hf"))
    }
    largest = {}
    for what in ("choices", "pairs"):
        _, answers = compare(exact, what, 1)
        largest[what] = max(abs(a - b) for a, b in zip(answers["ours"], answers["hf"], strict=True))
    for peer in exact.values():
        peer.close()
    publish("choice_scoring", rows, given.out, model=given.model, largest_difference_float32=largest)
    print(f"Largest difference of log-probabilities in float32 against lm-eval hf: {largest}")


if __name__ == "__main__":
    main()
