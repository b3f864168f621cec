"""The device that training is told to use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from koffkit import devices
from koffkit.errors import ResourceError
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.training.build import DEVICE_VARIABLE, make_accelerator


def test_an_accelerator_is_made_on_the_device_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = load_recipe("quickstart").recipe, RunFolder(tmp_path / "run")
    usual = make_accelerator(recipe, run).device
    with monkeypatch.context() as patched:
        patched.setattr(devices, "find_device", lambda name: torch.device("meta"))
        assert make_accelerator(recipe, run, "cuda:1").device == torch.device("meta")
    assert DEVICE_VARIABLE not in os.environ
    assert make_accelerator(recipe, run).device == usual
    assert make_accelerator(recipe, run, "cpu").device == torch.device("cpu")


def test_a_device_that_is_not_there_leaves_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    with pytest.raises(ResourceError, match="device 'musa': not available here"):
        make_accelerator(load_recipe("quickstart").recipe, RunFolder(tmp_path / "run"), "musa")
    assert os.environ[DEVICE_VARIABLE] == "cpu"
