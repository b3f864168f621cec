"""Loading a backbone and its memories from disk, for `KoffModel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import sliced  # noqa: F401  # registers the sliced classes with transformers' Auto classes
from ..artefact.bundle import Bundle, open_bundle
from ..artefact.check import require_sound, require_sound_bundle
from ..artefact.digests import backbone_digest
from ..artefact.export import is_export, open_export
from ..artefact.names import BACKBONE
from ..checkpoint.files import load_tokenizer
from ..devices import find_device, parse_dtype
from ..errors import UsageError
from ..model.kv_attention import NAME


@dataclass(frozen=True, kw_only=True)
class LoadedBackbone:
    """A backbone in memory, and what goes with it.

    Attributes:
        model: the transformers model.
        tokenizer: the backbone's tokenizer.
        folder: the backbone's folder.
        digest: the backbone's digest.
        bundles: the memories to load; each belongs to this backbone.
        router: the router's folder; None if there is no router.
    """

    model: Any
    tokenizer: Any
    folder: Path
    digest: str
    bundles: list[Bundle]
    router: Path | None


def load_backbone(
    path: Path,
    memories: Sequence[str | Path] | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    options: Mapping[str, Any],
    *,
    verify: bool = False,
) -> LoadedBackbone:
    """Check every file, and load the backbone; see `KoffModel.from_pretrained`.

    Args:
        path: an export, or a backbone folder.
        memories: domains or folders of bundles; None: all of the export.
        device: where the model goes; None: the CPU, or where `options` say.
        dtype: of the weights; None: as they are stored.
        options: for `AutoModelForCausalLM.from_pretrained`.
        verify: read every byte of the backbone's weights.
    """
    require_koffkit_attention(options)
    target_device = None if device is None else find_device(device)
    torch_dtype = parse_dtype(dtype)
    export = open_export(path) if is_export(path) else None
    if export is not None:
        require_sound(export, whole=verify)
    folder = path / BACKBONE if export is not None else path
    if not (folder / "config.json").is_file():
        raise UsageError(f"{path}: neither an export (koffkit.json) nor a backbone folder (config.json).")
    bundles = select_bundles(export.bundles() if export is not None else [], memories)
    digest = backbone_digest(folder) if export is None else export.backbone_digest
    for bundle in bundles:
        bundle.require_backbone(digest, folder)
    options = {"trust_remote_code": False, **options}
    if torch_dtype is not None:
        options["dtype"] = torch_dtype
    model = _load_model(folder, options)
    if target_device is not None:
        model.to(target_device)
    return LoadedBackbone(
        model=model,
        tokenizer=load_tokenizer(folder, trust_remote_code=bool(options["trust_remote_code"])),
        folder=folder,
        digest=digest,
        bundles=bundles,
        router=None if export is None else export.router,
    )


def _load_model(folder: Path, options: Mapping[str, Any]) -> Any:
    """The transformers model.

    Raises:
        UsageError: transformers refuses the folder or an option, or would have to run code of the folder.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"{folder / 'config.json'}: loading it would run code that lies in the folder; where you "
                "trust whoever made it, pass trust_remote_code=True from Python."
            ) from None
        reason = str(error).strip().splitlines()
        raise UsageError(
            f"{folder}: transformers does not load it ({reason[0] if reason else type(error).__name__}); "
            "check the options, or export again."
        ) from None


def require_koffkit_attention(options: Mapping[str, Any]) -> None:
    """Refuse any attention other than koffkit's, which is stock `sdpa` wherever there is no KV memory."""
    requested = options.get("attn_implementation") or getattr(
        options.get("config"), "_attn_implementation", None
    )
    if requested not in (None, "sdpa", NAME):
        raise UsageError(
            f"attn_implementation {requested!r}: KV memories need koffkit's attention, which computes as "
            'sdpa does; leave the option out or say "sdpa". For other attention load the backbone '
            "folder with transformers, without KV memories."
        )


def select_bundles(shipped: list[Bundle], selected: Sequence[str | Path] | None) -> list[Bundle]:
    """The selected bundles, each given as the domain of a shipped one or as a folder; None: all shipped.

    Args:
        shipped: the bundles of the export.
        selected: domains of shipped ones, or folders; None: all shipped.
    """
    if selected is None:
        return shipped
    by_domain = {bundle.domain: bundle for bundle in shipped}
    return [by_domain.get(str(name)) or _open_sound(name) for name in selected]


def _open_sound(path: str | Path) -> Bundle:
    bundle = open_bundle(path)
    require_sound_bundle(bundle)
    return bundle
