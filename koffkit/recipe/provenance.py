"""Where a recipe's values come from: what the paper (arXiv 2605.29075) states for each field, and what it
leaves open.

One table, `PAPER`, for its main setting, and one, `ABLATIONS`, for what its ablations change. `koffkit recipe
show` and the page on the paper's setting are made from them, and a test holds the recipes under `paper/` to
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .schema import Recipe

Places = Mapping[str, Any]
UNSTATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the paper says of one field.

    Args:
        value: as the field has it; `UNSTATED` where the paper leaves it open.
        source: section, table or appendix.
        note: what must be known to compare the two.
        large: the value for the 8B model, where it is another.
    """

    value: Any
    source: str
    note: str = ""
    large: Any = None

    def value_for(self, model: str) -> Any:
        return self.large if self.large is not None and "8B" in model else self.value


def _stated(value: Any, source: str, note: str = "", large: Any = None) -> Stated:
    return Stated(value=value, source=source, note=note, large=large)


def _open(note: str) -> Stated:
    return Stated(value=UNSTATED, source="", note=note)


TARGETS = ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
PAPER: Mapping[str, Stated] = {
    "base.dtype": _stated("bfloat16", "appendix A"),
    "sequence_length": _stated(512, "Table 4", "Texts are packed here; whether there is not stated."),
    "holdout": _stated(0.05, "section 4.1"),
    "mask.structures": _stated(
        "paper",
        "section 4.1, Table 4",
        "Gates on the outputs of k, v, gate, up and down, after the LoRA sum. Ours gate keys by rotary "
        "pairs, and count the rows of down as masked.",
    ),
    "mask.layers": _open(
        "Its s* and its 12 % agree when all layers are gated: 15 % of the gated projections are 10.7, 11.0 "
        "and 12.0 % of all parameters of its three models; in the upper 16 layers 6.1, 5.5 and 5.3 %. Its "
        "Figure 4 draws layers from 14 on."
    ),
    "mask.layout": _stated("ragged", "section 4.5.3", "Layers differ in its Figure 4."),
    "mask.global_sparsity": _stated(
        0.12, "section 4.2", "Its runs end at .120 to .122; here the masks are cut there exactly."
    ),
    "mask.local_sparsity": _stated(0.15, "Table 4", "s*, for every module."),
    "mask.controller": _stated(
        "hinge", "section 3.3", "A mean over the kinds of gate here; there not stated."
    ),
    "mask.lambda_init": _stated(60.0, "Table 4", "8B: appendix A.", large=25.0),
    "mask.lambda_scaling": _stated(
        "auto", "Table 4", "How it scales is not stated; ours grows while a target is missed."
    ),
    "mask.temperature": _stated(2.0, "Table 4", "Fixed."),
    "mask.init": _open("All gates start alike here."),
    "mask.init_open": _open("With a mean of .95 a gate at temperature 2 is open with probability .9999."),
    "memory.layers.upper": _stated(
        16,
        "section 4.1",
        "By its counts of parameters (180M at 3B, 277M at 8B); its appendix G.3 says 18 of 28.",
    ),
    "memory.lora.rank": _stated(256, "Table 4"),
    "memory.lora.alpha": _stated(128.0, "Table 4"),
    "memory.lora.targets": _stated(TARGETS, "Table 4"),
    "memory.kv.tokens": _stated(256, "Table 4"),
    "memory.kv.init": _stated("random", "section 3.2"),
    "memory.kv.init_std": _stated(0.02, "section 3.2", "N(0, .02), taken as the deviation."),
    "distill.loss": _stated(
        "top_k", "section 3.4", "Here the rest of the vocabulary counts as one more outcome."
    ),
    "distill.top_k": _stated(100, "section 3.4"),
    "distill.cache": _open("Off here: text is cut anew in every epoch."),
    "distill.retention_every": _stated(20, "Table 4", "The step of retention text is one of the 20 here."),
    "distill.retention_batch_size": _open("Its appendix G.3 tries 1, 2 and 4."),
    "distill.retention_updates": _stated("mask", "section 3.4", "Its appendix D: the memories too."),
    "train.precision": _open("Mixed precision here."),
    "train.gradient_checkpointing": _stated(False, "appendix A", large=True),
    "stages.learn_masks.max_steps": _stated(
        154_200, "section 4.1", "One epoch, about 150M tokens, and a step of retention in 20.", large=308_400
    ),
    "stages.learn_masks.batch_size": _stated(2, "Table 4", "8B: appendix A.", large=1),
    "stages.learn_masks.lr.lora": _stated(1e-5, "Table 4", "AdamW; decay of weights not stated, none here."),
    "stages.learn_masks.lr.kv": _stated(1e-2, "Table 4"),
    "stages.learn_masks.lr.gates": _stated(1e-2, "Table 4", "AdamW with betas .9 and .98 here."),
    "stages.learn_masks.decay": _stated("constant", "Table 4", "One value for each rate, no schedule."),
    "stages.learn_masks.warmup_steps": _stated(0, "Table 4", "None is mentioned."),
    "stages.learn_masks.joint": _stated(True, "section 3.1"),
    "stages.route.kind": _stated("encoder", "appendix A.1"),
    "stages.route.encoder": _stated("FacebookAI/roberta-base", "appendix A.1", "RoBERTa, of unknown size."),
    "stages.route.lr": _stated(3e-4, "appendix A.1"),
    "stages.route.batch_size": _stated(64, "appendix A.1"),
    "stages.route.epochs": _open("Four here."),
}
"""The paper's main setting: topics, 3B, and where they differ 8B."""


