"""The tokenizer in a GGUF file.

llama.cpp has tokenizers of its own: byte-level BPE, whose splitting of text is one of a fixed list of rules
that the file names (the *pre-tokenizer*), and sentencepiece-like BPE, which merges by scores. The rule is
recognised here by what the tokenizer does, not by a digest of its output, so that tokenizers of one's own
are recognised, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.files import load_tokenizer
from ...errors import UsageError

FALLBACK = "gpt-2"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {_WORDS % r"\p{N}": "qwen2", _WORDS % r"\p{N}{1,3}": "llama-bpe"}
"""Regular expressions of well-known pre-tokenizers, as their `tokenizer.json` has them -> llama.cpp's
name."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llama.cpp has it.

    Attributes:
        model: `gpt2` (byte-level BPE) or `llama` (BPE with scores).
        pre: the pre-tokenizer's name.
        recognised: whether `pre` is known to split text as the tokenizer does.
        tokens: the text of every token.
        types: a `TokenType` for each.
        merges: of byte-level BPE.
        scores: of BPE with scores.
        add_space: whether a text gets a space in front.
        adds_bos: whether a text begins with the token `bos`.
        special: ids by role: bos, eos, eot, pad, unk.
        chat_template: in Jinja; None: there is none.
    """

    model: str
    pre: str
    recognised: bool
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    add_space: bool
    adds_bos: bool
    special: Mapping[str, int]
    chat_template: str | None

    def sentinels(self, count: int) -> list[int]:
        """As many token ids, each to stand for the memory tokens of one KV memory: tokens that no text has if
        there are any, else the last ordinary ones.

        Raises:
            UsageError: the vocabulary is too small.
        """
        from gguf import TokenType

        for_padding = [index for index, kind in enumerate(self.types) if kind == TokenType.UNUSED]
        ordinary = [index for index, kind in enumerate(self.types) if kind == TokenType.NORMAL]
        ids = [*for_padding, *reversed(ordinary)][:count]
        if len(ids) < count:
            raise UsageError(
                f"--format gguf: {count} KV memories need a token each, and the vocabulary has {len(ids)}; "
                "export fewer, or leave them out with -o kv=false."
            )
        return ids

    def write(self, writer: Any) -> None:
        """Add it to a `GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space)
        for role, index in self.special.items():
            getattr(writer, f"add_{role}_token_id")(index)
        writer.add_add_bos_token(self.adds_bos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, rows: int, pre: str) -> Vocabulary:
    """Read the tokenizer of a checkpoint.

    Args:
        folder: the checkpoint.
        rows: of its embedding.
        pre: the pre-tokenizer's name, or `auto`: recognise it.

    Raises:
        DataError: there is no tokenizer.
        UsageError: llama.cpp has no tokenizer of this kind.
    """
    tokenizer = load_tokenizer(folder)
    core = getattr(tokenizer, "backend_tokenizer", None)
    tree = {} if core is None else json.loads(core.to_str())
    model = tree.get("model", {})
    if model.get("type") != "BPE":
        raise UsageError(
            f"{folder}: its tokenizer is of kind {model.get('type', type(tokenizer).__name__)}; format gguf "
            "writes BPE. Export with --format hf, and convert that with llama.cpp's own converter."
        )
    with_scores = bool(model.get("byte_fallback"))
    found = None if with_scores else _recognised(tree)
    tokens, types = _tokens(tree, rows, with_scores)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    given = None if pre == "auto" else pre
    return Vocabulary(
        model="llama" if with_scores else "gpt2",
        pre=given or ("default" if with_scores else found or FALLBACK),
        recognised=with_scores or given is not None or found is not None,
        tokens=tokens,
        types=types,
        merges=merges,
        scores=_scores(tokens, merges) if with_scores else [],
        add_space=_adds_space(tree),
        adds_bos=_adds_bos(tokenizer),
        special=_special(tokenizer, folder, rows),
        chat_template=_template(tokenizer),
    )


def _recognised(tree: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for how the tokenizer splits text; None: it has none that koffkit knows."""
    steps = _steps(tree.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    if not steps or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    by_regex = steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and by_regex:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and by_regex:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not by_regex and steps[0].get("behavior") == "Isolated":
        return SPLITS.get(steps[0]["pattern"].get("Regex", ""))
    return None


def _steps(tree: Any) -> list[Mapping[str, Any]]:
    if tree is None:
        return []
    if tree["type"] != "Sequence":
        return [tree]
    parts = tree.get("pretokenizers") or tree.get("normalizers") or []
    return [step for part in parts for step in _steps(part)]


def _tokens(tree: Mapping[str, Any], rows: int, with_scores: bool) -> tuple[list[str], list[int]]:
    """Text and type of every row of the embedding; rows without a token are unused."""
    from gguf import TokenType

    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    unknown = tree["model"].get("unk_token")
    for text, index in tree["model"]["vocab"].items():
        if index < rows:
            kind = TokenType.UNKNOWN if text == unknown else TokenType.NORMAL
            if with_scores and _is_byte(text):
                kind = TokenType.BYTE
            tokens[index], types[index] = text, int(kind)
    for added in tree["added_tokens"]:
        index = added["id"]
        if index < rows and types[index] != TokenType.UNKNOWN:
            kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
            tokens[index], types[index] = added["content"], int(kind)
    return tokens, types


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Scores whose order is that of the merges: the sooner a token can be merged, the higher."""
    rank: dict[str, int] = {}
    for position, pair in enumerate(merges):
        rank.setdefault(pair.replace(" ", "", 1), position)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _adds_space(tree: Mapping[str, Any]) -> bool:
    steps = [*_steps(tree.get("normalizer")), *_steps(tree.get("pre_tokenizer"))]
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _special(tokenizer: Any, folder: Path, rows: int) -> dict[str, int]:
    """Ids by role. Where generation ends at several tokens, the second one is the end of a turn."""
    roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "unk", "pad")}
    ends = _ends(folder)
    others = [index for index in ends if index != roles["eos"]]
    if others:
        roles["eot"] = others[0]
    return {role: int(index) for role, index in roles.items() if index is not None and index < rows}


def _ends(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    return [ends] if isinstance(ends, int) else list(ends or [])


def _template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template or None
