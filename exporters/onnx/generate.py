"""Generate with one memory of this export attached. Needs onnxruntime and tokenizers, nothing of koffkit.

    python generate.py MEMORY "A prompt" [--tokens 64]

MEMORY is the name of a file in `memories`, or `none`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
PAST, PRESENT = "past_key_values.", "present."


class Backbone:
    """The graph in ONNX Runtime, with no memory or one.

    Args:
        export: the export's folder.
        threads: of ONNX Runtime; 0: as many as it likes.
    """

    def __init__(self, export: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # it warns of every default that a memory may replace
        graph = str(export / "backbone" / "backbone.onnx")
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.attach(None)

    def attach(self, memory: Path | None) -> None:
        """Use the memory of a file from now on; None: the backbone alone."""
        self.run_options = onnxruntime.RunOptions()
        self.adapter = None if memory is None else onnxruntime.LoraAdapter()  # in use as long as the options
        if self.adapter is not None:
            self.adapter.Load(str(memory))
            self.run_options.add_active_adapter(self.adapter)

    def empty(self, rows: int = 1) -> dict[str, Any]:
        """The cache before the first token."""
        return {
            value.name: np.zeros((rows, value.shape[1], 0, value.shape[3]), dtype=np.float32)
            for value in self.session.get_inputs()
            if value.name.startswith(PAST)
        }

    def step(self, ids: Sequence[int], cache: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Read more tokens.

        Args:
            ids: of the tokens.
            cache: of those before them.

        Returns:
            the logits after each of them, [tokens, vocabulary], and the new cache.
        """
        past = next(iter(cache.values())).shape[2]
        feed = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, past + len(ids)), dtype=np.int64),
            "position_ids": np.arange(past, past + len(ids), dtype=np.int64)[None],
            **cache,
        }
        found = dict(zip(self.outputs, self.session.run(self.outputs, feed, self.run_options), strict=True))
        cache = {name.replace(PRESENT, PAST): value for name, value in found.items() if name != "logits"}
        return found["logits"][0], cache

    def generate(self, ids: Sequence[int], count: int, ends: Sequence[int] = ()) -> list[int]:
        """At most `count` tokens, the likeliest each time, up to one of `ends`."""
        written: list[int] = []
        cache, new = self.empty(), list(ids)
        while len(written) < count:
            logits, cache = self.step(new, cache)
            new = [int(logits[-1].argmax())]
            if new[0] in ends:
                break
            written += new
        return written


def ends_of(backbone: Path) -> list[int]:
    """The tokens that end a text."""
    for name in ("generation_config.json", "config.json"):
        if (backbone / name).is_file():
            ends = json.loads((backbone / name).read_text(encoding="utf-8")).get("eos_token_id")
            if ends is not None:
                return list(ends) if isinstance(ends, list) else [ends]
    return []


def main() -> None:
    """Print a completion."""
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("memory")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=64, help="the most to write")
    given = parser.parse_args()
    memory = None if given.memory == "none" else HERE / "memories" / f"{given.memory}.onnx_adapter"
    if memory is not None and not memory.is_file():
        sys.exit(f"{memory}: no such memory; the folder has those that there are.")
    tokenizer = Tokenizer.from_file(str(HERE / "backbone" / "tokenizer.json"))
    model = Backbone(HERE)
    model.attach(memory)
    ids = model.generate(tokenizer.encode(given.prompt).ids, given.tokens, ends_of(HERE / "backbone"))
    sys.stdout.write(tokenizer.decode(ids) + "\n")


if __name__ == "__main__":
    main()