@dataclass(frozen=True)
class Ablation:
    """What one of the paper's ablations changes.

    Args:
        source: its table, figure or appendix; "ours" for one that the paper has not.
        values: the fields in which it differs from the main setting.
    """

    source: str
    values: Places


KV_GATES = {"mask.structures": ["qk_pair", "v_channel"], "mask.local_sparsity": None}
ANNEALED = {"mask.temperature.start": 2.0, "mask.temperature.end": 0.5}
SMALL = {
    "mask.structures": "paper_mlp",
    "mask.global_sparsity": 0.13,
    "mask.local_sparsity": 0.2,
    "mask.lambda_init": 15.0,
    "mask.lambda_scaling": "fixed",
    "memory.layers.upper": 9,
    "memory.lora.rank": 128,
    "memory.lora.alpha": 64.0,
    "stages.learn_masks.max_steps": 25_000,
}
"""The run of the 1B model that Tables 5 to 8 share. Layers, alpha and the form of the budget are ours."""
THIN = {"memory.lora.rank": 64, "memory.lora.alpha": 32.0}
TENTH = {"mask.global_sparsity": 0.065, "mask.local_sparsity": 0.1}


def _steps(count: int) -> Places:
    return {"stages.learn_masks.max_steps": count}


def _table_9() -> Iterator[tuple[str, Ablation]]:
    for kv, gates in (("", {}), ("-kv", KV_GATES | {"mask.global_sparsity": 0.022})):
        for weight, lambdas in (("", {}), ("-lambda-120", {"mask.lambda_init": 120.0})):
            for retention in ("", "-no-retention"):
                values = ANNEALED | gates | lambdas
                yield f"ablations-annealed{kv}{weight}{retention}", Ablation("Table 9", values)


def _one_b(source: str, values: Places) -> Ablation:
    return Ablation(source, SMALL | dict(values))


