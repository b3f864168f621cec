"""What is fuzzed: each target makes a sound input, and reads a damaged one."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
import zstandard

from koffkit.data.chat import check_conversation, conversation_ids
from koffkit.data.sources import documents, file_source
from koffkit.recipe.builtin import shipped
from koffkit.recipe.load import load_recipe, recipe_from_tree

from ..common import make_tokenizer
from .mutate import changed, damaged

Read = Callable[[bytes, Path], None]


@dataclass(frozen=True)
class Target:
    """How a kind of input is made and read.

    Args:
        make: a damaged input. read: it, in a folder to write to.
    """

    make: Callable[[random.Random], bytes]
    read: Read


@cache
def _recipes() -> list[bytes]:
    names = list(shipped())
    return [shipped()[name].read_bytes() for name in ("quickstart", names[1], names[-1])]


@cache
def _trees() -> list[Any]:
    return [yaml.safe_load(recipe) for recipe in _recipes()]


def _recipe_text(draw: random.Random) -> bytes:
    return damaged(draw.choice(_recipes()), draw)


def _recipe_tree(draw: random.Random) -> bytes:
    tree = draw.choice(_trees())
    for _ in range(draw.choice((1, 1, 2, 4))):
        tree = changed(tree, draw)
    return json.dumps(tree).encode()


def _override(draw: random.Random) -> bytes:
    field = draw.choice(
        ("mask.global_sparsity", "memory.layers", "stages.recover.max_steps", "domains.en.jsonl")
    )
    value = draw.choice(("{upper: 4, x: [1, 2]}", "0.2", "[1, 2]", "3"))
    return damaged(f"{field}={value}".encode(), draw)


def _rows(draw: random.Random) -> bytes:
    rows: list[Any] = [{"text": "river stone", "n": i, "more": [{"a": None}]} for i in range(4)]
    place = draw.randrange(4)
    rows[place] = changed(rows[place], draw)
    text = "\n".join(json.dumps(row) for row in rows).encode()
    return damaged(text, draw) if draw.random() < 0.5 else text


def _array(draw: random.Random) -> bytes:
    return b"[" + _rows(draw).replace(b"\n", b",\n") + b"]"


def _table(draw: random.Random) -> bytes:
    return damaged(b'text,n\n"river, stone",1\nlamp,2\n"a\nb",3\n', draw)


def _packed(pack: Callable[[bytes], bytes]) -> Callable[[random.Random], bytes]:
    text = "\n\n".join(f"river stone {n}" for n in range(60)).encode()
    packed = pack(text) + pack(text)
    return lambda draw: damaged(packed, draw)


def _talk(draw: random.Random) -> bytes:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    value: Any = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "river"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "stone"},
            {"role": "assistant", "content": "lamp"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = changed(value, draw)
    return json.dumps(value).encode()


@cache
def _tokenizer() -> Any:
    made = make_tokenizer()
    made.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content | trim }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    return made


def _read_recipe(data: bytes, folder: Path) -> None:
    path = folder / "r.yaml"
    path.write_bytes(data)
    load_recipe(path).recipe.model_dump_json()


def _read_override(data: bytes, folder: Path) -> None:
    recipe = _trees()[0]  # quickstart
    recipe_from_tree(recipe, [data.decode("utf-8", "replace")], folder).recipe.model_dump_json()


def _read_documents(name: str) -> Read:
    def read(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        for text in documents(file_source(str(path)), folder, "domains.x"):
            text.encode()

    return read


def _read_talk(data: bytes, folder: Path) -> None:
    value = json.loads(data)
    if not isinstance(value, dict) or "messages" not in value:
        return
    conversation = check_conversation(value["messages"], value.get("tools"), "here")
    conversation.user_text.encode()
    conversation_ids(_tokenizer(), conversation, mask=True)


TARGETS = {
    "recipe text": Target(_recipe_text, _read_recipe),
    "recipe tree": Target(_recipe_tree, _read_recipe),
    "override": Target(_override, _read_override),
    "json lines": Target(_rows, _read_documents("a.jsonl")),
    "json array": Target(_array, _read_documents("a.json")),
    "csv": Target(_table, _read_documents("a.csv")),
    "gzip": Target(_packed(gzip.compress), _read_documents("a.txt.gz")),
    "bzip2": Target(_packed(bz2.compress), _read_documents("a.txt.bz2")),
    "xz": Target(_packed(lzma.compress), _read_documents("a.txt.xz")),
    "zstd": Target(_packed(zstandard.ZstdCompressor().compress), _read_documents("a.txt.zst")),
    "conversation": Target(_talk, _read_talk),
}
