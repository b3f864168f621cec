"""What loading refuses before it loads anything, by the name of the right file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from koffkit import KoffModel
from koffkit.artefact.bundle import open_bundle
from koffkit.artefact.check import require_sound, require_sound_bundle
from koffkit.artefact.export import open_export
from koffkit.errors import IntegrityError, UsageError
from koffkit.storage.seal import KEY, is_unbroken, sealed

from ...common import list_anew, write_record
from ...conftest import Shipped


@pytest.fixture
def copy(shipped: Shipped, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped.export, tmp_path / "copy"))


def put(name: str, text: str = "x") -> Callable[[Path], str]:
    def damage(out: Path) -> str:
        (out / name).write_text(text)
        return f"{name}: nobody lists this file"

    return damage


def remove(name: str) -> Callable[[Path], str]:
    def damage(out: Path) -> str:
        (out / name).unlink()
        return f"{name}: missing; koffkit.json lists it"

    return damage


def flip(name: str, place: int = -9) -> Callable[[Path], str]:
    def damage(out: Path) -> str:
        data = bytearray((out / name).read_bytes())
        data[place] ^= 1
        (out / name).write_bytes(data)
        return f"{name}: its sha256 is not the one in koffkit.json"

    return damage


def flip_weights(out: Path) -> str:
    flip("backbone/model.safetensors", 300)(out)
    return "backbone/model.safetensors: samples of it are not those in koffkit.json"


def link_out(out: Path) -> str:
    (out / "backbone" / "tokenizer.json").rename(out.with_name("elsewhere.json"))
    (out / "backbone" / "tokenizer.json").symlink_to(out.with_name("elsewhere.json"))
    return "backbone/tokenizer.json: leads out of"


def link_folder_out(out: Path) -> str:
    (out / "backbone" / "more").symlink_to(out.parent)
    return "backbone/more: a link that leads out of"


def without_a_half(out: Path) -> str:
    path = out / "memories" / "north" / "memory.json"
    info = json.loads(path.read_text())
    del info["files"]["kv_memory.safetensors"]
    write_record(path, info)
    list_anew(out, "memories/north/memory.json")
    return "memory.json: lists no weights of its half 'kv'"


def of_another_backbone(out: Path) -> str:
    path = out / "memories" / "north" / "memory.json"
    write_record(path, json.loads(path.read_text()) | {"backbone_digest": "0" * 64})
    return "memory.json: this memory (north) belongs to backbone 000000000000"


@pytest.mark.parametrize(
    "damage",
    [
        *(put(f"backbone/{name}") for name in ("modeling_x.py", "adapter_config.json", "pytorch_model.bin")),
        put("backbone/chat_template.jinja"),
        put("memories/north/adapter_model.bin"),
        put("router/extra.json"),
        put("config.json"),
        remove("backbone/config.json"),
        remove("memories/south/kv_memory.safetensors"),
        remove("memories/south/adapter_config.json"),
        flip("backbone/config.json"),
        flip("backbone/tokenizer.json"),
        flip("memories/north/adapter_model.safetensors"),
        flip("router/model.safetensors"),
        flip_weights,
        link_out,
        link_folder_out,
        without_a_half,
        of_another_backbone,
    ],
)
def test_the_file_is_named(damage: Callable[[Path], str], copy: Path) -> None:
    message = damage(copy)
    with pytest.raises(IntegrityError) as refused:
        KoffModel.from_pretrained(copy)
    assert message in str(refused.value)


def test_what_people_and_writers_put_there_does_no_harm(copy: Path) -> None:
    for name in ("README.md", "memories/north/README.md"):
        (copy / name).write_text("edited")
    (copy / "notes.txt").write_text("mine")
    (copy / ".gitattributes").write_text("x")
    (copy / "memories" / ".west.koffkit-partial-7").mkdir()
    (copy / "memories" / ".west.koffkit-partial-7" / "half.py").write_text("x")
    (copy / "memories" / ".north.koffkit-lock").write_text("x")
    shutil.rmtree(copy / "memories" / "south")
    require_sound(open_export(copy), whole=True)  # refuses with an exception
    (copy / "memories" / "north" / "half.py").write_text("x")
    with pytest.raises(IntegrityError, match=r"half\.py"):
        require_sound(open_export(copy), whole=True)


def test_samples_do_not_see_everything_and_whole_files_do(copy: Path) -> None:
    """With fewer samples, for a file of this size is covered by them."""
    path = copy / "backbone" / "model.safetensors"
    manifest = json.loads((copy / "koffkit.json").read_text())
    entry = manifest["files"]["backbone/model.safetensors"]
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    from koffkit.checkpoint.fingerprint import sampled_digest

    entry["sampled"] = sampled_digest(path)  # as if the flipped bit lay between the samples
    write_record(copy / "koffkit.json", manifest)
    require_sound(open_export(copy))
    with pytest.raises(IntegrityError, match=r"model\.safetensors: its sha256 is not the one"):
        KoffModel.from_pretrained(copy, verify=True)
    del entry["sampled"]  # as earlier versions wrote it
    write_record(copy / "koffkit.json", manifest)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: its sha256 is not the one"):
        KoffModel.from_pretrained(copy)


def test_the_links_of_a_hub_cache_are_followed(copy: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "rev", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(copy, snapshot)
    blobs.mkdir()
    for number, path in enumerate([path for path in snapshot.rglob("*") if path.is_file()]):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    require_sound(open_export(snapshot), whole=True)  # refuses with an exception
    config = snapshot / "backbone" / "config.json"
    config.unlink()
    config.symlink_to(copy / "backbone" / "config.json")
    with pytest.raises(IntegrityError, match=r"config\.json"):
        require_sound(open_export(snapshot), whole=True)


def test_a_bundle_by_itself_is_checked(copy: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(copy / "memories" / "north", tmp_path / "north"))
    require_sound_bundle(open_bundle(bundle))
    (bundle / "adapter_config.json").unlink()
    with pytest.raises(IntegrityError, match=r"north/adapter_config\.json: missing; memory\.json lists it"):
        KoffModel.from_pretrained(copy / "backbone", [bundle])


def test_code_of_an_export_does_not_run(copy: Path, tmp_path: Path) -> None:
    """Even where all digests are right, as whoever made it to do harm would see to."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nfrom transformers import LlamaConfig\n"
    (copy / "backbone" / "evil.py").write_text(f"{code}class Evil(LlamaConfig): model_type = 'evil'\n")
    path = copy / "backbone" / "config.json"
    config = json.loads(path.read_text())
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    path.write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto}))
    list_anew(copy, "backbone/evil.py", "backbone/config.json")
    require_sound(open_export(copy))
    with pytest.raises(UsageError, match=r"config\.json: loading it would run code that lies in the folder"):
        KoffModel.from_pretrained(copy)
    assert not mark.exists()


def test_a_seal_breaks_with_every_bit() -> None:
    text = sealed({"a": 1e-07, "b": "Zwölf"}).encode()
    seal = json.loads(text)[KEY]
    assert is_unbroken(text, seal)
    for bit in range(8 * len(text)):
        damaged = bytearray(text)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = json.loads(damaged).get(KEY, "absent")
        except ValueError:
            continue
        assert found == "absent" or not is_unbroken(bytes(damaged), str(found)), bit
