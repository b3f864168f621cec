"""What several runs of a study compute alike: computed once, and kept in a folder beside the runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.corpus import RETENTION
from ..data.tokens import read_index
from ..storage.files import make_folder, write_atomically
from ..storage.tensors_file import read_header, read_tensors
from .context import Context

FORMAT = "koffkit-shared-1"
REMEDY = "delete the file, and it is made again"
OF_NO_MATTER = ("name", "domains", "retention", "memory", "stages", "train", "export")
"""Fields of a recipe that what the unpruned model does on its text does not depend on; of the text count its
tokens."""
OF_THE_GATES = ("structures", "layers")
"""Fields of `mask` that say which gates there are; what becomes of them is of no matter."""


def computed_once(
    context: Context, what: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Figures that an earlier run of the study left, or else `compute()`, which later runs find.

    Args:
        context: see `Context`; `shared` is the study's folder. Without one nothing is kept.
        what: the name of the figures.
        settings: all that they depend on beside the unpruned model, the text, the gates and the seed.
        compute: makes them.

    Raises:
        IntegrityError: the file that an earlier run left is damaged.
    """
    if context.shared is None:
        return compute()
    depends = json.dumps(_depends(context, what, settings), sort_keys=True)
    digest = hashlib.sha256(depends.encode()).hexdigest()
    path = context.shared / f"{what}-{digest[:16]}.safetensors"
    if path.is_file():
        _, metadata = read_header(path, remedy=REMEDY)
        if metadata == {"format": FORMAT, "depends": depends}:
            context.progress.message(f"{what}: as an earlier run of this study found ({path})")
            device = context.accelerator.device
            return {name: value.to(device) for name, value in read_tensors(path, remedy=REMEDY).items()}
    found = compute()
    _write(path, found, depends)
    return found


def _write(path: Path, tensors: Mapping[str, Tensor], depends: str) -> None:
    from safetensors.torch import save

    make_folder(path.parent)
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, save(plain, metadata={"format": FORMAT, "depends": depends}))


def _depends(context: Context, what: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    recipe = context.loaded.recipe.model_dump(mode="json")
    mask, corpus = recipe.pop("mask"), context.corpus
    streams = [*corpus.domains, *([] if corpus.retention is None else [RETENTION])]
    return {
        "what": what,
        "settings": dict(settings),
        "recipe": {name: value for name, value in recipe.items() if name not in OF_NO_MATTER},
        "gates": {name: mask[name] for name in OF_THE_GATES},
        "precision": context.loaded.recipe.train.precision,
        "products": context.loaded.recipe.train.float32_matmul_precision,
        "base": context.run.read().base.fingerprint,
        "text": [[name, read_index(context.run.data_dir / f"{name}.json")["files"]] for name in streams],
        "device": str(context.accelerator.device),
        "versions": {name: version(name) for name in ("koffkit", "torch", "transformers")},
    }
