"""The tokenizer as two models of OpenVINO: text to ids, and ids to text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.files import load_tokenizer
from ...errors import UsageError
from .runtime import load_openvino

SAMPLES = (
    "The capital of France is Paris.",
    " two  spaces,\ttabs\nand\n\n lines ",
    "12345 + 6.78 = (x_1 * y) // don't; can't",
    "Größe, naïveté, Ångström: ¿qué?",
    "Привет, мир! 你好,世界。こんにちは 🙂",
)
"""Text that is split by both tokenizers."""


@dataclass(frozen=True)
class Tokenizer:
    """Both models.

    Attributes:
        splits: text to ids.
        joins: ids to text.
        original: the tokenizer of transformers.
    """

    splits: Any
    joins: Any
    original: Any

    def write(self, folder: Path) -> None:
        """Write them as GenAI looks for them."""
        save = load_openvino().save_model
        save(self.splits, folder / "openvino_tokenizer.xml", compress_to_fp16=False)
        save(self.joins, folder / "openvino_detokenizer.xml", compress_to_fp16=False)

    def differences(self) -> Iterator[str]:
        """Samples that it splits or joins in another way than the original."""
        core = load_openvino().Core()
        splits, joins = (core.compile_model(model, "CPU") for model in (self.splits, self.joins))
        for text in SAMPLES:
            ids = self.original(text).input_ids
            if splits([text])["input_ids"][0].tolist() != ids or joins([[ids]][0])["string_output"][
                0
            ] != self.original.decode(ids, skip_special_tokens=True):
                yield text


def convert_tokenizer(folder: Path) -> Tokenizer:
    """Convert the tokenizer of a checkpoint.

    Raises:
        DataError: there is none.
        UsageError: it is of a kind that cannot be converted.
    """
    original = load_tokenizer(folder)
    original.padding_side = "left"  # GenAI pads a batch as the tokenizer does, and generates at its end
    load_openvino()
    import openvino_tokenizers

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            splits, joins = openvino_tokenizers.convert_tokenizer(original, with_detokenizer=True)
    except MemoryError:
        raise
    except Exception as error:  # the converter has no class of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{folder}: openvino_tokenizers does not convert this tokenizer ({reason}); export with "
            "--format hf, or use a base with a fast tokenizer."
        ) from None
    return Tokenizer(splits, joins, original)
