"""Which of llama.cpp's architectures holds a sliced backbone, and what none of them can express.

llama.cpp compiles one computation for each architecture; a file only names it. So what a backbone needs
beyond that computation is refused here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...arch.widths import LayerWidths
from ...checkpoint.spec import ModelSpec
from ...errors import UsageError
from ...run.finished import FinishedRun

QKV = frozenset(f"self_attn.{name}_proj" for name in "qkv")
ALL_BIASES = QKV | {"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


@dataclass(frozen=True, kw_only=True)
class Arch:
    """One of llama.cpp's architectures.

    Attributes:
        name: as `general.architecture` has it.
        interleaved: a rotary pair is two neighbours (2i, 2i + 1) of a head; False: (i, i + H/2), as in
            transformers.
        biases: linear modules that may have a bias.
        per_layer: every layer has widths of its own.
        free_heads: the heads together may be narrower or wider than the hidden size.
    """

    name: str
    interleaved: bool
    biases: frozenset[str]
    per_layer: bool = False
    free_heads: bool = True


LLAMA = Arch(name="llama", interleaved=True, biases=ALL_BIASES)
DECI = Arch(name="deci", interleaved=True, biases=ALL_BIASES, per_layer=True)
QWEN2 = Arch(name="qwen2", interleaved=False, biases=QKV, free_heads=False)
QWEN3 = Arch(name="qwen3", interleaved=False, biases=frozenset())
GRANITE = Arch(name="granite", interleaved=True, biases=ALL_BIASES)

CANDIDATES: Mapping[str, tuple[Arch, ...]] = {
    "llama": (LLAMA, DECI),
    "mistral": (LLAMA, DECI),
    "seed_oss": (LLAMA, DECI),
    "qwen2": (QWEN2, LLAMA, DECI),
    "qwen3": (QWEN3,),
    "granite": (GRANITE,),
}
"""By `model_type` of the sliced backbone, the natural one first. Qwen2 computes as Llama with biases does."""
RAGGED = frozenset(family for family, found in CANDIDATES.items() if DECI in found)
"""Families that `deci` holds, layer by layer of another width."""
ROPE_TYPES = ("default", "linear", "llama3")
OTHER_ROUTE = "export with --format hf, and run it with transformers"


@dataclass(frozen=True)
class Target:
    """A sliced backbone and the architecture that holds it.

    Attributes:
        arch: llama.cpp's architecture.
        spec: config and shapes of the sliced backbone.
    """

    arch: Arch
    spec: ModelSpec

    @property
    def config(self) -> Mapping[str, Any]:
        """The `config.json` object of the sliced backbone."""
        return self.spec.config

    @property
    def widths(self) -> list[LayerWidths]:
        """Of every layer."""
        return self.spec.widths

    @property
    def rope(self) -> Mapping[str, Any]:
        """The rotary parameters."""
        return self.config.get("rope_parameters") or {"rope_theta": self.config["rope_theta"]}

    @property
    def context_length(self) -> int:
        """Positions that llama.cpp computes as transformers does: no more than a sliding window, which none
        of these architectures has."""
        positions, window = int(self.config["max_position_embeddings"]), self.window
        return positions if window is None else min(positions, window)

    @property
    def window(self) -> int | None:
        """The sliding window of layers that have one; None: there is none."""
        window = self.config.get("sliding_window")
        kinds = self.config.get("layer_types") or ["sliding_attention"]
        off = not self.config.get("use_sliding_window", True) or "sliding_attention" not in kinds
        return None if window is None or off else int(window)


def target_of(run: FinishedRun) -> Target:
    """Choose the architecture for the sliced backbone of a run.

    Raises:
        UsageError: no architecture of llama.cpp computes it; the text names what is too much, and the remedy.
    """
    from ...sliced import PREFIX  # with torch, which no listing of formats should wait for

    config = run.sliced_config
    spec = ModelSpec(config=config, path=run.spec.path, family=run.spec.arch.model_type)
    family = str(config["model_type"]).removeprefix(PREFIX)
    if family not in CANDIDATES:
        raise UsageError(
            f"--format gguf: the backbone is a {family}; koffkit writes {', '.join(CANDIDATES)} as GGUF. "
            f"Instead {OTHER_ROUTE}, or convert that export with llama.cpp's own converter."
        )
    _require_whole_heads(spec)
    _require_same_computation(spec)
    reasons: list[str] = []
    for arch in CANDIDATES[family]:
        if reason := _too_much(arch, spec):
            reasons.append(f"{arch.name}: {reason}")
        else:
            return Target(arch, spec)
    raise UsageError(
        f"--format gguf: no architecture of llama.cpp holds this {family} ({'; '.join(reasons)}). Compress "
        f"with mask.layout: uniform and without mask.repair: bias, or {OTHER_ROUTE}."
    )


def _too_much(arch: Arch, spec: ModelSpec) -> str:
    """What the architecture has no place for; empty: it holds the backbone."""
    if not arch.per_layer and len(set(spec.widths)) > 1:
        return "layers of different widths"
    biased = {
        name.split(".", 3)[3].removesuffix(".bias") for name in spec.weight_shapes if name.endswith(".bias")
    }
    if biased - arch.biases:
        return f"a bias of {', '.join(sorted(biased - arch.biases))}"
    shape = spec.shape
    if not arch.free_heads and shape.query_heads * shape.head_dim != shape.hidden:
        return "fewer heads than the hidden size has room for"
    return ""


def _require_whole_heads(spec: ModelSpec) -> None:
    full = spec.shape.head_dim
    for index, widths in enumerate(spec.widths):
        if (widths.key_channels, widths.value_channels) != (full, full):
            raise UsageError(
                f"--format gguf: layer {index} keeps {widths.key_channels} channels of a key and "
                f"{widths.value_channels} of a value, of {full}; llama.cpp knows whole heads only. Compress "
                f"with mask.structures [mlp_neuron, kv_group], or {OTHER_ROUTE}."
            )


def _require_same_computation(spec: ModelSpec) -> None:
    config = spec.config
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise UsageError(
            f"--format gguf: hidden_act: {act}; llama.cpp computes silu for this family. Instead "
            f"{OTHER_ROUTE}."
        )
    kind = (config.get("rope_parameters") or {}).get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise UsageError(
            f"--format gguf: rope_type: {kind}; koffkit writes {', '.join(ROPE_TYPES)}. Instead "
            f"{OTHER_ROUTE}, or convert that export with llama.cpp's own converter."
        )
