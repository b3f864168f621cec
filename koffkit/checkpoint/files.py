"""The files of a checkpoint: config, tokenizer, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DataError, IntegrityError, UsageError
from ..storage.read_json import read_json

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
CARD = "README.md"
CHECKPOINT_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", CARD, "LICENSE*", "NOTICE*"]
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "generation_config.json",
)
"""Of the tokenizer and of generation."""


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

    Args:
        folder: the checkpoint.
        trust_remote_code: whether code of the folder may run.

    Raises:
        DataError: it has none, or it does not load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except MemoryError:
        raise
    except Exception as error:  # the tokenizers library has no class of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{folder}: no tokenizer that loads ({reason}); put tokenizer.json and tokenizer_config.json "
            "there."
        ) from None


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer and of generation, in the order of their names."""
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint in order: the ones that transformers loads.

    That is `model.safetensors` where it is there; an index that names other files which are there too, or an
    adapter that transformers would apply without a word, makes two models of the folder, and is refused.

    Raises:
        IntegrityError: the index is damaged, names a file outside the folder or one that is missing.
        UsageError: there are only pickled weights, weights of two saves, or an adapter.
    """
    if (folder / ADAPTER).is_file():
        raise UsageError(
            f"{folder / ADAPTER}: transformers applies this adapter whenever it loads the folder; merge it "
            "into the weights, or move it away."
        )
    index, single = folder / INDEX, folder / SINGLE
    if not index.is_file():
        if single.is_file():
            return [single]
        if any(folder.glob("*.bin")):
            raise UsageError(
                f"{folder}: only pickled weights (*.bin), which koffkit never opens; convert them to "
                "safetensors first."
            )
        raise IntegrityError(f"{folder}: neither model.safetensors nor {INDEX}.")
    names = _indexed(index)
    if single.is_file() and names != [SINGLE]:
        there = [name for name in names if (folder / name).is_file()]
        if there and there != [SINGLE]:
            raise UsageError(
                f"{folder}: both {SINGLE} and {INDEX} with {there[0]}; transformers loads the former. Delete "
                "the files of the older save."
            )
        return [single]  # the index of an earlier save, whose files are gone
    for name in names:
        if not (folder / name).is_file():
            raise IntegrityError(f"{index}: names {name}, which is missing; download the checkpoint again.")
    return [folder / name for name in names]


def index_of(folder: Path) -> Path | None:
    """The index that says which weight is where; None where it does not count."""
    index = folder / INDEX
    if not index.is_file() or ((folder / SINGLE).is_file() and _indexed(index) != [SINGLE]):
        return None
    return index


def _indexed(index: Path) -> list[str]:
    """The names of files in an index, all of them in its folder."""
    try:
        listed = read_json(index, remedy="download the checkpoint again")
        names = sorted(set(listed["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise IntegrityError(
            f"{index}: not a valid checkpoint index ({type(error).__name__}: {error})."
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise IntegrityError(f"{index}: shard name {name!r} leads out of the folder; refused.")
    return names
