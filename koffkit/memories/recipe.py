"""The recipe of an added memory: that of the export, with the new domain only and no mask to learn."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from ..artefact.export import Export
from ..artefact.names import MANIFEST, MASKS
from ..artefact.places import remembered
from ..checkpoint.fingerprint import digest_of
from ..errors import DataError, IntegrityError, UsageError
from ..hub import locate
from ..progress import Progress
from ..recipe.learning import Memory
from ..recipe.load import LoadedRecipe, apply_override, validated
from ..recipe.schema import DOMAIN_NAME, RESERVED, Base, Recipe

KEPT = (
    "koffkit",
    "seed",
    "base",
    "sequence_length",
    "begin_sequences",
    "attend_across_documents",
    "holdout",
    "holdout_seed",
    "mask",
    "memory",
    "distill",
    "train",
)
SETTABLE = (
    "memory",
    "sequence_length",
    "begin_sequences",
    "attend_across_documents",
    "holdout",
    "holdout_seed",
    "seed",
    "distill",
    "train",
    "stages.restore",
    "stages.recover",
)
OF_THE_JOINT_RUN = ("domain_weights", "cache", "cache_dir")
"""Fields of `distill` that are about other domains, or the disk of whoever made the export."""


class MemoryRecipe(Recipe):
    """A recipe whose mask is given: its stages begin after it."""

    @model_validator(mode="after")
    def _stage_order(self) -> MemoryRecipe:
        names = [stage.name for stage in self.stages]
        if names not in (names_of(self.memory), ["recover", "evaluate"]):
            raise ValueError(f"stages of a memory are {names_of(self.memory)} (found: {names})")
        return self


def names_of(memory: Memory) -> list[str]:
    """The stages that learn a memory on a finished backbone."""
    neurons = memory.neurons
    trained = memory.lora is not None or memory.kv is not None or neurons is None or neurons.tuned
    wanted = {"restore": neurons is not None, "recover": trained, "evaluate": True}
    return [name for name, there in wanted.items() if there]


def check_name(name: str) -> None:
    """Refuse a name that cannot be a domain.

    Raises:
        UsageError: it is reserved, or not a valid name.
    """
    if name in RESERVED:
        raise UsageError(
            f"{name}: cannot be a domain: --memory gives the name a meaning of its own; choose another name."
        )
    if not re.fullmatch(DOMAIN_NAME, name):
        raise UsageError(
            f"{name!r}: not a domain's name; use letters, digits, - and _, a letter or digit first."
        )


def find_base(export: Export, given: Path | None, progress: Progress | None = None) -> Path:
    """Find the unpruned model of an export: where its manifest says, or at `given`.

    Args:
        export: the export.
        given: where the user says that it is.
        progress: told how far the reading of it is; by default nobody is.

    Raises:
        DataError: there is no model.
        IntegrityError: it is not the model that the export was made from.
    """
    recorded, settings = export.manifest.base, export.manifest.recipe["base"]
    known = {key: value for key, value in settings.items() if key in Base.model_fields}
    base = Base.model_validate(known | {"model": recorded.model if given is None else str(given)})
    root = export.path.resolve().parent if given is None else Path.cwd()
    try:
        folder = locate(base.model, root, revision=base.revision)
    except DataError as error:
        found = _base_of_this_machine(export) if given is None else None
        if found is None:
            raise DataError(
                f"{error} The unpruned model is the teacher and the reference; say where it is with "
                "--base PATH."
            ) from None
        folder = found
    if digest_of(folder, recorded.digest_kind, progress) != recorded.fingerprint:
        raise IntegrityError(
            f"{folder}: not the base that {export.path} was made from ({recorded.model}, fingerprint "
            f"{recorded.fingerprint[:12]}); give that one with --base."
        )
    return folder


def _base_of_this_machine(export: Export) -> Path | None:
    """Where the base was when the export was made on this machine."""
    places = remembered(export.backbone_digest)
    base = None if places is None else Path(places.base)
    return base if base is not None and base.is_dir() else None


def memory_recipe(
    export: Export, name: str, source: Mapping[str, Any], base: Path, overrides: Sequence[str] = ()
) -> LoadedRecipe:
    """Build the recipe of an added memory from that of the export; relative paths start at the working
    folder.

    Args:
        source: fields of the recipe's `Source`.
        base: the folder of the unpruned model.

    Raises:
        UsageError: a setting is not valid, or is fixed by the backbone.
    """
    original = export.manifest.recipe
    tree: dict[str, Any] = {"begin_sequences": False}  # as in exports that do not say
    tree |= {key: original[key] for key in KEPT if key in original}
    tree["distill"] = {
        key: value for key, value in tree.get("distill", {}).items() if key not in OF_THE_JOINT_RUN
    }
    if isinstance(tree["memory"].get("layers"), dict) and "learned_bytes" in tree["memory"]["layers"]:
        tree["memory"] = tree["memory"] | {"layers": _learned_layers(export)}
    tree["name"] = f"{export.manifest.name}-{name}"
    tree["mask"] = _mask(original)
    # The export may come from somebody else.
    tree["base"] = tree["base"] | {"model": str(base), "trust_remote_code": False}
    tree["domains"] = {name: dict(source)}
    tree["stages"] = [
        {"restore": _stage(original, "restore")},
        {"recover": _training(original)},
        {"evaluate": {**_stage(original, "evaluate"), "swap": False}},
    ]
    for override in overrides:
        _require_settable(override)
        apply_override(tree, override)
    _leave_out_stages(tree)
    recipe = validated(tree, "memory add", {}, MemoryRecipe)
    if recipe.memory.neurons is not None and export.masks is None:
        raise UsageError(
            f"{export.path}: memory.neurons: what the mask removed is not on record here ({MASKS}; exports "
            "of earlier versions and merged ones have none); export the run again, or learn without: --set "
            "memory.neurons=null."
        )
    if not recipe.memory.is_on:
        raise UsageError(
            "memory: all halves are off, as in the recipe of this export; set one, for example --set "
            "memory.kv.tokens=32, "
            "or --set 'memory.lora={rank: 32, alpha: 32, targets: [gate_proj, up_proj, down_proj]}'."
        )
    return LoadedRecipe(recipe=recipe, path=export.path / MANIFEST, root=Path.cwd())


def _leave_out_stages(tree: dict[str, Any]) -> None:
    """Leave out the stages that this memory does not need; a memory that is not valid keeps them."""
    try:
        wanted = names_of(Memory.model_validate(tree["memory"]))
    except ValidationError:
        return
    tree["stages"] = [stage for stage in tree["stages"] if next(iter(stage)) in wanted]


def _learned_layers(export: Export) -> list[int]:
    """The layers that learning chose for the memories of this export.

    Raises:
        UsageError: no memory is left that shows them.
    """
    for bundle in export.bundles():
        return list(bundle.info.layers)
    raise UsageError(
        "memory.layers: which layers carry memory was learned, and no memory is left to tell; name them: "
        "--set memory.layers=[...]."
    )


def _require_settable(override: str) -> None:
    field = override.partition("=")[0]
    if not any(field == allowed or field.startswith(f"{allowed}.") for allowed in SETTABLE):
        raise UsageError(
            f"--set {override}: fixed by the backbone, or without effect on a single memory; what can be "
            f"set is under {', '.join(SETTABLE)}."
        )


def _training(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `recover`: those of the recipe, with the steps that its stages gave each domain, and for the
    memory alone.

    All of them go to one memory under a hard mask, which makes up for a mask learned without the domain
    (benchmarks/memory_add.py).
    """
    joint, recover = _stage(recipe, "learn_masks"), _stage(recipe, "recover")
    joint.pop("joint", None)
    steps = joint.get("max_steps", 0) + recover.get("max_steps", 0)
    options = recover or joint
    rates = {**(options.get("lr") or {}), "backbone": None}  # which is finished, and of all memories
    return {**options, "max_steps": math.ceil(steps / len(recipe["domains"])), "lr": rates}


def _mask(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """That of the recipe, but without its repair where the backbone trained: fitting neurons to such a
    backbone brought nothing (benchmarks/results)."""
    trained = (_stage(recipe, "recover").get("lr") or {}).get("backbone") is not None
    return {**recipe["mask"], "repair": "none"} if trained else dict(recipe["mask"])


def _stage(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next((dict(stage[name]) for stage in recipe["stages"] if stage.get(name) is not None), {})
