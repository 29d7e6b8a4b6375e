"""Float32 matrix products as torch finds them against the way `harness/process.py` opens where it stays float32.

python benchmarks/float32_products.py --rounds 5
"""

from __future__ import annotations

import torch
from common import alternate, arguments, matrix_product, median, publish

from harness.process import quicken_float32


def main() -> None:
    given = arguments(__doc__ or "", wide=1536, hidden=576, rounds=5)
    product, work = matrix_product(torch.float32, given.wide, given.hidden, "cpu")
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    quickened = quicken_float32()
    after = matmul.fp32_precision

    def under(setting: str) -> None:
        matmul.fp32_precision = setting
        product()

    rounds = alternate({"torch's own": lambda: under(before), "quickened": lambda: under(after)}, given.rounds)
    seconds = {name: median(taken) for name, taken in rounds.items()}
    rows = [
        {"way": name, "GFLOP/s": work / taken / 1e9, "ratio": seconds["torch's own"] / taken}
        for name, taken in seconds.items()
    ]
    publish("float32_products", rows, given.out, quickened=quickened, rounds=rounds)


if __name__ == "__main__":
    main()
