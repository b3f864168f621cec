"""What transformers loads from a checkpoint, against what koffkit reads from it: one model for everybody.

Legend: V vocabulary, D hidden.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint.float_rows import AT_ONCE, FloatRows, rows_in
from ..checkpoint.reader import FLOATS, CheckpointReader, as_tensor, torch_dtype
from ..errors import IntegrityError
from ..parallel.lean import let_go
from ..progress import Progress, Silent

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..checkpoint.spec import ModelSpec

MAPPED = 1 << 24
"""Bytes of a file that are mapped into memory before they are let go."""
REMEDY = "the two would be different models, and nothing was learned; please report this with the config.json"


@torch.no_grad()
def require_same_tensors(
    model: Any, spec: ModelSpec, progress: Progress | None = None, *, lean: bool = False
) -> int:
    """Compare every weight of a loaded model with the checkpoint's own, by name, shape and byte.

    Args:
        model: as transformers loaded it; weights of another type than the file's are compared after the same
            conversion.
        spec: of its folder.
        progress: told of every tensor; by default nobody is.
        lean: let go of what is mapped from the files once it was compared.

    Returns:
        the bytes that were compared.

    Raises:
        IntegrityError: one is missing on either side, or differs.
        UsageError: the files hold a tensor that has no place.
    """
    reader = spec.reader()
    loaded = dict(model.named_parameters(remove_duplicate=False))
    embeddings, head = f"{spec.arch.embeddings}.weight", f"{spec.arch.head}.weight"
    tied = head not in spec.weight_shapes
    if tied and not _same_memory(loaded.get(head), loaded.get(embeddings)):
        raise IntegrityError(f"{spec.folder}: {head} is tied in config.json, and loaded untied; {REMEDY}.")
    stored = spec.weight_shapes.keys()
    missing = sorted((loaded.keys() - {head} if tied else loaded.keys()) ^ stored)
    if missing:
        where = "only in what transformers loads" if missing[0] in loaded else "not in what it loads"
        raise IntegrityError(f"{spec.folder}: {missing[0]} is {where}; {REMEDY}.")
    progress = progress or Silent()
    progress.start("comparing", len(stored), 0)
    for done, name in enumerate(stored, 1):
        require_same_tensor(name, loaded[name], reader)
        if lean:
            let_go([loaded[name]])
        progress.advance("comparing", done, {})
    return sum(reader.tensors[name].size for name in stored)


def _same_memory(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()


def require_same_tensor(name: str, value: Tensor, reader: CheckpointReader) -> None:
    """Compare one weight with the checkpoint's own, in the type that it has in memory.

    Raises:
        IntegrityError: it differs.
    """
    info = reader.tensors[name]
    if tuple(value.shape) != info.shape:
        raise IntegrityError(
            f"{info.path}: {name} has shape {list(info.shape)}, as loaded {list(value.shape)}; {REMEDY}."
        )
    for first, rows in reader.read_rows(name, AT_ONCE):
        expected = as_tensor(rows, info.dtype).to(value.dtype)
        if not torch.equal(_bits(expected), _bits(value[first : first + len(rows)].cpu())):
            raise IntegrityError(f"{info.path}: {name} is not what transformers loads; {REMEDY}.")


def _bits(values: Tensor) -> Tensor:
    """The bytes, for NaN is not equal to itself."""
    return values.contiguous().view(torch.uint8)


@contextmanager
def _without_offload_notice() -> Iterator[None]:
    """accelerate warns that weights stay on disk, which is what we want."""
    logger = logging.getLogger("accelerate.big_modeling")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _dtype_of(reader: CheckpointReader) -> torch.dtype:
    """The type to load a checkpoint in so that nothing is rounded.

    The files' own, if they have but one: then loading looks at no weight, where widening each would read all
    of the files.
    """
    kinds = {info.dtype for info in reader.tensors.values()}
    if len(kinds) == 1 and kinds <= FLOATS:
        return torch_dtype(*kinds)
    return torch.float64 if "F64" in kinds else torch.float32


class LoadedWeights(FloatRows):
    """The weights of a checkpoint as transformers resolves and reads them, one at a time from disk: what a
    `Probe` can be given in place of a reader of koffkit's. A context manager.

    Attributes:
        tensors: what is there, by name, with `shape`; a head that transformers ties is left out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        from transformers import AutoModelForCausalLM

        self._spill = tempfile.TemporaryDirectory(prefix="koffkit-")
        with _without_offload_notice():
            model = AutoModelForCausalLM.from_pretrained(
                self.folder,
                device_map={"": "disk"},
                offload_folder=self._spill.name,
                dtype=_dtype_of(CheckpointReader(self.folder)),
                trust_remote_code=False,
            )
        self._weights: Mapping[str, Tensor] = model.get_input_embeddings()._hf_hook.weights_map.dataset
        self._index: Mapping[str, Any] = getattr(self._weights, "index", None) or {}
        self.tensors = dict(model.named_parameters())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spill.cleanup()

    def gather_rows(self, name: str, indices: list[int], dtype: torch.dtype | None = None) -> Tensor:
        """Chosen rows."""
        with self._opened(name) as value:
            rows = [value[index : index + 1] for index in indices]
            return torch.cat(rows).to(dtype or torch.float32)

    def tensor_rows(self, name: str, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows)` in the type that transformers loads them in."""
        like = self.tensors[name]
        count, total = rows_in(at_once, like.shape, like.element_size()), like.shape[0]
        mapped = count * max(1, rows_in(MAPPED, like.shape, like.element_size()) // count)
        for begin in range(0, total, mapped):
            end = min(total, begin + mapped)
            with self._opened(name) as value:
                for first in range(begin, end, count):
                    yield first, value[first : min(end, first + count)]

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """What gives rows of a tensor when it is sliced. The file is mapped: pages that were looked at count
        as memory of the process until the block ends."""
        from safetensors import safe_open

        entry = self._index.get(name, {})
        if "safetensors_file" not in entry:
            yield self._weights[name]
            return
        with safe_open(entry["safetensors_file"], framework="pt") as file:
            yield file.get_slice(entry.get("weight_name", name))
