"""A checkpoint whose matrices are int8, by torchao, as transformers stores and loads it.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...artefact.bundle import Bundle, open_bundle
from ...artefact.digests import backbone_digest
from ...artefact.manifest import Consumer
from ...artefact.names import BACKBONE_OF_BUNDLE
from ...artefact.parts import Golden
from ...checkpoint.files import CONFIG, INDEX, load_tokenizer
from ...errors import UsageError
from ...memories.bundle import set_golden
from ...storage.files import write_json
from ...storage.read_json import read_json
from .bundles import write_bundles
from .checkpoint import Checkpoint, scratch_checkpoint
from .merging import MergePlan
from .publishing import Draft

if TYPE_CHECKING:
    from torch import Tensor

    from ...runtime.model import KoffModel

Weights = Literal["auto", "int8"]
DESCRIPTION = (
    "Type of the matrices; auto: the one that the base's weights are stored in; int8: by torchao, for "
    "stock software, not for koffkit itself."
)
STOCK = (
    "Transformers loads them where torchao is installed\n(`pip install torchao`), PEFT puts LoRA on them. "
    "Load them in the type that they are stored for (no `dtype`)"
)
GREEDY, GOLDEN = 64, 8
"""Tokens that are written with every memory, and logits that are recorded."""


def require_torchao(format_name: str, weights: Weights) -> None:
    """Refuse to go on without the tool, if it is needed.

    Raises:
        UsageError: it is missing.
    """
    if weights != "auto" and find_spec("torchao") is None:
        raise UsageError(
            f"--format {format_name}: weights: {weights}: torchao is not installed; pip install "
            "'koffkit[torchao]'."
        )


def write_quantised(
    draft: Draft,
    merge: MergePlan | None,
    *,
    base: str = BACKBONE_OF_BUNDLE,
    max_shard_size: str | None = None,
) -> tuple[Checkpoint, Consumer]:
    """Write and check a checkpoint, then the export's backbone as int8, with its memories, and measure it.

    Args:
        draft: the export; of a merged memory, of `merge.run`.
        merge: the memory that goes into the weights, before they are int8; None: there is none.
        base: where the LoRA half of a memory says that the backbone is.
        max_shard_size: most bytes of a file of weights, such as `5GB`; None: transformers' own limit.

    Returns:
        what was written, with the figures of the checkpoint; and what int8 does to it.

    Raises:
        IntegrityError: a file of the run or of its base is damaged, or the parity check fails.
    """
    with scratch_checkpoint(draft, merge) as made:
        digest = _quantise(made, draft, max_shard_size)
        bundles = write_bundles(draft, digest, base) if merge is None else []
        measured = _measure(made, draft, bundles, digest)
    bundles = [open_bundle(bundle.path) for bundle in bundles]  # with golden logits
    sliced = replace(made.sliced, digest=digest, files={})
    return replace(made, draft=draft, sliced=sliced, bundles=bundles), measured


def _quantise(made: Checkpoint, draft: Draft, max_shard_size: str | None) -> str:
    """Write the backbone of an export: that of a checkpoint with the matrices of its layers in int8, a scale
    for each row; embeddings and head stay.

    Args:
        made: the checkpoint, as stored.
        draft: the export.
        max_shard_size: see `write_quantised`.

    Returns:
        the digest of the new backbone.
    """
    draft.progress.message("storing matrices as int8")
    with draft.timed("quantise"):
        written = draft.folder / ".int8"
        sizes = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        _load(made.folder, quantised=True).save_pretrained(written, **sizes)
        entry = read_json(written / CONFIG, remedy="export again")["quantization_config"]
        draft.backbone.mkdir()
        for path in made.folder.iterdir():
            if path.suffix != ".safetensors" and path.name != INDEX:
                shutil.copyfile(path, draft.backbone / path.name)
        for path in written.glob("model*"):
            path.rename(draft.backbone / path.name)
        shutil.rmtree(written)
        config = read_json(made.folder / CONFIG, remedy="export again")
        write_json(draft.backbone / CONFIG, config | {"quantization_config": entry})
    return backbone_digest(draft.backbone, draft.progress)


def _measure(made: Checkpoint, draft: Draft, bundles: Sequence[Bundle], digest: str) -> Consumer:
    """What int8 does to the backbone alone and to it with every memory, against the checkpoint in float64;
    the memories get golden logits on the new backbone.

    Args:
        made: the checkpoint, as stored.
        draft: the export, with its backbone and memories written.
        bundles: the memories of the export.
        digest: of its backbone.
    """
    import torch

    from ...parity.compare import NO_MEMORY
    from ...runtime.model import KoffModel
    from .exact import ExactLogits

    draft.progress.message("measuring what int8 does")
    tokens = made.figures.golden.tokens
    max_abs, kl, greedy = {}, {}, {}
    with draft.timed("measure"):
        exact = ExactLogits(made.folder, made.bundles)
        model = KoffModel(_load(draft.backbone), load_tokenizer(made.folder), digest, draft.backbone)
        for bundle in bundles:
            model.load_memory(bundle)
        by_name: dict[str | None, Bundle | None] = {None: None} | {own.domain: own for own in bundles}
        for name, own in by_name.items():
            expected, found = exact.logits(tokens, name), _logits(model, tokens, name)
            condition = name or NO_MEMORY
            max_abs[condition] = float((found.double() - expected).abs().max())
            p, q = expected.log_softmax(-1), found.double().log_softmax(-1)
            kl[condition] = max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))
            ids = _greedy(model, tokens, name)
            chosen = exact.logits([*tokens, *ids], name)[len(tokens) - 1 : -1].argmax(-1)
            greedy[condition] = int((chosen == torch.tensor(ids)).sum())
            if own is not None:
                top = found[-1].topk(min(GOLDEN, found.shape[-1]))
                logits = [round(value, 9) for value in top.values.tolist()]
                set_golden(own, Golden(tokens=tokens, ids=top.indices.tolist(), logits=logits))
    versions = {name: version(name) for name in ("torchao", "transformers", "torch")}
    figures = {"max_abs": max_abs, "kl": kl, "greedy": greedy}
    return Consumer(versions=versions, weights="int8", **figures, tokens=GREEDY)


def readme_section(measured: Consumer, loading: str = STOCK) -> str:
    """What an export's README says of its weights.

    Args:
        loading: what whoever loads them must know.
    """
    rows = "\n".join(
        f"| {name} | {value:.2g} | {measured.greedy[name]} of {measured.tokens} |"
        for name, value in measured.kl.items()
    )
    return f"""## Weights in int8

