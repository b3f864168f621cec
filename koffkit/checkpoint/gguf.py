"""A GGUF file as a base: dequantised once into an ordinary checkpoint, which lies in koffkit's cache.

The numbers are read by transformers' own GGUF reader. A file that holds plain floats keeps their type, bit
for bit; dequantised blocks are stored in bfloat16, the type that models are published in. Neither depends on
the recipe, so one file is one base with one fingerprint, whatever runs are made from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ..arch import architecture_of
from ..errors import DataError, IntegrityError, UsageError
from ..progress import Progress, Silent
from ..storage.files import write_json
from ..storage.lock import claim
from ..storage.publish import require_space, staged
from ..storage.read_json import read_json
from .files import CARD, CONFIG
from .gguf_header import MAGIC, GgufHeader, read_gguf_header

SUFFIX = ".gguf"
RECORD = "gguf.json"
"""Beside the checkpoint: the file that it was made from, and by what."""
TOKENIZER = "tokenizer.json"
PATIENCE = 24 * 3600.0
"""Seconds to wait for another process that is dequantising the same file."""
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ROPE = "rope_freqs.weight"
_LICENSE = {"license": "general.license", "license_name": "general.license.name"}
_OF_THE_READER = ("transformers_version", "_model_name_or_path")


def named_gguf(name: str) -> bool:
    """Whether a name is that of a GGUF file, whether or not there is one."""
    return name.lower().endswith(SUFFIX)


def is_gguf(path: Path) -> bool:
    """Whether this is a GGUF file: by its name, or by how it begins."""
    if not path.is_file():
        return False
    if named_gguf(path.name):
        return True
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def cache_folder() -> Path:
    """Where koffkit keeps what it can make again: `KOFFKIT_CACHE`, else `koffkit` in the user's cache."""
    own = os.environ.get("KOFFKIT_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "koffkit"


def gguf_checkpoint(path: Path, progress: Progress | None = None) -> Path:
    """The checkpoint of a GGUF file: config, tokenizer with chat template, weights. Made on first use.

    Args:
        path: the GGUF file.
        progress: is told when the file is dequantised.

    Returns:
        A folder in koffkit's cache, named by the file's sha256.

    Raises:
        DataError: it is no GGUF file, or the extra is not installed.
        IntegrityError: it is damaged or truncated.
        UsageError: its architecture, tokenizer or quantisation is not supported.
        ResourceError: the cache's disk is too full.
    """
    folder = cache_folder() / "gguf" / _digest_of(path)
    if (folder / RECORD).is_file():
        return folder
    with claim(folder, patience=PATIENCE):
        if not (folder / RECORD).is_file():
            dequantise(path, folder, progress, claimed=True)
    return folder


def dequantise(path: Path, output: Path, progress: Progress | None = None, *, claimed: bool = False) -> None:
    """Write the model of a GGUF file as an ordinary checkpoint, whole or not at all; errors as of
    `gguf_checkpoint`.

    Args:
        output: a new folder.
        claimed: whether the caller holds its name already.
    """
    header = read_gguf_header(path)
    dtype = _require_readable(path, header)
    require_space(output, header.num_params * (4 if dtype == "float32" else 2))
    size = f"{header.num_params:,} parameters"
    (progress or Silent()).message(f"{path}: dequantising {size} into {output}; a file needs this once")
    quiet = contextlib.redirect_stderr(io.StringIO())  # a progress bar that no setting turns off
    with staged(output, claimed=claimed) as partial, _alone(path) as place, quiet:
        _write_tokenizer(path, place, partial)
        _write_model(path, place, partial, dtype)
        _write_license(header, partial)
        made = {"file": path.name, "bytes": header.size, "sha256": _digest_of(path), "dtype": dtype}
        write_json(partial / RECORD, made | _versions())


def _digest_of(path: Path) -> str:
    status = path.stat()
    return _digest(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    """The sha256 of a file, read once while it stays the same (its size and time of change)."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def _require_readable(path: Path, header: GgufHeader) -> str:
    """Check all that can be checked before the numbers are read.

    Returns:
        The type that the checkpoint's numbers will have.
    """
    if find_spec("gguf") is None:
        raise DataError(f"{path}: reading a GGUF file needs the extra: pip install 'koffkit[gguf]'.")
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    header.require_whole(path, {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()})
    parts = header.metadata.get("split.count", 0)
    if parts > 1:
        raise UsageError(
            f"{path}: one of {parts} parts of a model; merge them first (llama-gguf-split --merge)."
        )
    family = header.metadata.get("general.architecture")
    scaling = header.metadata.get(f"{family}.rope.scaling.type", "none")
    if _ROPE in header.tensors or scaling != "none":
        how = _ROPE if _ROPE in header.tensors else scaling
        raise UsageError(
            f"{path}: its rotary embedding is scaled ({how}), which transformers' GGUF reader drops, so this "
            "would be another model; use the original checkpoint."
        )
    kinds = {GGMLQuantizationType(tensor.kind).name for tensor in header.tensors.values()}
    if not kinds <= set(_FLOATS):
        return "bfloat16"
    return next((_FLOATS[kind] for kind in ("BF16", "F16") if kind in kinds), "float32")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """A folder that holds nothing but the file: transformers prefers a tokenizer or adapter that lies beside
    it."""
    with tempfile.TemporaryDirectory(prefix="koffkit-gguf-") as name:
        (Path(name) / f"model{SUFFIX}").symlink_to(path.resolve())
        yield Path(name)


@contextlib.contextmanager
def _read_by_transformers(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a library meets in a file that it cannot read
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # of the machine, not of the file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{path}: transformers cannot read {what} of this GGUF file ({reason}); use another file or the "
            "original checkpoint."
        ) from error


def _write_tokenizer(path: Path, place: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    with _read_by_transformers(path, "the config"):
        config = AutoConfig.from_pretrained(place, gguf_file=f"model{SUFFIX}")
    architecture_of(_plain(config), source=str(path))  # before hours go into a model of no use
    with _read_by_transformers(path, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=f"model{SUFFIX}")
        tokenizer.save_pretrained(folder)
    _drop_strange_tokens(folder / TOKENIZER, config.vocab_size)


def _drop_strange_tokens(path: Path, size: int) -> None:
    """Drop tokens beyond the model's vocabulary: the library adds `<|endoftext|>` to one that has none, which
    would then end documents without being a row of the embedding."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    known = [token for token in tree["added_tokens"] if token["id"] < size]
    if len(known) < len(tree["added_tokens"]):
        write_json(path, tree | {"added_tokens": known})


def _write_model(path: Path, place: Path, folder: Path, dtype: str) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    options = {"dtype": getattr(torch, dtype), "gguf_file": f"model{SUFFIX}", "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):  # versions that can also keep the blocks
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _read_by_transformers(path, "the weights"):
        read, loading = AutoModelForCausalLM.from_pretrained(place, **options)
    lost = sorted(loading["missing_keys"])
    if lost:
        raise IntegrityError(f"{path}: lacks {lost[0]} ({len(lost)} weights in all); download it again.")
    # An ordinary model with the same numbers: what was read still counts as quantised and is not saved.
    with torch.device("meta"):
        config = type(read.config).from_dict(_plain(read.config))
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    # Of the config only what the file says: the fingerprint must not depend on the library's version.
    written = read_json(folder / CONFIG)
    write_json(folder / CONFIG, {key: value for key, value in written.items() if key not in _OF_THE_READER})


def _plain(config: Any) -> dict[str, Any]:
    tree: dict[str, Any] = config.to_dict()
    tree.pop("quantization_config", None)
    return tree


def _write_license(header: GgufHeader, folder: Path) -> None:
    """A card with the license that the file states, which the cards of exports then repeat."""
    terms = {name: header.metadata[key] for name, key in _LICENSE.items() if key in header.metadata}
    if terms:
        (folder / CARD).write_text(f"---\n{yaml.safe_dump(terms, allow_unicode=True)}---\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("koffkit", "transformers", "gguf")}
