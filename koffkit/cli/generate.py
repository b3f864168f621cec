"""`koffkit generate`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError, near_name
from .console import emit, json_option, quiet_libraries, say
from .place import batch_size_option, device_option, dtype_option


@click.command("generate")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, multiple=True, help="Text to complete; repeatable.")
@click.option(
    "--memory", default="auto", show_default=True, help="auto (the router decides), none, or a domain."
)
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(min=1))
@device_option
@dtype_option("auto")
@batch_size_option(16, "Prompts")
@json_option
def command(
    export: Path,
    prompt: tuple[str, ...],
    memory: str,
    max_new_tokens: int,
    device: str | None,
    dtype: str,
    batch_size: int,
    as_json: bool,
) -> None:
    """Complete a prompt with the backbone of EXPORT and one of its memories."""
    if not export.is_dir():
        raise UsageError(f"{export}: no such folder.")
    _require_memory(export, memory)
    quiet_libraries()
    from ..devices import find_device
    from ..runtime.model import KoffModel

    model = KoffModel.from_pretrained(export, device=find_device(device), dtype=dtype)
    chosen = (
        model.route(prompt)
        if memory == "auto"
        else [(None if memory == "none" else memory, None)] * len(prompt)
    )
    texts: list[str] = []
    for first in range(0, len(prompt), batch_size):
        part = slice(first, first + batch_size)
        names = [name for name, _ in chosen[part]]
        texts += model.generate(list(prompt[part]), memory=names, max_new_tokens=max_new_tokens)
    if as_json:
        completions = [
            {"prompt": one, "completion": text, "memory": name, "probability": probability}
            for one, text, (name, probability) in zip(prompt, texts, chosen, strict=True)
        ]
        emit({"completions": completions})
        return
    for one, text in zip(prompt, texts, strict=True):
        say(one + text)


def _require_memory(path: Path, memory: str) -> None:
    """Refuse a misspelt memory before the seconds of loading."""
    from ..artefact.export import is_export, open_export

    if memory in ("auto", "none") or not is_export(path):
        return
    names = [bundle.domain for bundle in open_export(path).bundles()]
    if memory not in names:
        raise UsageError(f"{path}: no memory {memory!r}; {near_name(memory, names)}")
