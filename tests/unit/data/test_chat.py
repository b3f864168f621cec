from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from koffkit.data.chat import Conversation, check_conversation, conversation_ids
from koffkit.data.corpus import prepare
from koffkit.data.sources import documents
from koffkit.errors import DataError, UsageError
from koffkit.recipe.load import load_recipe

from ...common import make_tokenizer, recipe_dict, write_recipe

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}<s>{{ m['content'] }}</s>{% endif %}"
    "{% endfor %}"
)
TALK = [
    {"role": "system", "content": "quiet"},
    {"role": "user", "content": "river stone"},
    {"role": "assistant", "content": "green lamp"},
    {"role": "user", "content": "seven"},
    {"role": "assistant", "content": "slow cloud"},
]


def tokenizer(template: str | None = TEMPLATE) -> Any:
    made = make_tokenizer()
    made.chat_template = template
    return made


def test_the_assistants_tokens_are_its_text_and_what_closes_its_turn() -> None:
    made = tokenizer()
    ids, assistant = conversation_ids(made, Conversation(TALK, "here"), mask=True)
    assert made.decode(ids) == made.apply_chat_template(TALK, tokenize=False)
    said = made.decode([index for index, own in zip(ids, assistant, strict=True) if own])
    assert (
        said.replace(" green", "green").replace(" slow", "slow") == "green lamp</s>slow cloud</s>"
    )  # a token may begin in the prompt
    assert not any(conversation_ids(made, Conversation(TALK, "here"), mask=False)[1])


def test_a_template_that_changes_earlier_turns_is_refused_for_a_mask_only() -> None:
    made = tokenizer(FORGETFUL)
    assert conversation_ids(made, Conversation(TALK, "here"), mask=False)[0]
    with pytest.raises(
        DataError, match=r"here: the chat template renders earlier turns differently .* use loss_on: all"
    ):
        conversation_ids(made, Conversation(TALK, "here"), mask=True)


def test_a_template_that_raises_is_a_clear_error() -> None:
    made = tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(
        DataError, match="here: the chat template refuses this conversation: roles must alternate"
    ):
        conversation_ids(made, Conversation(TALK, "here"), mask=False)


def test_a_router_reads_what_the_user_said() -> None:
    assert Conversation(TALK, "here").user_text == "river stone\nseven"


def chat_recipe(llama: Path, root: Path, rows: list[Any], **options: Any) -> Any:
    recipe = recipe_dict(llama, root / "data")
    path = root / "data" / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe["domains"] = {"north": {"jsonl": str(path), "messages": "talk", **options}}
    return write_recipe(root / "recipe.yaml", recipe)


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_token_files_of_conversations(llama: Path, tmp_path: Path, loss_on: str) -> None:
    loaded = load_recipe(chat_recipe(llama, tmp_path, [{"talk": TALK}] * 40, loss_on=loss_on))
    made = tokenizer()
    corpus = prepare(loaded, made, tmp_path / "tokens")
    ids, assistant = conversation_ids(made, Conversation(TALK, ""), mask=True)
    train = corpus.train["north"]
    assert train.tokens[: len(ids)].tolist() == ids
    if loss_on == "all":
        assert train.mask is None and train.batch(0, 2, 16, 0).loss_mask is None
    else:
        assert train.mask is not None and len(train.mask) == len(train.tokens)
        assert train.mask[: len(ids)].astype(bool).tolist() == assistant
        ids, loss_mask, *_ = train.batch(1, 2, 16, 0)
        for row in range(2):  # the same cut of both files
            starts = [
                i
                for i in range(len(train.tokens) - 15)
                if train.tokens[i : i + 16].tolist() == ids[row].tolist()
            ]
            assert any(np.array_equal(train.mask[i : i + 16].astype(bool), loss_mask[row]) for i in starts)
        evaluated = list(corpus.heldout["north"].sequences(16, 4))
        assert all(
            part.loss_mask is not None
            and part.loss_mask.shape == part.ids.shape
            and 0 < part.loss_mask.float().mean() < 1
            for part in evaluated
        )


