"""The files of a checkpoint: config, tokenizer, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DataError, IntegrityError, UsageError
from ..storage.read_json import read_json

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
CARD = "README.md"
CHECKPOINT_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", CARD, "LICENSE*", "NOTICE*"]


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` object.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / CONFIG
    if not path.exists():
        raise DataError(f"{path}: missing; a base is a folder with config.json and *.safetensors.")
    return read_json(path, error=DataError, remedy="download it again")


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a checkpoint.

    Raises:
        DataError: it has none, or it does not load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{folder}: no tokenizer that loads ({reason}); put tokenizer.json and tokenizer_config.json "
            "there."
        ) from None


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
            raise UsageError(
                f"{folder}: only pickled weights (*.bin), which koffkit never opens; convert them to "
                "safetensors first."
            )
        raise IntegrityError(f"{folder}: neither model.safetensors nor {INDEX}.")
    try:
        listed = read_json(index, remedy="download the checkpoint again")
        names = sorted(set(listed["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise IntegrityError(
            f"{index}: not a valid checkpoint index ({type(error).__name__}: {error})."
        ) from None
    for name in names:
        path = folder / str(name)
        if not isinstance(name, str) or Path(name).name != name:
            raise IntegrityError(f"{index}: shard name {name!r} leads out of the folder; refused.")
        if not path.is_file():
            raise IntegrityError(f"{index}: names {name}, which is missing; download the checkpoint again.")
    return [folder / name for name in names]
