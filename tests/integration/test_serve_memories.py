"""Memories that come, change and go while a server runs, and the command itself."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from koffkit import KoffModel
from koffkit.artefact.export import open_export
from koffkit.storage.publish import replacing, staged

from ..conftest import Koffkit, Shipped
from ..exports import changed_memory, with_memories

for package in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(package)
import httpx  # noqa: E402

from ..served import Served, serving, wait_for  # noqa: E402

PATH = "/v1/completions"


@pytest.fixture
def export(restored: Shipped, tmp_path: Path) -> Path:
    return with_memories(restored.export, tmp_path / "out", {"east": ("north", 1.0)})


def replace(export: Path, name: str, source: str, factor: float) -> None:
    """Another memory in the place of `name`, swapped in as `koffkit memory replace` does it."""
    memories = export / "memories"
    with replacing(memories / name) as partial:
        new = changed_memory(memories / source, export.parent / f"new-{name}", name, factor)
        shutil.copytree(new, partial, dirs_exist_ok=True)
    shutil.rmtree(new)


def text(served: Served, name: str, **changes: Any) -> str:
    asked = {"model": name, "prompt": "river stone", "temperature": 0, "max_tokens": 12} | changes
    response = served.post(PATH, asked)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def test_the_folder_is_followed(export: Path) -> None:
    with serving(KoffModel.from_pretrained(export), open_export(export), rescan=0.1) as served:
        old = text(served, "east")
        with staged(export / "memories" / "west") as partial:
            new = changed_memory(export / "memories" / "north", export.parent / "west", "west", -0.7)
            shutil.copytree(new, partial, dirs_exist_ok=True)
        replace(export, "east", "south", -1.3)
        shutil.rmtree(export / "memories" / "south")
        wait_for(lambda: served.service.names == ["auto", "none", "east", "north", "west"])
        wait_for(lambda: served.figure("koffkit_memory_changes_total") == 3)
        assert old != text(served, "east") != text(served, "west")
        gone = served.post(PATH, {"model": "south", "prompt": "x"})
        assert gone.status_code == 404
        assert text(served, "east") == KoffModel.from_pretrained(export).complete("river stone", "east", 12)


def test_a_damaged_memory_changes_nothing_and_is_told(export: Path) -> None:
    with serving(KoffModel.from_pretrained(export), open_export(export), rescan=0.1) as served:
        old = text(served, "east")
        with replacing(export / "memories" / "east") as partial:
            new = changed_memory(export / "memories" / "south", export.parent / "new", "east", 1.0)
            (new / "neurons.safetensors").write_bytes(b"nonsense")
            shutil.copytree(new, partial, dirs_exist_ok=True)
        wait_for(lambda: served.memories.problems)
        assert "neurons.safetensors" in served.memories.problems["east"]
        assert text(served, "east") == old
        assert served.figure('koffkit_memory_changes_total{change="failed"') == 1  # said once, not every look


def test_a_memory_is_replaced_under_load(export: Path) -> None:
    """Every answer is the old memory's or the new one's, never a mixture, and none is lost."""
    model = KoffModel.from_pretrained(export)
    with serving(model, open_export(export), pause=0.005, max_batch=8, rescan=60) as served:
        old = text(served, "east", max_tokens=40)
        done, answers = threading.Event(), [[] for _ in range(8)]

        def keep_asking(place: int) -> None:
            while not done.is_set():
                answers[place].append(text(served, "east" if place < 6 else "north", max_tokens=40))

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(keep_asking, place) for place in range(8)]
            wait_for(lambda: all(answers), 60)
            replace(export, "east", "south", -1.3)
            served.memories.look_now()
            wait_for(lambda: served.figure('koffkit_memory_changes_total{change="replaced"') == 1)
            before = list(map(len, answers))
            wait_for(lambda: all(len(one) > count for one, count in zip(answers, before, strict=True)), 60)
            done.set()
            for one in asking:
                one.result()
        new = text(served, "east", max_tokens=40)
    assert old != new and all(set(one) == {old, new} for one in answers[:6])
    assert all(one[0] == old and one[-1] == new for one in answers[:6])
    assert len({*answers[6], *answers[7]}) == 1


def test_memories_by_request_only_where_it_is_allowed(
    export: Path, restored: Shipped, tmp_path: Path
) -> None:
    bundle = changed_memory(restored.export / "memories" / "north", tmp_path / "far", "far", 0.5)
    with serving(KoffModel.from_pretrained(export), open_export(export), admin=True, rescan=0.1) as served:
        added = served.post("/v1/memories", {"path": str(bundle)})
        assert added.status_code == 200 and text(served, "far")
        time.sleep(0.3)  # it is not in the export's folder, and stays
        again = served.post("/v1/memories", {"path": str(bundle)})
        assert again.status_code == 400 and "loaded already" in again.json()["error"]["message"]
        assert served.post("/v1/memories", {"path": str(bundle), "replace": True}).status_code == 200
        assert served.post("/v1/memories", {"path": str(tmp_path)}).status_code == 400
        with served.client as client:
            assert client.delete("/v1/memories/far").status_code == 200
            assert client.delete("/v1/memories/far").status_code == 404
        assert "far" not in served.service.names


def test_the_command_serves_until_a_signal(
    export: Path, koffkit: Koffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    found: dict[str, Any] = {}

    def use() -> None:
        wait_for(lambda: log.is_file() and " at http" in log.read_text(), 60)
        url = log.read_text().rpartition(" at ")[2].strip()
        try:
            with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
                found["before"] = client.get("/health").json()["memories"]
                shutil.rmtree(export / "memories" / "south")
                os.kill(os.getpid(), signal.SIGHUP)
                wait_for(lambda: "south" not in client.get("/health").json()["memories"])
                body = {"model": "north", "prompt": "x", "max_tokens": 100, "temperature": 0, "stream": True}
                with client.stream("POST", PATH, json=body) as response:
                    lines = response.iter_lines()
                    next(lines)
                    os.kill(os.getpid(), signal.SIGTERM)
                    found["rest"] = list(lines)
        except BaseException as error:
            found["error"] = error
            os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use)
    user.start()
    done = koffkit("serve", export, "--port", 0, "--rescan", 60, "--log-file", log)
    user.join()
    assert "error" not in found, found
    assert done.code == 0 and "stopped" in done.err and found["before"] == ["east", "north", "south"]
    assert found["rest"][-2:] == ["data: [DONE]", ""]  # what had begun was answered to its end


def test_what_is_not_served(
    export: Path, koffkit: Koffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KOFFKIT_API_KEY", raising=False)
    open_to_all = koffkit("serve", export, "--host", "0.0.0.0")
    assert open_to_all.code == 2 and "needs an API key" in open_to_all.err
    (tmp_path / "key").write_text("two words\n")
    assert koffkit("serve", export, "--api-key-file", tmp_path / "key").code == 3
    assert koffkit("serve", export, "--api-key-file", tmp_path / "nowhere").code == 3
    assert koffkit("serve", tmp_path).code == 2
    with httpx.Client() as _, serving(KoffModel.from_pretrained(export)) as served:
        taken = koffkit("serve", export, "--port", served.url.rpartition(":")[2])
    assert taken.code == 2 and "in use" in taken.err
    monkeypatch.setattr("koffkit.cli.serve.find_spec", lambda name: None)
    missing = koffkit("serve", export)
    assert missing.code == 2 and "pip install 'koffkit[serve]'" in missing.err
