"""Text from a web server, here one on this machine."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from koffkit.data.corpus import prepare
from koffkit.data.preflight import data_problems
from koffkit.data.sources import documents, file_source
from koffkit.errors import DataError
from koffkit.recipe.load import LoadedRecipe
from koffkit.recipe.schema import Recipe

from ...common import make_tokenizer, recipe_dict
from .test_parquet import write


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if "broken" in self.path:  # more is promised than comes
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"one\n\ntwo")
        elif "wrong" in self.path:
            self.send_error(500)
        else:
            super().do_GET()

    do_HEAD = do_GET


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    (tmp_path / "www").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www"))) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def read(address: str) -> list[str]:
    return list(documents(file_source(address), Path.cwd(), "domains.x"))


def test_files_of_every_kind(server: str, tmp_path: Path) -> None:
    www = tmp_path / "www"
    contents = {
        "a.txt": b"one\n\ntwo",
        "a.txt.gz": gzip.compress(b"one\n\ntwo"),
        "a.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
        "a.json": b'[{"text": "one"}, {"text": "two"}]',
        "a.csv": b"n,text\n1,one\n2,two\n",
    }
    for name, content in contents.items():
        (www / name).write_bytes(content)
        assert read(f"{server}/{name}?token=1") == ["one", "two"], name


def test_parquet_from_a_server_that_sends_whole_files_only(server: str, tmp_path: Path) -> None:
    rows = [f"line {number}" for number in range(60_000)]
    write(tmp_path / "www" / "a.parquet", {"text": rows})
    assert read(f"{server}/a.parquet") == rows


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.txt", r"none\.txt: cannot be opened \(ClientResponseError: 404"),
        ("wrong.txt", r"wrong\.txt: cannot be opened \(ClientResponseError: 500"),
        ("broken.txt", r"broken\.txt \(domains\.x\): cannot be read: Response payload is not completed"),
        ("broken.parquet", r"broken\.parquet \(domains\.x\): cannot be read: Response payload is not"),
    ],
)
def test_what_goes_wrong_is_one_error(server: str, name: str, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=message):
        read(f"{server}/{name}")


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(DataError, match=r"cannot be opened \(ClientConnectorError: Cannot connect"):
        read("http://127.0.0.1:9/a.txt")


def test_a_domain_from_a_server(server: str, tmp_path: Path) -> None:
    root = tmp_path / "project"
    tree = recipe_dict(root / "base", root / "data")
    text = tmp_path / "www" / "north.txt"
    shutil.copy(root / "data" / "north.txt", text)
    near = Recipe.model_validate(tree)
    tree["domains"] = tree["domains"] | {"north": {"text": f"{server}/north.txt"}}
    far = Recipe.model_validate(tree)
    here, there = (
        prepare(LoadedRecipe(recipe, root / "r.yaml", root), make_tokenizer(), tmp_path / name)
        for name, recipe in (("here", near), ("there", far))
    )
    assert there.train["north"].tokens.tolist() == here.train["north"].tokens.tolist()
    text.write_text("other text")
    with pytest.raises(DataError, match="its text is not what this run began with"):
        prepare(LoadedRecipe(far, root / "r.yaml", root), make_tokenizer(), tmp_path / "there", begun=True)


def test_a_missing_package_is_named_without_asking_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(scheme: str) -> None:
        raise ImportError(f"{scheme} needs something")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    domains = {"web": {"text": "https://h/a.txt"}, "store": {"jsonl": "s3://b/a.jsonl"}}
    recipe = Recipe.model_validate(recipe_dict(tmp_path, tmp_path / "data", domains=domains))
    problems = data_problems(LoadedRecipe(recipe, tmp_path / "r.yaml", tmp_path))
    assert len(problems) == 2
    assert problems[0].startswith("domains.web: 'https://h/a.txt' needs a package (ImportError: https needs")
    assert problems[0].endswith("pip install 'koffkit[data]'.")
    assert problems[1].endswith("pip install it.")
