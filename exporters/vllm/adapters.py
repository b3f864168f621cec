"""LoRA adapters of a rank that vLLM serves: a factor is padded with zeros, and alpha / rank stays.

Legend: R rank, A and B the factors [R, in] and [out, R].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...artefact.bundle import Bundle
from ...artefact.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ...recipe.servable import VLLM_RANKS
from ...storage.files import write_atomically, write_json
from ...storage.read_json import read_json
from ...storage.tensors_file import read_arrays

REMEDY = "export again"


def served_rank(rank: int) -> int:
    """The smallest rank that vLLM serves and that holds `rank`, which is no larger than the largest one."""
    return next(served for served in VLLM_RANKS if served >= rank)


def write_adapter(bundle: Bundle, target: Path) -> int:
    """Write the LoRA half of a bundle, padded.

    Args:
        bundle: a memory with a LoRA half of one rank.
        target: the folder to make.

    Returns:
        The rank that it has now.

    Raises:
        IntegrityError: a file of the bundle is damaged.
    """
    from safetensors.numpy import save

    config = read_json(bundle.path / ADAPTER_CONFIG, remedy=REMEDY)
    tensors, _ = read_arrays(bundle.path / ADAPTER_WEIGHTS, remedy=REMEDY)
    before = int(config["r"])
    rank = served_rank(before)
    padded = {}
    for name, value in tensors.items():
        more = (0, rank - before)
        padded[name] = np.pad(value, (more, (0, 0)) if ".lora_A." in name else ((0, 0), more))
    alpha = config["lora_alpha"] * rank / before
    target.mkdir(parents=True)
    write_atomically(target / ADAPTER_WEIGHTS, save(padded, metadata={"format": "pt"}))
    config |= {"r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}
    write_json(target / ADAPTER_CONFIG, config)
    return rank
