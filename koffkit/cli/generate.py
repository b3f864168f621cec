"""`koffkit generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError, UsageError, near_name
from .console import RichProgress, emit, json_option, quiet_libraries, say
from .place import batch_size_option, device_option, dtype_option, verify_option

if TYPE_CHECKING:
    from ..runtime.model import KoffModel

Choice = tuple[str | None, float | None]
"""The memory of a prompt, None: the bare backbone; and the probability that a router gave it."""


@click.command("generate")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--prompt", multiple=True, help="Text to complete; repeatable.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts, one a line; of a .jsonl file the field `prompt`. After those of --prompt.",
)
@click.option(
    "--memory", default="auto", show_default=True, help="auto (the router decides), none, or a domain."
)
@click.option("--chat", is_flag=True, help="A prompt is what a user says: use the tokenizer's chat template.")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    help="Sample, from flatter odds the higher it is.  [default: 0, the likeliest token]",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample from the likeliest tokens that have this share of the odds.  [default: 1]",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of sampling.")
@device_option
@dtype_option("auto")
@batch_size_option(16, "Prompts")
@verify_option
@json_option
def command(
    export: Path,
    prompt: tuple[str, ...],
    prompts: Path | None,
    memory: str,
    chat: bool,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    device: str | None,
    dtype: str,
    batch_size: int,
    verify: bool,
    as_json: bool,
) -> None:
    """Complete a prompt with the backbone of EXPORT and one of its memories. The text comes as it is made;
    stderr says which memory it is made with."""
    if not export.is_dir():
        raise UsageError(f"{export}: no such folder.")
    texts = [*prompt, *([] if prompts is None else _read_prompts(prompts))]
    if not texts:
        raise UsageError("give what to complete with --prompt TEXT or --prompts FILE.")
    require_memory(export, memory)
    quiet_libraries()
    from ..artefact.export import is_merged
    from ..devices import find_device
    from ..runtime.model import KoffModel

    RichProgress().message(f"loading {export}")
    model = KoffModel.from_pretrained(export, device=find_device(device), dtype=dtype, verify=verify)
    chosen = _choose(model, texts, "none" if memory == "auto" and is_merged(export) else memory)
    options = sampling(temperature, top_p, seed) | {"chat": chat, "max_new_tokens": max_new_tokens}
    if as_json:
        completions = _complete(model, texts, chosen, batch_size, options)
        emit({"completions": list(completions)})
        return
    _say_memories(chosen)
    if len(texts) == 1:
        _stream(model, texts[0], chosen[0][0], options)
        return
    for row in _complete(model, texts, chosen, batch_size, options):
        say(row["completion"] if chat else row["prompt"] + row["completion"])


def _read_prompts(path: Path) -> list[str]:
    """The prompts in a file.

    Raises:
        DataError: it cannot be read, or holds none.
    """
    from ..data.reading import lines_of
    from ..data.records import file_records, text_field

    if not path.is_file():
        raise DataError(f"--prompts {path}: no such file.")
    if ".jsonl" in path.suffixes:
        rows = file_records(path, "prompt", "--prompts")
        texts = [text_field(record, "prompt", spot) for spot, record in rows]
    else:
        texts = [line.rstrip("\r\n") for _, line in lines_of(path, "--prompts") if line.strip()]
    if not texts:
        raise DataError(f"--prompts {path}: there is no prompt in it; write one a line.")
    return texts


def require_memory(path: Path, memory: str) -> None:
    """Refuse a misspelt memory before the seconds of loading."""
    from ..artefact.export import is_export, open_export

    if memory in ("auto", "none") or not is_export(path):
        return
    names = [bundle.domain for bundle in open_export(path).bundles()]
    if memory not in names:
        raise UsageError(f"{path}: no memory {memory!r}; {near_name(memory, names)}")


def _choose(model: KoffModel, texts: Sequence[str], memory: str) -> Sequence[Choice]:
    if memory == "auto":
        return model.route(texts)
    return [(None if memory == "none" else memory, None)] * len(texts)


def sampling(temperature: float | None, top_p: float | None, seed: int) -> dict[str, Any]:
    """Options of transformers' `generate`; greedy unless one of the two is given."""
    import torch

    if not temperature and (top_p is None or temperature == 0):
        return {"do_sample": False}
    torch.manual_seed(seed)
    return {"do_sample": True, "temperature": temperature or 1.0, "top_p": 1.0 if top_p is None else top_p}


def _say_memories(chosen: Sequence[Choice]) -> None:
    progress = RichProgress()
    for number, (name, odds) in enumerate(chosen, 1):
        which = "no memory" if name is None else f"memory {name}"
        routed = "" if odds is None else f" (the router is {odds:.1%} sure)"
        prompt = "" if len(chosen) == 1 else f"prompt {number}: "
        progress.message(f"{prompt}{which}{routed}")


def _complete(
    model: KoffModel,
    texts: Sequence[str],
    chosen: Sequence[Choice],
    batch_size: int,
    options: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """The completion of each prompt, batch by batch."""
    for first in range(0, len(texts), batch_size):
        part = slice(first, first + batch_size)
        names = [name for name, _ in chosen[part]]
        written = model.generate(list(texts[part]), memory=names, **options)
        for text, completion, (name, odds) in zip(texts[part], written, chosen[part], strict=True):
            yield {"prompt": text, "completion": completion, "memory": name, "probability": odds}


def _stream(model: KoffModel, text: str, memory: str | None, options: Mapping[str, Any]) -> None:
    """Print a completion word by word, after its prompt."""
    from transformers import TextStreamer

    class Stream(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            say(text, nl=stream_end)
            sys.stdout.flush()

    if not options["chat"]:
        say(text, nl=False)
    streamer = Stream(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(text, memory=[memory], streamer=streamer, **options)
