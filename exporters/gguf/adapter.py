"""The LoRA half of a memory as a GGUF adapter.

Legend: R LoRA rank, A and B its factors [R, in] and [out, R].
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artefact.bundle import MemoryFolder
from ...artefact.names import ADAPTER_CONFIG
from ...model.merging import Factor, lora_factors
from ...storage.read_json import read_json
from .target import Target
from .weights import Namer, in_order

Array = NDArray[Any]


def write_adapter(path: Path, bundle: MemoryFolder, target: Target) -> None:
    """Write the adapter of a bundle in float32. llama.cpp scales B A by one alpha over the rank of each
    module; where a module has an alpha of its own, its B makes up for it.

    Args:
        path: the file.
        bundle: a memory for this backbone, with a LoRA half.
        target: what the backbone becomes.

    Raises:
        IntegrityError: a file of the bundle is damaged.
    """
    from gguf import GGUFType, GGUFWriter, Keys

    alpha = float(read_json(bundle.path / ADAPTER_CONFIG, remedy="export again")["lora_alpha"])
    writer = GGUFWriter(path, target.arch.name)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_name(bundle.domain)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    namer = Namer(target)
    for name, factor in lora_factors(bundle).items():
        stored = namer(name)
        writer.add_tensor(f"{stored}.lora_a", np.ascontiguousarray(factor.a.numpy(), dtype=np.float32))
        writer.add_tensor(f"{stored}.lora_b", _b(name, factor, alpha, target))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _b(name: str, factor: Factor, alpha: float, target: Target) -> Array:
    """B, times what `alpha` over its rank lacks of its scaling."""
    rank = factor.a.shape[0]
    own = factor.scaling * rank / alpha
    b: Array = factor.b.numpy() * (1.0 if math.isclose(own, 1.0, rel_tol=1e-12) else own)
    return np.ascontiguousarray(in_order(name, b, target), dtype=np.float32)
