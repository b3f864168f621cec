"""One model for everybody: what transformers loads is what koffkit reads."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from koffkit.checkpoint.fingerprint import fingerprint, full_digest
from koffkit.checkpoint.reader import CheckpointReader
from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import IntegrityError, KoffkitError, UsageError
from koffkit.model.loaded import LoadedWeights, require_same_tensors

from ...common import make_checkpoint

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture
def copy(tied: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tied, tmp_path / "copy"))


def change(folder: Path, **tensors: torch.Tensor) -> None:
    """Put tensors into the checkpoint's one file; `__` stands for a dot."""
    path = folder / "model.safetensors"
    new = {name.replace("__", "."): value for name, value in tensors.items()}
    save_file(load_file(path) | new, path, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{"tie_word_embeddings": True}, {}, {"shard": "60KB"}])
def test_every_weight_is_compared(tmp_path: Path, dtype: torch.dtype, options: dict) -> None:
    folder = make_checkpoint(tmp_path / "model", **options)
    spec = ModelSpec.open(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert require_same_tensors(model, spec) == 4 * spec.num_parameters
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 5] += 0.5
    with pytest.raises(IntegrityError, match=r"layers\.2\.mlp\.down_proj\.weight is not what transformers"):
        require_same_tensors(model, spec)


def test_a_model_with_other_weights_is_named(tied: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tied)
    del model.model.layers[1].mlp.up_proj.weight
    with pytest.raises(IntegrityError, match=r"layers\.1\.mlp\.up_proj\.weight is not in what it loads"):
        require_same_tensors(model, ModelSpec.open(tied))


def test_a_head_that_was_not_tied_is_named(tied: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tied)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    with pytest.raises(IntegrityError, match=r"lm_head\.weight is tied in config\.json, and loaded untied"):
        require_same_tensors(model, ModelSpec.open(tied))


def test_a_second_copy_of_the_tied_head_and_stored_buffers_do_no_harm(copy: Path) -> None:
    names = ModelSpec.open(copy).reader().tensors.keys()
    head = {HEAD.replace(".", "__"): CheckpointReader(copy).read(EMBEDDINGS)}
    change(copy, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4), **head)
    assert ModelSpec.open(copy).reader().tensors.keys() == names | {HEAD}


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "lm_head__weight",
            (300, 32),
            "lm_head.weight is not model.embed_tokens.weight, though .* ties",
        ),
        ("model__layers__0__extra__weight", (4, 4), "layers.0.extra.weight has no place in a model of this"),
    ],
)
def test_a_tensor_too_many_is_named_before_anything_is_learned(
    copy: Path, name: str, size: tuple[int, int], message: str
) -> None:
    change(copy, **{name: torch.ones(size)})
    with pytest.raises(UsageError, match=message):
        ModelSpec.open(copy).reader()


def shards_beside(folder: Path) -> None:
    for path in make_checkpoint(folder.with_name("later"), seed=9, shard="60KB").glob("model*"):
        shutil.copy(path, folder)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shards_beside, r"both model\.safetensors and model\.safetensors\.index\.json with model-00001"),
        (adapter, r"adapter_config\.json: transformers applies this adapter"),
    ],
)
def test_a_folder_that_is_two_models_is_refused(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(UsageError, match=message):
        CheckpointReader(copy)


def test_an_index_whose_files_are_gone_does_not_count(copy: Path) -> None:
    before = CheckpointReader(copy).tensors.keys()
    shards_beside(copy)
    for path in copy.glob("model-*.safetensors"):
        path.unlink()
    assert CheckpointReader(copy).tensors.keys() == before


@pytest.mark.parametrize("options", [{"tie_word_embeddings": True}, {"shard": "60KB"}])
def test_weights_are_read_as_transformers_reads_them(tmp_path: Path, options: dict) -> None:
    folder = make_checkpoint(tmp_path / "model", **options)
    expected = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    with LoadedWeights(folder) as loaded:
        assert loaded.tensors.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(loaded.read(name), value), name
            assert torch.equal(
                torch.cat([rows.clone() for _, rows in loaded.read_float_rows(name, 900)]), value
            )
        rows = loaded.gather_rows(EMBEDDINGS, [5, 0, 5], torch.float64)
    assert torch.equal(rows, expected[EMBEDDINGS][[5, 0, 5]].double())


def test_one_bit_anywhere_makes_another_base(copy: Path) -> None:
    before, seen = full_digest(copy), 0
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "config.json"):
        path = copy / name
        whole = path.read_bytes()
        for place in range(9, len(whole), len(whole) // 12):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with contextlib.suppress(KoffkitError):
                assert full_digest(copy) != before, (name, place)
            seen += 1
        path.write_bytes(whole)
    assert seen >= 48
    assert full_digest(copy) == before != fingerprint(copy)


def test_the_division_into_files_does_not_count(tmp_path: Path) -> None:
    one, many = make_checkpoint(tmp_path / "one"), make_checkpoint(tmp_path / "many", shard="60KB")
    assert full_digest(one) == full_digest(many)
    assert fingerprint(one) != fingerprint(many)


@pytest.mark.parametrize(
    ("norms", "loaded"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)]
)
def test_weights_are_read_in_their_own_type_and_nothing_is_rounded(
    tied: Path, tmp_path: Path, norms: torch.dtype, loaded: torch.dtype
) -> None:
    """Loading looks at no weight where all are of one type: it would read all of the files."""
    folder = Path(shutil.copytree(tied, tmp_path / "copy"))
    path = folder / "model.safetensors"
    stored = {
        name: value.to(norms if value.ndim == 1 else torch.bfloat16)
        for name, value in load_file(path).items()
    }
    save_file(stored, path, metadata={"format": "pt"})
    with LoadedWeights(folder) as weights:
        for name, value in stored.items():
            assert weights._weights[name].dtype == loaded
            out = torch.empty(value.shape, dtype=torch.float64)
            assert torch.equal(weights.read(name, out), value.double())