def test_another_template_or_another_loss_makes_the_token_files_anew(llama: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    loaded = load_recipe(chat_recipe(llama, tmp_path, [{"talk": TALK}] * 40))
    for template in (TEMPLATE, TEMPLATE, TEMPLATE.replace(": ", "= ")):
        prepare(loaded, tokenizer(template), tmp_path / "tokens", messages.append)
    assert messages.count("tokenising domains.north") == 2
    prepare(
        load_recipe(loaded.path, ["domains.north.loss_on=assistant"]),
        tokenizer(TEMPLATE),
        tmp_path / "tokens",
        messages.append,
    )
    assert messages.count("tokenising domains.north") == 3


def test_no_template_and_no_conversation_are_clear_errors(llama: Path, tmp_path: Path) -> None:
    loaded = load_recipe(chat_recipe(llama, tmp_path, [{"talk": TALK}] * 3))
    with pytest.raises(DataError, match=r"domains\.north\.messages: messages need a chat template"):
        prepare(loaded, tokenizer(None), tmp_path / "tokens")
    loaded = load_recipe(chat_recipe(llama, tmp_path, [{"talk": "hello"}] * 3))
    with pytest.raises(DataError, match=r"chat\.jsonl:1: not a conversation"):
        prepare(loaded, tokenizer(), tmp_path / "tokens")


def test_documents_of_a_chat_source_are_the_users_words(llama: Path, tmp_path: Path) -> None:
    loaded = load_recipe(chat_recipe(llama, tmp_path, [{"talk": TALK}] * 3, max_documents=2))
    assert list(documents(loaded.recipe.sources["north"], tmp_path, "x")) == ["river stone\nseven"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "x"}, "messages is a field of jsonl or hub records"),
        ({"messages": None, "loss_on": "assistant"}, "loss_on: assistant needs"),
    ],
)
def test_options_that_do_not_go_together(
    llama: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(chat_recipe(llama, tmp_path, [], **options))


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}]


def test_text_parts_are_joined_before_any_template_sees_them() -> None:
    pieces = [turn | {"content": parts(str(turn["content"]))} for turn in TALK]
    joined = check_conversation(pieces, None, "here")
    assert [turn["content"] for turn in joined.messages] == [turn["content"] for turn in TALK]
    made = tokenizer("{% for m in messages %}{{ m.content if m.content is string else '' }}|{% endfor %}")
    ids = conversation_ids(made, joined, mask=False)[0]
    assert made.decode(ids) == "quiet|river stone|green lamp|seven|slow cloud|"


CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "weather"}}]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "now"}}


@pytest.mark.parametrize("call", [CALL, CALL | {"content": None}])
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_reach_the_template_and_a_call_needs_no_content(call: dict[str, Any], tools: Any) -> None:
    talk = check_conversation([TALK[1], call], tools, "here")
    made = tokenizer(
        "{% for t in tools %}{{ t.function.name }};{% endfor %}"
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}!{{ c.function.name }}{% endfor %}"
        "{% endfor %}"
    )
    assert made.decode(conversation_ids(made, talk, mask=False)[0]) == "weather;river stone!weather"


@pytest.mark.parametrize(
    ("talk", "tools", "message"),
    [
        ([{"role": "user", "content": None}], None, r"message 1 \(user\): content is missing"),
        ([{"role": "user"}], None, "content is missing"),
        ([{"role": "user", "content": 5}], None, "content is a int"),
        ([{"role": 5, "content": "x"}], None, "role is '5'"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            None,
            "'image_url'; only parts of type text",
        ),
        ([{"role": "user", "content": "\ud83d"}], None, "half a character"),
        ([{"role": "user", "content": "x"}], {"a": 1}, "tools is not a list of objects"),
        ([{"role": "user", "content": "x"}], "[", "tools: not valid JSON"),
        ([], None, "not a conversation"),
    ],
)
def test_what_is_no_conversation(talk: Any, tools: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"here.*{message}"):
        check_conversation(talk, tools, "here")


def test_tools_that_the_template_leaves_out_are_warned_of_once(llama: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    loaded = load_recipe(chat_recipe(llama, tmp_path, [{"talk": TALK, "tools": [TOOL]}] * 40))
    prepare(loaded, tokenizer(), tmp_path / "tokens", warn=warnings.append)
    warnings = [text for text in warnings if "tools" in text]
    assert len(warnings) == 1
    assert "domains.north: the chat template leaves out the tools" in warnings[0]


def test_roles_that_train_nothing_are_an_error(llama: Path, tmp_path: Path) -> None:
    talk = [turn | {"role": str(turn["role"]).replace("assistant", "model")} for turn in TALK]
    loaded = load_recipe(chat_recipe(llama, tmp_path, [{"talk": talk}] * 40, loss_on="assistant"))
    with pytest.raises(DataError, match=r"domains\.north: loss_on: assistant.*roles: .*model"):
        prepare(loaded, tokenizer(), tmp_path / "tokens")
    assert not list((tmp_path / "tokens").iterdir())