The matrices of the layers are int8 (torchao {measured.versions["torchao"]}, one scale a row).
{loading}. Do not merge
memories into them: `koffkit export --merge NAME --quantize int8` merges first. koffkit's own runtime takes
exports that are not quantised.

Against the same backbone in float64, on tokens spread over the vocabulary: KL in nats a token, and greedy
tokens that float64 chooses, too.

| memory | KL | greedy tokens |
|---|---|---|
{rows}
"""


def _load(folder: Path, *, quantised: bool = False) -> Any:
    """The model of a checkpoint; with its layers' matrices made int8."""
    from transformers import AutoModelForCausalLM

    from ... import sliced  # noqa: F401  # instead of running the code that lies in the folder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's of torch's own changes
        options: dict[str, Any] = {}
        if quantised:
            from torchao.quantization import Int8WeightOnlyConfig
            from transformers import TorchAoConfig

            options["quantization_config"] = TorchAoConfig(Int8WeightOnlyConfig(version=2))
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()


def _logits(model: KoffModel, tokens: Sequence[int], name: str | None) -> Tensor:
    """[T, V]."""
    import torch

    return model.logits(torch.tensor([list(tokens)]), name)[0].float()


def _greedy(model: KoffModel, tokens: Sequence[int], name: str | None) -> list[int]:
    """Tokens that transformers writes after `tokens`."""
    import torch

    ids = torch.tensor([list(tokens)])
    options: dict[str, Any] = {"max_new_tokens": GREEDY, "min_new_tokens": GREEDY, "do_sample": False}
    with model.attached(name), torch.no_grad():
        found = model.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return [int(token) for token in found[0, len(tokens) :]]
