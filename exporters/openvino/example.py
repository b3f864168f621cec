"""Write with one memory of this export in OpenVINO GenAI.

    python example.py MEMORY "A prompt" [--chat] [--tokens 64] [--device CPU]

MEMORY is the name of a file in `memories`, or `none`: the bare backbone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openvino_genai as genai

HERE = Path(__file__).resolve().parent


class Export:
    """The pipeline with all memories at hand.

    GenAI blends every adapter that it was given, unless each call says which one: `attached` does.
    """

    def __init__(self, device: str = "CPU", **properties: Any) -> None:
        self.memories = {
            path.stem: genai.Adapter(path) for path in sorted(HERE.glob("memories/*.safetensors"))
        }
        if self.memories:
            properties["adapters"] = genai.AdapterConfig(list(self.memories.values()))
        # The other backend, PA, has no place for KV memories and refuses a model that has some.
        self.pipeline = genai.LLMPipeline(HERE / "backbone", device, ATTENTION_BACKEND="SDPA", **properties)

    def attached(self, name: str) -> dict[str, Any]:
        """What a call of the pipeline is given for a memory."""
        if name != "none" and name not in self.memories:
            sys.exit(f"{name}: no such memory; there is none, {', '.join(self.memories)}.")
        if not self.memories:
            return {}
        return {"adapters": genai.AdapterConfig([] if name == "none" else [self.memories[name]])}

    def write(self, prompt: Any, name: str, **options: Any) -> Any:
        """The pipeline's answer to a text, or to token ids [1, T] as a tensor of OpenVINO."""
        return self.pipeline.generate(prompt, genai.GenerationConfig(**options), **self.attached(name))


def main(words: Sequence[str] | None = None) -> None:
    """Print a completion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("memory")
    parser.add_argument("prompt")
    parser.add_argument("--chat", action="store_true", help="the prompt is what a user says")
    parser.add_argument("--tokens", type=int, default=64, help="the most to write")
    parser.add_argument("--device", default="CPU")
    given = parser.parse_args(words)
    export = Export(given.device)
    options = {"max_new_tokens": given.tokens, "do_sample": False, "apply_chat_template": given.chat}
    sys.stdout.write(f"{export.write(given.prompt, given.memory, **options)}\n")


if __name__ == "__main__":
    main()
