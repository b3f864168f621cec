"""A model folder, opened once: all that the rest of koffkit needs to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from ..arch import Architecture, Shape, architecture, architecture_of
from ..arch.weights import weight_shapes
from ..arch.widths import LayerWidths, layer_widths
from ..errors import UsageError
from ..progress import Progress
from .defaults import with_default_sizes
from .files import CONFIG, read_config
from .fingerprint import DigestKind, digest_of
from .reader import CheckpointReader


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model: its config and all that follows from it, each computed once, on first use.

    Args:
        config: the `config.json` object.
        path: its folder; None for a model that is a config only, as in plans and tests.
        family: `model_type` of the architecture if the config names another one: a sliced backbone may have a
            container class.

    Raises:
        UsageError: on access to `arch`, `shape` and what follows from them: the architecture is not
            supported, or a size is missing.
    """

    config: Mapping[str, Any]
    path: Path | None = None
    family: str | None = None

    @classmethod
    def open(cls, folder: Path, *, family: str | None = None) -> ModelSpec:
        """Read a folder's `config.json`; sizes that it leaves to its class in transformers are filled in.

        Raises:
            DataError: it is missing or damaged.
            UsageError: transformers does not accept it, or what it fills in does not fit the weights.
        """
        given = read_config(folder)
        spec = cls(config=with_default_sizes(given, folder / CONFIG), path=folder, family=family)
        if spec.config != given:
            spec._require_fit([key for key in spec.config if spec.config[key] != given.get(key)])
        return spec

    def _require_fit(self, filled_in: list[str]) -> None:
        """Check the sizes that were filled in against the weights, if there are any yet."""
        if not list(self.folder.glob("*.safetensors")):
            return
        tensors = CheckpointReader(self.folder).tensors
        for name, shape in self.weight_shapes.items():
            if name in tensors and tensors[name].shape != shape:
                sizes = ", ".join(f"{key} (which then is {self.config[key]})" for key in filled_in)
                raise UsageError(
                    f"{self._source}: it does not state {sizes}, and {name} has shape "
                    f"{list(tensors[name].shape)} instead of {list(shape)}; add the true size to the file."
                )

    @property
    def folder(self) -> Path:
        """`path` of a model that has one."""
        assert self.path is not None, "this model is a config without a folder"
        return self.path

    @cached_property
    def arch(self) -> Architecture:
        if self.family is not None:
            return architecture(self.family)
        return architecture_of(self.config, source=self._source)

    @cached_property
    def shape(self) -> Shape:
        return Shape.of(self.config, source=self._source)

    @cached_property
    def widths(self) -> list[LayerWidths]:
        """The widths of every layer: the recorded ones, else the same for all."""
        return layer_widths(self.config, self.shape)

    @cached_property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the checkpoint must hold, with its shape."""
        return weight_shapes(self.arch, self.shape, self.config)

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters, embeddings included, tied weights counted once."""
        return sum(prod(size) for size in self.weight_shapes.values())

    @property
    def num_layers(self) -> int:
        return self.shape.num_layers

    def digest(self, kind: DigestKind = "full", progress: Progress | None = None) -> str:
        """What the folder is known again by; see `koffkit.checkpoint.fingerprint.digest_of`."""
        return digest_of(self.folder, kind, progress)

    def reader(self) -> CheckpointReader:
        """The checkpoint's tensors: all that there must be, in the right shapes, and no others.

        Raises:
            IntegrityError: a file is damaged, or a tensor is missing or of another shape; a loader would
                fill it with random numbers and say nothing.
            UsageError: the files hold a tensor that the config has no place for.
        """
        reader = CheckpointReader(self.folder)
        reader.require_all(self.weight_shapes)
        for name in reader.tensors.keys() - self.weight_shapes.keys():
            self._require_tied(name, reader)
        return reader

    def _require_tied(self, name: str, reader: CheckpointReader) -> None:
        """A tensor too many is met if it is the tied head, stored a second time."""
        info, embeddings = reader.tensors[name], f"{self.arch.embeddings}.weight"
        if name != f"{self.arch.head}.weight":
            raise UsageError(
                f"{info.path}: {name} has no place in a model of this {self._source}; correct the config, or "
                "remove the tensor."
            )
        if not reader.same(name, embeddings):
            raise UsageError(
                f"{info.path}: {name} is not {embeddings}, though {self._source} ties them; set "
                "tie_word_embeddings to false there (transformers would not tie them either), or remove "
                f"{name}."
            )

    @property
    def _source(self) -> str:
        return CONFIG if self.path is None else str(self.path / CONFIG)
