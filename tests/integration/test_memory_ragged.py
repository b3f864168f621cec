"""A memory added to a backbone of koffkit's own class: other widths in every layer, parts of heads gone,
placement learned."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from koffkit import KoffModel

from ..common import recipe_dict, sentences, write_recipe
from ..conftest import Koffkit
from .test_whole_method import ALL_AT_ONCE


def packed_texts_are_read_one_by_one(out: Path) -> None:
    model = KoffModel.from_pretrained(out)
    ids = torch.arange(14)[None] * 7 % 280 + 5
    for memory in (None, "east"):
        packed = model.logits(ids, memory, position_ids=torch.cat([torch.arange(5), torch.arange(9)])[None])
        alone = torch.cat([model.logits(part, memory) for part in (ids[:, :5], ids[:, 5:])], 1)
        assert (packed - alone).abs().max() < 1e-5
        assert (model.logits(ids, memory) - alone).abs().max() > 1e-3


def test_a_memory_for_a_ragged_backbone(llama: Path, tmp_path: Path, koffkit: Koffkit, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path / "recipe.yaml", recipe_dict(llama, tmp_path / "data", **ALL_AT_ONCE))
    assert koffkit("compress", path, "--output", "run").code == 0
    assert koffkit("export", "run", "--output", "out").code == 0
    (tmp_path / "east.txt").write_text("\n\n".join(sentences(9, 60)), encoding="utf-8")
    added = koffkit("memory", "add", "out", "east", "--text", "east.txt", "--json")
    assert added.code == 0, added.err
    assert koffkit("verify", "out", "--json").json["memories"] == ["east", "north", "south"]
    shapes = {
        name: {
            key: tuple(value.shape)
            for key, value in load_file(
                tmp_path / "out" / "memories" / name / "kv_memory.safetensors"
            ).items()
        }
        for name in ("east", "north")
    }
    assert shapes["east"] == shapes["north"] and len({shape[2] for shape in shapes["east"].values()}) > 1
    layers = {
        name: json.loads((tmp_path / "out" / "memories" / name / "memory.json").read_text())["layers"]
        for name in ("east", "north")
    }
    assert layers["east"] == layers["north"] and len(layers["east"]) == 2
    done = koffkit("generate", "out", "--prompt", "river", "--memory", "east", "--max-new-tokens", 2)
    assert done.code == 0
    packed_texts_are_read_one_by_one(tmp_path / "out")
    small = koffkit("memory", "compact", "out/memories/east", "--output", "small", "--json")
    assert small.code == 0, small.err
