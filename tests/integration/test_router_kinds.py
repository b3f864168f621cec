"""Routers that are not the default: an encoder made in this process, and a probe on the backbone."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from koffkit import KoffModel
from koffkit.artefact.digests import file_entry
from koffkit.errors import DataError, IntegrityError, Interrupted
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.router import load_router
from koffkit.router.encoder import EncoderRouter, open_encoder
from koffkit.router.probe import ProbeRouter
from koffkit.stages.engine import run_recipe

from ..common import list_anew, make_tokenizer, recipe_dict, write_recipe, write_record
from ..conftest import Koffkit


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), pad_token_id=2, **sizes)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_with(llama: Path, root: Path, route: dict[str, Any]) -> Path:
    recipe = recipe_dict(llama, root / "data")
    for name, words in (
        ("north", "river stone lamp"),
        ("south", "quiet house sings"),
        ("general", "seven green walks"),
    ):
        lines = [" ".join((words.split() * 4)[k % 3 : k % 3 + 5]) for k in range(60)]
        (root / "data" / f"{name}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    recipe["stages"] = [{"learn_masks": {"max_steps": 2}}, {"route": route}]
    return write_recipe(root / "recipe.yaml", recipe)


@pytest.mark.parametrize("kind", ["encoder", "probe"])
def test_from_recipe_to_generation(
    kind: str, llama: Path, bert: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    route: dict[str, Any] = {"kind": kind, "max_tokens": 24, "batch_size": 8}
    route |= {"encoder": str(bert), "lr": 3e-3, "epochs": 6} if kind == "encoder" else {"layer": 1}
    path = recipe_with(llama, tmp_path, route)
    done = koffkit("compress", path, "--output", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    figures = done.json["results"]["router"]
    assert figures["accuracy"] >= 0.95
    assert set(figures["confusion"]) == {"north", "south", "none"}
    assert figures["milliseconds"] > 0
    assert koffkit("export", tmp_path / "run", "--output", tmp_path / "out").code == 0
    assert koffkit("verify", tmp_path / "out").code == 0
    described = koffkit("inspect", tmp_path / "out", "--json").json["router"]
    assert described["kind"] == kind and described["max_tokens"] == 24
    prompts = ("lamp river stone", "sings quiet house", "green walks seven")
    arguments = [part for prompt in prompts for part in ("--prompt", prompt)]
    rows = koffkit("generate", tmp_path / "out", *arguments, "--max-new-tokens", 2, "--json").json[
        "completions"
    ]
    assert [row["memory"] for row in rows] == ["north", "south", None]
    model = KoffModel.from_pretrained(tmp_path / "out")
    detached = model.route(prompts)
    model.attach("south")  # what is attached does not change what a probe sees
    np.testing.assert_allclose(
        [odds for _, odds in model.route(prompts)], [odds for _, odds in detached], atol=1e-7
    )
    alone = [model.route([prompt])[0] for prompt in prompts]
    together = model.route(prompts)  # padding neither
    assert [name for name, _ in alone] == [name for name, _ in together] == ["north", "south", None]
    np.testing.assert_allclose([odds for _, odds in alone], [odds for _, odds in together], atol=1e-5)


def test_a_probe_reads_the_layer_it_is_told(llama: Path, tmp_path: Path) -> None:
    found = {}
    for layer in (None, 0, 3):
        (tmp_path / str(layer)).mkdir()
        route = {"kind": "probe"} | ({} if layer is None else {"layer": layer})
        run_recipe(
            load_recipe(recipe_with(llama, tmp_path / str(layer), route)), tmp_path / str(layer) / "run"
        )
        router = load_router(tmp_path / str(layer) / "run" / "router")
        found[layer] = (router.describe()["layer"], router.weight)
    assert [layer for layer, _ in found.values()] == [1, 0, 3]  # by default the middle of three
    assert not np.allclose(found[0][1], found[3][1])


def test_verify_names_a_router_that_does_not_fit_the_backbone(
    llama: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    run_recipe(load_recipe(recipe_with(llama, tmp_path, {"kind": "probe"})), tmp_path / "run")
    out = tmp_path / "out"
    assert koffkit("export", tmp_path / "run", "--output", out).code == 0
    config = json.loads((out / "router" / "config.json").read_text())
    (out / "router" / "config.json").write_text(json.dumps(config | {"layer": 9}))
    manifest = json.loads((out / "koffkit.json").read_text())  # as whoever put it there would have done
    manifest["files"]["router/config.json"] = file_entry(out / "router" / "config.json").to_json()
    write_record(out / "koffkit.json", manifest)
    found = koffkit("verify", out, "--json")
    assert found.code == 4 and "router: it reads layer 9" in found.json["problems"][0]


@pytest.mark.parametrize("kind", ["encoder", "probe"])
def test_batches_hold_as_many_documents_as_asked(
    kind: str, llama: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.model import pooling
    from koffkit.router.encoder import EncoderRouter

    seen: list[int] = []
    logits, pad = EncoderRouter.logits, pooling.pad
    monkeypatch.setattr(
        EncoderRouter, "logits", lambda self, texts: seen.append(len(texts)) or logits(self, texts)
    )
    monkeypatch.setattr(pooling, "pad", lambda rows: seen.append(len(rows)) or pad(rows))
    route = {"kind": kind, "batch_size": 5, "max_tokens": 24} | (
        {"encoder": str(bert), "epochs": 1} if kind == "encoder" else {}
    )
    run_recipe(load_recipe(recipe_with(llama, tmp_path, route)), tmp_path / "run")
    assert max(seen) == 5 and seen.count(5) > 20


def test_min_confidence_holds_for_every_kind(llama: Path, tmp_path: Path) -> None:
    run_recipe(
        load_recipe(recipe_with(llama, tmp_path, {"kind": "probe", "min_confidence": 0.9999999})),
        tmp_path / "run",
    )
    router = load_router(tmp_path / "run" / "router")
    assert router.min_confidence == 0.9999999
    router.features = lambda texts: np.zeros((len(texts), router.weight.shape[0]), dtype=np.float32)
    assert router.route(["anything"])[0][0] is None


@pytest.mark.parametrize(
    ("route", "code", "message"),
    [
        ({"kind": "encoder", "encoder": "./nowhere"}, 3, "stages.route.encoder: no folder './nowhere'"),
        (
            {"kind": "probe", "layer": 9},
            2,
            "stages.route.layer: 9 is not a layer of this model; use 0 (embeddings) to 3",
        ),
        (
            {"kind": "probe", "num_buckets": 8},
            2,
            "num_buckets is an option of kind ngrams, and this router is of kind probe",
        ),
        ({"layer": 1}, 2, "layer is an option of kind probe, and this router is of kind ngrams"),
        ({"kind": "oracle"}, 2, "stages.1.route.kind: 'oracle': input should be"),
    ],
)
def test_bad_routers_are_refused_before_anything_is_learned(
    route: dict[str, Any], code: int, message: str, llama: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    found = koffkit("compress", recipe_with(llama, tmp_path, route), "--output", tmp_path / "run")
    assert found.code == code
    assert message in found.err
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_lost_its_weights_is_named(
    llama: Path, bert: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    path = recipe_with(
        llama, tmp_path, {"kind": "encoder", "encoder": str(bert), "epochs": 1, "max_tokens": 40}
    )
    assert koffkit("compress", path, "--output", tmp_path / "run").code == 0
    config = json.loads((tmp_path / "run" / "router" / "config.json").read_text())
    assert config["kind"] == "encoder" and config["max_tokens"] == 40
    (tmp_path / "run" / "router" / "encoder" / "model.safetensors").unlink()
    found = koffkit("export", tmp_path / "run", "--output", tmp_path / "out")
    assert found.code == 4
    assert "router/encoder/model.safetensors: missing; run.json lists it" in found.err
    assert not (tmp_path / "out").exists()
    with pytest.raises(IntegrityError, match="the router cannot be read"):
        load_router(tmp_path / "run" / "router")


def pickled(bert: Path) -> None:
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")


def without_a_layer(bert: Path) -> None:
    tensors = load_file(bert / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if ".layer.1." not in name}
    save_file(kept, bert / "model.safetensors", metadata={"format": "pt"})


def shorter_tokenizer(bert: Path) -> None:
    config = json.loads((bert / "tokenizer_config.json").read_text())
    (bert / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 32}))


def test_text_that_an_encoder_has_no_embedding_for_is_named(bert: Path) -> None:
    model, tokenizer = open_encoder(bert, 2, 24)
    size = len(tokenizer)
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    router = EncoderRouter(("north", "south"), model, tokenizer, 24)
    assert router.probabilities(["river stone"]).shape == (1, 2)
    with pytest.raises(DataError, match=rf"token {size} \('<\|new\|>'\) is beyond the model's embedding"):
        router.probabilities(["river stone", "river <|new|>"])


@pytest.mark.parametrize(
    ("damage", "more", "message"),
    [
        (pickled, {}, "only pickled weights"),
        (without_a_layer, {}, "lacks 16 tensors of the encoder (bert.encoder.layer.1."),
        (lambda bert: None, {"max_tokens": 65}, "stages.route.max_tokens: 65, but"),
        (
            shorter_tokenizer,
            {"max_tokens": 40},
            "reads at most 32 tokens",
        ),  # as RoBERTa, whose position table is longer than its reach
    ],
)
def test_an_encoder_that_cannot_work_is_refused_before_anything_is_learned(
    damage: Callable[[Path], None],
    more: dict[str, Any],
    message: str,
    llama: Path,
    bert: Path,
    tmp_path: Path,
    koffkit: Koffkit,
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "bert"))
    damage(folder)
    path = recipe_with(llama, tmp_path, {"kind": "encoder", "encoder": str(folder), "max_tokens": 24} | more)
    found = koffkit("compress", path, "--output", tmp_path / "run")
    assert found.code == 3
    assert message in found.err
    assert not (tmp_path / "run").exists()


class StopInRoute(Silent):
    """Ctrl-C once all sources were read."""

    def advance(self, stage: str, done: int, figures: Mapping[str, Any]) -> None:
        if (stage, done) == ("route", 3):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("kind", ["ngrams", "encoder", "probe"])
def test_fitting_a_router_can_be_interrupted(kind: str, llama: Path, bert: Path, tmp_path: Path) -> None:
    route = {"kind": kind} | ({"encoder": str(bert), "max_tokens": 24} if kind == "encoder" else {})
    loaded = load_recipe(recipe_with(llama, tmp_path, route))
    with pytest.raises(Interrupted, match="interrupted in route"):
        run_recipe(loaded, tmp_path / "run", progress=StopInRoute())
    assert not (tmp_path / "run" / "router").exists()
    assert run_recipe(loaded, tmp_path / "run", resume=True).results["router"]["documents"] > 0


def test_a_probe_of_another_backbone_is_refused(llama: Path, tmp_path: Path, koffkit: Koffkit) -> None:
    assert (
        koffkit(
            "compress", recipe_with(llama, tmp_path, {"kind": "probe"}), "--output", tmp_path / "run"
        ).code
        == 0
    )
    assert koffkit("export", tmp_path / "run", "--output", tmp_path / "out").code == 0
    router = load_router(tmp_path / "out" / "router")
    for layer, width in ((9, 32), (1, 33)):
        ProbeRouter(router.labels, layer, 8, np.zeros((width, 3), dtype=np.float32), router.bias).save(
            tmp_path / "out" / "router"
        )
        list_anew(tmp_path / "out", "router/config.json", "router/model.safetensors")
        with pytest.raises(
            IntegrityError,
            match=f"reads layer {layer} of a model of width {width}, this backbone has 3 layers",
        ):
            KoffModel.from_pretrained(tmp_path / "out")