ABLATIONS: Mapping[str, Ablation] = {
    "ablations-all-layers": Ablation("Table 2", {"memory.layers": "all"}),
    "ablations-kv-only": Ablation("Table 2", {"memory.lora": None}),
    "ablations-lora-only": Ablation("Table 2", {"memory.kv": None}),
    "ablations-pruning-only": Ablation("Table 2", {"memory.lora": None, "memory.kv": None}),
    "ablations-no-retention": Ablation("Table 2", {}),
    "ablations-prune-then-recover": Ablation("Table 2", {"stages.learn_masks.joint": False}),
    "ablations-sparsity-20": Ablation("Figure 2", {"mask.global_sparsity": 0.2, "mask.local_sparsity": 0.25}),
    "ablations-sft": Ablation("Table 10", {"distill.loss": "cross_entropy"}),
    "ablations-blended": Ablation("Table 10", {"distill.loss": "blended", "distill.blend": 0.5}),
    "ablations-full-kl": Ablation("ours", {"distill.loss": "full"}),
    "ablations-attention-gates": Ablation("Table 12", KV_GATES | {"mask.global_sparsity": 0.022}),
    "ablations-qkv-gates": Ablation(
        "Table 12",
        {"mask.structures": "paper_qkv", "mask.global_sparsity": 0.028, "mask.local_sparsity": None},
    ),
    "ablations-upper-gates": Ablation("Figure 4", {"mask.layers.upper": 16, "mask.local_sparsity": 0.295}),
    "ablations-retention-updates-all": Ablation("appendix D", {"distill.retention_updates": "all"}),
    **dict(_table_9()),
    "1b-hinge-15": _one_b("Tables 5 to 8", {}),
    "1b-hinge-60": _one_b("Table 5", {"mask.lambda_init": 60.0}),
    "1b-hinge-60-rank-64": _one_b("Table 5", THIN | {"mask.lambda_init": 60.0}),
    "1b-hinge-10-rank-64": _one_b("Table 5", THIN | {"mask.lambda_init": 10.0}),
    "1b-progressive": _one_b("Table 5", {"mask.controller": "progressive_two_sided"}),
    "1b-progressive-relu": _one_b("Table 5", {"mask.controller": "progressive"}),
    "1b-lagrangian-60": _one_b("Table 5", {"mask.controller": "lagrangian", "mask.lambda_rate": 60.0}),
    "1b-lagrangian-10-rank-64": _one_b(
        "Table 5", THIN | {"mask.controller": "lagrangian", "mask.lambda_rate": 10.0}
    ),
    "1b-kv-gates": _one_b(
        "Table 6", {"mask.structures": KV_GATES["mask.structures"], "mask.global_sparsity": 0.027}
    ),
    "1b-en-fr-10": _one_b("Table 7", TENTH | dict(_steps(50_000))),
    "1b-en-fr-es-10": _one_b("Table 7", TENTH | dict(_steps(75_000))),
    "1b-en-fr-es-20": _one_b("Table 7", _steps(75_000)),
    "1b-records-5k": _one_b("Table 8", _steps(7_500)),
    "1b-records-10k-10-epochs": _one_b("Table 8", _steps(50_000)),
    "1b-records-20k": _one_b("Table 8", _steps(50_000)),
}
"""By the recipe's name, without `paper-`."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where one value of a recipe comes from.

    Args:
        value: the recipe's.
        paper: the paper's; `UNSTATED` where it has none.
        source: of the paper's value.
        note: what must be known to compare the two.
    """

    value: Any
    paper: Any
    source: str
    note: str

    @property
    def is_papers(self) -> bool:
        return bool(self.value == self.paper)

    def __str__(self) -> str:
        if self.is_papers:
            return f"paper: {self.source}"
        if self.paper == UNSTATED:
            return "ours; the paper does not say"
        return f"ours; the paper: {_plain(self.paper)} ({self.source})"


def origins(recipe: Recipe, values: Places) -> dict[str, Origin]:
    """The origin of every field that the paper has something to say about.

    Args:
        values: the recipe's values by dotted place.
    """
    ablation = ABLATIONS.get(recipe.name.removeprefix("paper-"))
    found = {}
    for place, value in values.items():
        if ablation is not None and place in ablation.values:
            paper, source, note = ablation.values[place], ablation.source, ""
        elif place in PAPER:
            stated = PAPER[place]
            paper, source, note = stated.value_for(recipe.base.model), stated.source, stated.note
        else:
            continue
        found[place] = Origin(value=value, paper=paper, source=source, note=note)
    return found


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
