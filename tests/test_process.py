"""How a process is set up: float32 stays float32 on the fast path, and the fast path is left where it would not."""

import pytest
import torch

from harness import process
from harness.process import command, quicken_float32
from tests import tiny as t


@pytest.fixture
def setting():
    """oneDNN's switch as it was, before and after."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "none"
    quicken_float32.cache_clear()
    yield matmul
    matmul.fp32_precision = before
    quicken_float32.cache_clear()


def test_products_stay_float32(setting):
    quicken_float32()
    generator = torch.Generator().manual_seed(1)
    for rows, inner, columns in [(1, 64, 64), (37, 576, 1536), (300, 1536, 576)]:
        a = torch.randn(rows, inner, generator=generator)
        b = torch.randn(columns, inner, generator=generator)
        exact = (a.double() @ b.double().T).abs().max()
        assert (torch.nn.functional.linear(a, b) - a.double() @ b.double().T).abs().max() < 1e-5 * exact


def test_a_product_in_bfloat16_turns_the_switch_back(setting, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(process, "_product_error", lambda: 1e-3)
    assert not quicken_float32()
    assert setting.fp32_precision == "none"


def test_the_error_of_a_product_tells_bfloat16_from_float32(monkeypatch):
    assert process._product_error() < 1e-5
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, generator: randn(*shape, generator=generator).bfloat16())
    assert process._product_error() > 1e-4


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_other_processors_are_left_alone(setting, monkeypatch, machine):
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert not quicken_float32()
    assert setting.fp32_precision == "none"


def test_a_loaded_model_gives_its_logits_either_way(setting, tmp_path):
    from harness.models import load_model

    model = t.build("llama")
    t.save(model, tmp_path)
    ids = torch.arange(2, 40)[None]
    with torch.inference_mode():
        fast = load_model(str(tmp_path), torch.float32)(input_ids=ids).logits
        setting.fp32_precision = "none"
        plain = model(input_ids=ids).logits
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "argv, typed",
    [
        (["/usr/bin/stance", "eval", "--out", "a b"], ["stance", "eval", "--out", "a b"]),
        (["study.py", "--seed", "1"], ["python", "study.py", "--seed", "1"]),
        (["/site-packages/ipykernel_launcher.py", "-f", "kernel.json"], []),
        ([""], []),
    ],
)
def test_what_was_typed(monkeypatch, argv, typed):
    monkeypatch.setattr("sys.argv", argv)
    assert command() == typed
