"""Finding the base checkpoint and knowing it again."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from .embedded import PREFIX
from .embedded import path as embedded_path
from .errors import DataError, IntegrityError, UsageError
from .recipe.schema import Base

INDEX = "model.safetensors.index.json"
SAMPLES, SAMPLE_BYTES = 64, 1024  # of each weight file
CHECKPOINT_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def locate(base: Base, root: Path, *, config_only: bool = False) -> Path:
    """The local folder of a base: embedded, local (relative to the recipe, else the working folder), or downloaded.

    Args:
        config_only: for plans; fetch nothing but `config.json` of a hub model.

    Raises:
        DataError: it is nowhere to be found.
    """
    name = base.model
    if name.startswith(PREFIX):
        try:
            return embedded_path(name.removeprefix(PREFIX))
        except FileNotFoundError as error:
            raise DataError(f"base.model: {error}") from None
    for folder in (root / name, Path(name)):
        if folder.is_dir():
            return folder.resolve()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(f"base.model: no folder {name!r} in {root} or {Path.cwd()}, and it is not a hub id (owner/name).")
    return _download(base, config_only)


def _download(base: Base, config_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["config.json"] if config_only else CHECKPOINT_PATTERNS
    try:
        return Path(snapshot_download(base.model, revision=base.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"base.model: {base.model!r} is no local folder and the hub did not give it: {reason}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` object.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; a base is a folder with config.json and *.safetensors.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: not a JSON object.")
    return config


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        DataError: it has none that loads.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{folder}: no tokenizer that loads ({reason}); put tokenizer.json and tokenizer_config.json there.") from None


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint in order, as its index names them.

    Raises:
        IntegrityError: the index is damaged, names a file outside the folder or one that is missing.
        UsageError: there are only pickled weights.
    """
    index = folder / INDEX
    if not index.is_file():
        single = folder / "model.safetensors"
        if single.is_file():
            return [single]
        if any(folder.glob("*.bin")):
            raise UsageError(f"{folder}: only pickled weights (*.bin), which koffkit never opens; convert them to safetensors first.")
        raise IntegrityError(f"{folder}: neither model.safetensors nor {INDEX}.")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise IntegrityError(f"{index}: not a valid checkpoint index ({type(error).__name__}: {error}).") from None
    for name in names:
        path = folder / str(name)
        if not isinstance(name, str) or Path(name).name != name:
            raise IntegrityError(f"{index}: shard name {name!r} leads out of the folder; refused.")
        if not path.is_file():
            raise IntegrityError(f"{index}: names {name}, which is missing; download the checkpoint again.")
    return [folder / name for name in names]


def digest(folder: Path) -> str:
    """sha256 over the config, and of every weight file the header, the size and samples of its bytes: cheap, and a model of the same
    shape that was trained further has another one."""
    hasher = hashlib.sha256(json.dumps(read_config(folder), sort_keys=True).encode())
    for path in checkpoint_files(folder):
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            hasher.update(path.name.encode() + file.read(min(length, 100_000_000)))
            for place in range(SAMPLES):
                file.seek(size * place // SAMPLES)
                hasher.update(file.read(SAMPLE_BYTES))
        hasher.update(str(size).encode())
    return hasher.hexdigest()
