"""A GGUF file becomes an ordinary checkpoint, once, and what cannot become one is refused in a line."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint import gguf
from koffkit.checkpoint.fingerprint import full_digest
from koffkit.checkpoint.gguf import cache_folder, gguf_checkpoint, is_gguf
from koffkit.checkpoint.license import license_of
from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import DataError, IntegrityError, UsageError
from koffkit.progress import Silent

from ...gguf_files import CHAT, make_gguf

pytest.importorskip("gguf")


class Heard(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not change it; copy what you want to damage."""
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def logits(folder: Path, **options: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


def test_the_cached_checkpoint_computes_what_transformers_reads(file: Path) -> None:
    import torch

    folder = gguf_checkpoint(file)
    read = logits(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    assert torch.equal(logits(folder), read)
    original = logits(file.parent / "source")
    assert (read.float() - original).abs().max() < 0.1 * original.abs().max()


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
def test_plain_floats_keep_their_type(tmp_path: Path, kind: str, dtype: str) -> None:
    import torch

    folder = gguf_checkpoint(make_gguf(tmp_path / "tiny.gguf", kind))
    assert ModelSpec.open(folder).config["dtype"] == dtype
    if kind == "F32":
        assert torch.equal(logits(folder), logits(tmp_path / "source"))


def test_it_has_tokenizer_chat_template_license_and_digest(file: Path) -> None:
    import hashlib

    from transformers import AutoTokenizer

    folder = gguf_checkpoint(file)
    tokenizer, original = (AutoTokenizer.from_pretrained(place) for place in (folder, file.parent / "source"))
    text = "river stone over seven lamp."
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert tokenizer.get_vocab() == original.get_vocab()
    assert tokenizer.chat_template == CHAT
    assert license_of(folder) == {"license": "apache-2.0"}
    record = json.loads((folder / "gguf.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (folder.name, record["sha256"], record["file"]) == (digest, digest, "tiny.gguf")


def test_it_is_made_once_for_all_copies_of_the_file(file: Path, tmp_path: Path) -> None:
    heard = Heard()
    folder = gguf_checkpoint(file, heard)
    moved = Path(shutil.copy(file, tmp_path / "other.gguf"))
    assert gguf_checkpoint(moved, heard) == folder
    assert [text.split(":")[0] for text in heard.texts] == [str(file)]
    assert "dequantising" in heard.texts[0]


def test_made_again_it_is_the_same_base(file: Path, cache: Path) -> None:
    first = full_digest(gguf_checkpoint(file))
    shutil.rmtree(cache)
    again = gguf_checkpoint(file)
    assert full_digest(again) == first
    assert "transformers_version" not in ModelSpec.open(again).config  # else a new version makes a new base


def test_files_beside_it_do_not_matter(file: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(file, tmp_path / "x.gguf"))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert (gguf_checkpoint(alone) / "model.safetensors").is_file()


def test_two_at_once_make_it_once(file: Path) -> None:
    heard = Heard()
    threads = [threading.Thread(target=gguf_checkpoint, args=(file, heard)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard.texts) == 1


def test_a_failure_leaves_nothing_behind(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_write_license", fail)
    with pytest.raises(KeyboardInterrupt):
        gguf_checkpoint(file)
    assert list((cache / "gguf").iterdir()) == []


def test_the_missing_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"tiny\.gguf: .* pip install 'koffkit\[gguf\]'"):
        gguf_checkpoint(file)


def test_a_truncated_file_is_refused_before_it_is_read(file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=r"short\.gguf: truncated: \S+ ends at byte [\d,]+, "):
        gguf_checkpoint(short)


def test_a_file_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "x.gguf", leave_out="blk.1.ffn_up.weight")
    with pytest.raises(IntegrityError, match=r"x\.gguf: lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        gguf_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "clip"}, r"transformers cannot read the config of this GGUF file \(.*clip"),
        ({"arch": "gpt2"}, r"model_type 'gpt2' is not supported; koffkit knows"),
        ({"split__count": 3}, r"one of 3 parts of a model; merge them"),
        ({"llama__rope__scaling__type": "yarn"}, r"rotary embedding is scaled \(yarn\)"),
        ({"kind": "missing"}, r"ggml type 99, which the gguf package does not know"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "x.gguf"
    if changes == {"kind": "missing"}:
        make_gguf(path)
        content, name = path.read_bytes(), b"output_norm.weight"
        place = content.index(name) + len(name) + 4 + 8  # number of dimensions, one dimension
        path.write_bytes(content[:place] + (99).to_bytes(4, "little") + content[place + 4 :])
    else:
        make_gguf(path, **changes)
    with pytest.raises(UsageError, match=words):
        gguf_checkpoint(path)


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("KOFFKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "koffkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "koffkit"


def test_it_is_known_by_name_or_by_its_first_bytes(tmp_path: Path) -> None:
    for name, content, expected in (("a.GGUF", b"", True), ("blob", b"GGUF", True), ("b.bin", b"x", False)):
        (tmp_path / name).write_bytes(content)
        assert is_gguf(tmp_path / name) is expected
    assert not is_gguf(tmp_path)
