from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from koffkit.data.corpus import Corpus, held_out, prepare, split_documents
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


def test_documents_are_split_as_for_perplexity_with_one_on_either_side() -> None:
    texts = [f"text {i}" for i in range(200)]
    learned, held = split_documents(texts, 3, 0.25, "x")
    assert [text for number, text in enumerate(texts) if held_out(3, number, 0.25)] == held and sorted(
        learned + held
    ) == sorted(texts)
    for share in (1e-9, 1 - 1e-9):
        sides = split_documents(texts[:5], 0, share, "x")
        assert sorted(map(len, sides)) == [1, 4]
    with pytest.raises(DataError, match="x: the router needs at least 2 documents, found 1"):
        split_documents(texts[:1], 0, 0.5, "x")


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


@pytest.mark.parametrize("begin_sequences", [True, False])
def test_sequences_begin_as_the_tokenizer_begins_a_text(
    begin_sequences: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("koffkit.data.corpus.beginning_of_text", lambda tokenizer: 3)
    batch = make(tmp_path, begin_sequences=begin_sequences).train["north"].batch(0, 4, 16, seed=0)
    assert bool((batch[:, 0] == 3).all()) is begin_sequences
