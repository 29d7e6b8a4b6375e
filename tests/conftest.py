"""Shared fixtures. Shapes are checked: the modules named here run under jaxtyping and beartype in every test."""

from __future__ import annotations

import importlib
import os
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import beartype  # noqa: F401
import jaxtyping
import pytest
import torch
import transformers
from pydantic import BaseModel, Field, ValidationError, model_validator  # noqa: F401  (not under the mock below)
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback  # noqa: F401

CHECKED = ["activations", "contrast_sums", "neurons", "projections", "interventions", "hold", "engines.torch"]
CHECKED = [f"harness.{name}" for name in CHECKED] + [
    f"plugins.{name}" for name in ("pnlac", "culnig", "neuronlens_moments", "neuronlens", "neuronlens_diagnostics")
]
# beartype needs the names that the modules import for type checkers alone, so they are imported for it here.
with jaxtyping.install_import_hook(CHECKED, "beartype.beartype"), mock.patch.object(typing, "TYPE_CHECKING", True):
    for _name in CHECKED:
        importlib.import_module(_name)

import tiny as tiny_models  # noqa: E402

from harness import models  # noqa: E402
from harness.errors import InputError  # noqa: E402

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # the models are too small to share out


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Any]:
    """Tiny random models by architecture, each made once; tests must not change them."""
    return cache(tiny_models.build)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Any]) -> Callable[..., str]:
    """Folders of the tiny models with their tokenizer, by architecture."""

    @cache
    def saved(name: str, chat: bool = False) -> str:
        return tiny_models.save(tiny(name), tmp_path_factory.mktemp(name), chat)

    return saved


@pytest.fixture
def stance_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STANCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def embedded() -> str:
    """The embedded model's folder; tests that use it carry the marker `model`."""
    try:
        return models.resolve("smollm2-135m-instruct")
    except InputError as error:
        pytest.skip(str(error))
