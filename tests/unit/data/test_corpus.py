from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from koffkit.data.corpus import Corpus, prepare
from koffkit.data.holdout import held_out
from koffkit.data.vocabulary import end_of_document
from koffkit.errors import DataError
from koffkit.recipe.load import LoadedRecipe
from koffkit.recipe.schema import Recipe

from ...common import make_tokenizer, recipe_dict, sentences


def loaded(root: Path, **changes: object) -> LoadedRecipe:
    recipe = Recipe.model_validate(recipe_dict(root / "base", root / "data") | changes)
    return LoadedRecipe(recipe, root / "recipe.yaml", root)


def documents(tokens: np.ndarray, end: int) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == end) + 1) if len(part)]


def make(root: Path, **changes: object) -> Corpus:
    return prepare(loaded(root, **changes), make_tokenizer(), root / "tokens")


def test_documents_are_split_not_cut_and_none_is_lost(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    corpus = make(tmp_path, holdout=0.3)
    train, heldout = (
        documents(part["north"].tokens, tokenizer.eos_token_id) for part in (corpus.train, corpus.heldout)
    )
    expected = [(*tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in sentences(1, 80)]
    assert sorted(train + heldout) == sorted(expected)
    assert 10 <= len(heldout) <= 40


def test_the_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (
        make(tmp_path / str(place), seed=seed, holdout=0.3).heldout["north"].tokens.tolist()
        for place, seed in enumerate((1, 1, 2))
    )
    assert first == again != other


def test_at_least_one_document_is_held_out(tmp_path: Path) -> None:
    assert len(make(tmp_path, holdout=1e-9).heldout["south"]) > 0


def test_token_files_are_reused_until_something_changes(tmp_path: Path) -> None:
    said: list[str] = []
    job, tokenizer = loaded(tmp_path), make_tokenizer()
    for _ in range(2):
        prepare(job, tokenizer, tmp_path / "tokens", said.append)
    assert said == ["tokenising domains.north", "tokenising domains.south", "tokenising retention"]
    (tmp_path / "data" / "south.txt").write_text("\n\n".join(sentences(9, 60)))
    prepare(job, tokenizer, tmp_path / "tokens", said.append)
    assert said[3:] == ["tokenising domains.south"]


def test_the_tokens_cache_knows_where_documents_begin(tmp_path: Path) -> None:
    end = make_tokenizer().eos_token_id
    for part in make(tmp_path, attend_across_documents=False).train.values():
        assert part.starts is not None
        assert part.starts[1:].tolist() == (np.flatnonzero(part.tokens == end)[:-1] + 1).tolist()
        for batch in part.sequences(16, 4):
            begins = batch.ids.roll(1, 1) == end
            begins[:, 0] = True
            assert (batch.positions == 0).tolist() == begins.tolist()
    said: list[str] = []
    again = prepare(loaded(tmp_path), make_tokenizer(), tmp_path / "tokens", said.append)
    assert said == []  # the setting does not change the files
    assert again.train["north"].batch(0, 2, 16, 0).positions is None


def write_files(root: Path, count: int) -> list[str]:
    folder = root / "data" / "books"
    folder.mkdir(parents=True)
    texts = ["\n\n".join(sentences(number, 8)) for number in range(count)]
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    return texts


def test_whole_files_are_held_out_where_documents_are_files(tmp_path: Path) -> None:
    job, tokenizer = loaded(tmp_path), make_tokenizer()
    texts = write_files(tmp_path, 10)
    domains = {"books": {"text": str(tmp_path / "data" / "books"), "documents": "file"}}
    job = loaded(tmp_path, domains=domains, holdout=0.3)
    corpus = prepare(job, tokenizer, tmp_path / "tokens")
    expected = [(*tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts]
    held = [held_out(0, number, 0.3) for number in range(10)]
    for part, side in ((corpus.train, False), (corpus.heldout, True)):
        files = [ids for ids, mine in zip(expected, held, strict=True) if mine is side]
        assert documents(part["books"].tokens, tokenizer.eos_token_id) == files
        assert 1 <= len(files) <= 9


def test_few_files_are_said_and_one_file_is_refused(tmp_path: Path) -> None:
    warnings: list[str] = []
    domains = {"books": {"text": str(tmp_path / "data" / "books"), "documents": "file"}}
    write_files(tmp_path, 3)
    job = loaded(tmp_path, domains=domains, retention=None)
    prepare(job, make_tokenizer(), tmp_path / "tokens", warn=warnings.append)
    assert warnings == ["domains.books: 3 files, of which holdout: 0.05 is less than one; 1 held out."]
    for name in "01":
        (tmp_path / "data" / "books" / f"{name}.txt").unlink()
    message = (
        r"domains\.books: 1 file, and documents: file holds out whole files; give it another file, or say"
    )
    with pytest.raises(DataError, match=message):
        prepare(job, make_tokenizer(), tmp_path / "tokens")


def test_a_token_cache_of_an_earlier_version_is_made_again_from_the_same_text_only(tmp_path: Path) -> None:
    job, tokenizer, folder = loaded(tmp_path), make_tokenizer(), tmp_path / "tokens"
    before = prepare(job, tokenizer, folder).train["north"].tokens.tolist()
    index = json.loads((folder / "north.json").read_text()) | {"settings": "of another format"}
    (folder / "north.json").write_text(json.dumps(index))
    (folder / "north.train.starts").unlink()
    assert prepare(job, tokenizer, folder, begun=True).train["north"].tokens.tolist() == before
    (folder / "north.json").write_text(json.dumps(index))
    (tmp_path / "data" / "north.txt").write_text("something else")
    with pytest.raises(DataError, match="its text is not what this run began with"):
        prepare(job, tokenizer, folder, begun=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"domains\.north: the source holds no documents"),
        ("\n \n\n", r"domains\.north: the source holds no documents"),
        ("one document only", r"domains\.north: 1 document; at least 2"),
        ("a\n\nb", r"domains\.north: \d+ training tokens, but one sequence needs sequence_length = 16"),
    ],
)
def test_too_little_text_is_an_error_that_says_so(tmp_path: Path, text: str, message: str) -> None:
    job = loaded(tmp_path)
    (tmp_path / "data" / "north.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        prepare(job, make_tokenizer(), tmp_path / "tokens")
    assert not list((tmp_path / "tokens").glob("*partial*"))


def test_token_files_that_were_damaged_are_made_again(tmp_path: Path) -> None:
    said: list[str] = []
    job, tokenizer, folder = loaded(tmp_path), make_tokenizer(), tmp_path / "tokens"
    before = prepare(job, tokenizer, folder).train["north"].tokens.tolist()
    path = folder / "north.train.bin"
    for damaged in (bytes(path.stat().st_size), path.read_bytes()[:-4], b""):
        path.write_bytes(damaged)
        assert prepare(job, tokenizer, folder, said.append).train["north"].tokens.tolist() == before
    assert said == ["tokenising domains.north"] * 3


def test_text_that_changed_since_training_began_is_refused(tmp_path: Path) -> None:
    job, tokenizer, folder = loaded(tmp_path), make_tokenizer(), tmp_path / "tokens"
    text = tmp_path / "data" / "south.txt"
    original = text.read_text()
    prepare(job, tokenizer, folder)
    text.write_text(original)  # another time, the same text
    prepare(job, tokenizer, folder, begun=True)
    text.write_text(original.replace("e", "o"))
    with pytest.raises(DataError, match=r"domains\.south: its text is not what this run .*south\.txt\)"):
        prepare(job, tokenizer, folder, begun=True)
    prepare(job, tokenizer, folder)


def test_a_token_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    job = loaded(tmp_path)
    (tmp_path / "data" / "north.txt").write_text("\n\n".join(["river stone"] * 30 + ["river <|new|>"]))
    message = rf"domains\.north: document 31: token {size} \('<\|new\|>'\) is beyond.*vocab_size {size}"
    with pytest.raises(DataError, match=message):
        prepare(job, tokenizer, tmp_path / "tokens", vocab_size=size)
    prepare(job, tokenizer, tmp_path / "tokens", vocab_size=size + 1)


CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "extra", "requested", "expected"),
    [
        (None, "<|endoftext|>", None, "</s>"),
        (CHAT.replace("{{ eos_token }}", "\n"), "<|endoftext|>", None, "</s>"),
        (CHAT, "<|endoftext|>", None, "<|endoftext|>"),
        (CHAT, "<|end_of_text|>", None, "<|end_of_text|>"),
        (CHAT, "<|endoftext|>", "</s>", "</s>"),
        (CHAT, "<other>", None, "</s>"),
    ],
)
def test_the_token_between_documents(
    tmp_path: Path, template: str | None, extra: str, requested: str | None, expected: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([extra], special_tokens=True)
    tokenizer.chat_template = template
    end, remark = end_of_document(tokenizer, requested, "domains.x")
    assert end == tokenizer.convert_tokens_to_ids(expected)
    assert (remark is not None) == (extra == "<other>")
    with pytest.raises(DataError, match=r"domains\.x\.end_of_document: '</S>' is not a token"):
        end_of_document(tokenizer, "</S>", "domains.x")


def test_the_token_between_documents_is_one_that_the_model_knows(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<|endoftext|>"], special_tokens=True)
    tokenizer.chat_template = CHAT
    known, remark = end_of_document(tokenizer, None, "domains.x", vocab_size=size)
    assert known == tokenizer.eos_token_id and remark is not None
    assert end_of_document(tokenizer, None, "domains.x", vocab_size=size + 1) == (size, None)
    message = rf"end_of_document: token {size} \('<\|endoftext\|>'\) is beyond .*vocab_size {size}"
    with pytest.raises(DataError, match=message):
        end_of_document(tokenizer, "<|endoftext|>", "domains.x", vocab_size=size)
    tokenizer.eos_token, tokenizer.chat_template = "<|endoftext|>", None
    with pytest.raises(DataError, match=message):
        prepare(loaded(tmp_path), tokenizer, tmp_path / "tokens", vocab_size=size)


@pytest.mark.parametrize("begin_sequences", [True, False])
def test_sequences_begin_as_the_tokenizer_begins_a_text(
    begin_sequences: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koffkit.data.corpus.beginning_of_text", lambda tokenizer: 3)
    batch = make(tmp_path, begin_sequences=begin_sequences).train["north"].batch(0, 4, 16, seed=0)
    assert bool((batch.ids[:, 0] == 3).all()) is begin_sequences
