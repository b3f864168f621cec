from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from koffkit.errors import IntegrityError
from koffkit.training.checkpoint import (
    Checkpoint,
    load_latest,
    optimizer_moments,
    restore,
    restore_moments,
    save_checkpoint,
)


def trained(steps: int) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    for step in range(steps):
        (parameter * torch.arange(1.0, 4.0) * (step + 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return parameter, optimizer


def test_a_restored_optimiser_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    parameter, optimizer = trained(3)
    save_checkpoint(
        tmp_path,
        0,
        Checkpoint(
            "s", 3, {"p": parameter}, optimizer_moments(optimizer, {parameter: "p"}), {"lambda": 0.1 + 0.2}
        ),
    )
    found = load_latest(tmp_path)
    assert found is not None and (found.stage, found.step, found.extra["lambda"]) == ("s", 3, 0.1 + 0.2)
    fresh, again = trained(0)
    restore(found, {"p": fresh}, tmp_path)
    restore_moments(again, {fresh: "p"}, found)
    for part, opt in ((parameter, optimizer), (fresh, again)):
        (part * 5).sum().backward()
        opt.step()
    assert torch.equal(parameter, fresh)


def test_the_newest_counts_and_the_last_two_stay(tmp_path: Path) -> None:
    for order, stage, step in ((0, "learn_masks", 9), (0, "learn_masks", 10), (1, "recover", 2)):
        save_checkpoint(tmp_path, order, Checkpoint(stage, step, {"p": torch.tensor([float(step)])}, {}, {}))
    found = load_latest(tmp_path)
    assert found is not None and (found.stage, found.step) == ("recover", 2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00-learn_masks-00000010", "01-recover-00000002"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_one_flipped_bit_in_the_newest_means_the_one_before(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, 0, Checkpoint("s", step, {"p": torch.full((2,), 1.0 * step)}, {}, {"x": 5}))
    path = tmp_path / "00-s-00000002" / name
    data = bytearray(path.read_bytes())
    place = data.index(b"5") if name == "state.json" else len(data) - 1
    data[place] ^= 1
    path.write_bytes(data)
    said: list[str] = []
    checkpoint = load_latest(tmp_path, said.append)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "00-s-00000002: this checkpoint is damaged" in said[0]
    assert "resuming from the one before, 00-s-00000001" in said[0]


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "00-s-00000001"
    folder.mkdir()
    (folder / "state.json").write_text('{"stage": "s", "step": 1, "extra": {}}')
    save_file({"value/p": torch.ones(1)}, folder / "state.safetensors")
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert torch.equal(checkpoint.tensors["p"], torch.ones(1))


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 0, Checkpoint("s", 1, {"p": torch.ones(1)}, {}, {}))
    (tmp_path / ".00-s-00000002.partial-1").mkdir()
    found = load_latest(tmp_path)
    assert found is not None and found.step == 1
    assert load_latest(tmp_path / "nothing") is None


def test_damage_and_strangers_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 0, Checkpoint("s", 1, {"p": torch.ones(1)}, {}, {}))
    found = load_latest(tmp_path)
    assert found is not None
    with pytest.raises(IntegrityError, match="does not fit this recipe"):
        restore(found, {"p": torch.ones(2)}, tmp_path)
    state = tmp_path / "00-s-00000001" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-3])
    with pytest.raises(IntegrityError, match=r"00-s-00000001: this checkpoint is damaged"):
        load_latest(tmp_path)
