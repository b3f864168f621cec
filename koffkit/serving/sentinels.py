"""What the export that another server runs says of memories, for those who ask that server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artefact.bundle import Bundle
from ..artefact.export import is_export, open_export
from ..artefact.names import MANIFEST, SERVING
from ..errors import IntegrityError, UsageError
from ..storage.read_json import read_json

FORMAT = "vllm"
"""The one whose server takes a KV half as tokens of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """The memories that another server knows.

    Attributes:
        memories: their names.
        sentinels: of those with a KV half the token that stands for it, and how many there are.
        chats: its chat template puts them before a chat, or there are none.
    """

    memories: list[str]
    sentinels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    chats: bool = True


def served_memories(bundles: Sequence[Bundle], folder: Path | None) -> Served:
    """The memories that another server knows.

    Args:
        bundles: of the export.
        folder: the export of format vllm that the server runs; None: it has all memories, and no KV halves.

    Raises:
        UsageError: the folder is no such export.
        IntegrityError: its manifest or its `serving.json` is damaged.
    """
    if folder is None:
        return Served(memories=[bundle.domain for bundle in bundles])
    _require_format(folder)
    path = folder / SERVING
    serving: Any = read_json(path, remedy="export again")
    try:
        halves = {str(name): entry["kv"] for name, entry in serving["memories"].items()}
        found = {
            name: (int(kv["sentinel"]), int(kv["tokens"])) for name, kv in halves.items() if kv is not None
        }
        template = serving["chat_template"]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise IntegrityError(f"{path}: not as koffkit writes it; export again.") from None
    return Served(memories=list(halves), sentinels=found, chats=template is not None or not found)


def _require_format(folder: Path) -> None:
    """Refuse what `vllm serve` does not run: there sentinels would be text, and no adapter would be chosen.

    Raises:
        UsageError: it is no export, or one of another format.
    """
    if not is_export(folder):
        raise UsageError(
            f"--upstream-export {folder}: no {MANIFEST}; name an export of format {FORMAT} or gguf (one of "
            "an earlier koffkit has to be made again)."
        )
    found = open_export(folder, any_format=True).manifest.format
    if found != FORMAT:
        raise UsageError(
            f"--upstream-export {folder}: an export of format {found}; it must be of format {FORMAT} or "
            f"gguf, which vLLM and llama-server run: koffkit export --format {FORMAT}."
        )
