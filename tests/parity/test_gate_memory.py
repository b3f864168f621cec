"""The gate needs memory for pieces of a matrix, not for a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from koffkit.checkpoint.spec import ModelSpec

from ..common import make_checkpoint

GATE = """
import json, sys
import numpy as np
from pathlib import Path
from koffkit.masks.container import sliced_config
from koffkit.masks.sliced_reader import SlicedReader
from koffkit.masks.slicing import backbone_slices, zero_rows
from koffkit.checkpoint.spec import ModelSpec
from koffkit.model.loaded import LoadedWeights
from koffkit.parity.compare import require_same
from koffkit.parity.probe import Probe, golden, probe_tokens

def gate(folder):
    spec = ModelSpec.open(folder)
    kept = np.arange(spec.shape.intermediate) % 4 > 0
    masks = {(layer, "mlp_neuron"): kept for layer in range(spec.num_layers)}
    reader = SlicedReader(folder, backbone_slices(spec, masks), zero_rows(spec, masks))
    sliced = Probe(folder, view=(sliced_config(spec, masks), reader))
    tokens = probe_tokens(sliced.vocabulary)
    hidden = sliced.hidden(tokens, [None])
    with LoadedWeights(folder) as loaded:
        masked = Probe(folder, (), masks, loaded=loaded)
        found = require_same(sliced, hidden, masked, masked.hidden(tokens, [None]), [], "no")
    golden(sliced, hidden)
    return found["none"].max_logit

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

tiny, large = map(Path, sys.argv[1:])
gate(tiny)  # of the same widths: loads the libraries
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
logit = gate(large)
print(json.dumps({"logit": logit, "before": before, "bytes": status("VmHWM") - before}))
"""
SIZES = {
    "vocab_size": 320,
    "hidden_size": 512,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
BOUND = 60_000_000
"""Pieces of files that are read at once, in float64, too, and the modules of two models without weights."""


def make_model(folder: Path, layers: int) -> None:
    """A random model in bfloat16."""
    make_checkpoint(folder, hidden_size=64)  # for its tokenizer
    sizes = SIZES | {"num_hidden_layers": layers}
    config = AutoConfig.for_model("llama", **sizes, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(shape, generator=generator) * 0.02).bfloat16()
        for name, shape in ModelSpec.open(folder).weight_shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux tells the peak of a part"
)
def test_a_model_larger_than_the_memory_for_it_is_compared(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    make_model(small, 1)
    make_model(large, SIZES["num_hidden_layers"])
    assert (large / "model.safetensors").stat().st_size > 4 * BOUND
    command = [sys.executable, "-c", GATE, str(small), str(large)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["logit"] > 0
    assert found["bytes"] < BOUND
