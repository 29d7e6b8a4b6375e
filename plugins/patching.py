"""Activation patching (arXiv 2508.02360, section on causal checks): the recipient runs with a donor's activations.

At every position the chosen neurons of the recipient take the donor's activations on the same tokens; the answer is the
recipient's. Patching the general neurons should move all topics, the specific ones their own topic; random neurons of
equal number are the control, the empty set the identity. Runs on the Torch engine; `harness.interventions.DonorPatch`
states the proof.
"""

from __future__ import annotations

from harness.engines import Settings
from harness.engines.torch import DTYPES, TorchEngine
from harness.interventions import DonorPatch
from harness.models import device, load_model, load_tokenizer
from harness.neurons import Neurons


def patched_engine(recipient: str, donor: str, neurons: Neurons, settings: Settings) -> TorchEngine:
    """A Torch engine whose model (folder `recipient`) carries the activations of `donor` at the neurons."""
    dtype = DTYPES[settings.dtype]
    model = load_model(recipient, dtype, device())
    giver = load_model(donor, dtype, device())
    return TorchEngine(model, load_tokenizer(recipient), settings, donor=giver, patch=DonorPatch(neurons))
