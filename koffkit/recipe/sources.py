"""Recipe fields for the base and for sources of text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ..strict import Positive, StrictModel

Name = Annotated[str, Field(min_length=1, max_length=200)]
Pattern = Annotated[str, Field(min_length=1, max_length=4096)]
Patterns = Pattern | Annotated[list[Pattern], Field(min_length=1)]
DOMAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$"
RESERVED = {"auto", "none", "attached"}


class Base(StrictModel):
    model: str = Field(
        description="Hub id, local folder, GGUF file (needs koffkit[gguf]), or embedded:base for the model "
        "that ships with koffkit."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16",
        description="Type the frozen weights are held in; in float16, most gradients would vanish.",
    )
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit).")
    trust_remote_code: bool = Field(
        False, description="Allow code from the model's repository. Off unless you say so."
    )

    @field_validator("dtype", mode="before")
    @classmethod
    def _no_float16(cls, value: Any) -> Any:
        if value == "float16":
            raise ValueError(
                "float16 is too narrow to train with: most gradients fall below its smallest number and "
                "vanish; use bfloat16 or float32 (a base saved in float16 loads as either)"
            )
        return value


class Source(StrictModel):
    """Where text comes from: exactly one of text, jsonl, hub."""

    text: Patterns | None = Field(
        None, description="Text files, folders, globs or addresses (http, s3, ...), packed or not."
    )
    jsonl: Patterns | None = Field(
        None,
        description="Records, one a document: JSON lines, .json arrays, .csv, .tsv or .parquet; files, "
        "folders, globs or addresses.",
    )
    hub: str | None = Field(None, description="Hub data set (needs koffkit[data]).")
    documents: Literal["blank_line", "file", "line"] = Field(
        "blank_line", description="What a document of text is: what blank lines separate, a file, or a line."
    )
    field: str = Field("text", description="Field that holds the text of a jsonl or hub document.")
    messages: str | None = Field(
        None, description="Field that holds a conversation, instead of field; goes through the chat template."
    )
    tools: str = Field(
        "tools", description="Field that holds the tools of a conversation, if it has any, for the template."
    )
    end_of_document: Name | None = Field(
        None,
        description="Token after each document; by default the tokenizer's end of text, of a chat model not "
        "the one that ends a turn.",
    )
    loss_on: Literal["all", "assistant"] = Field(
        "all", description="Of conversations: learn from all tokens, or the assistant's only."
    )
    split: str = Field("train", description="Split of a hub data set.")
    config_name: str | None = Field(None, description="Configuration of a hub data set.")
    prompt_field: str | None = Field(
        None, description="With answer_field: evaluate reports recall, exact greedy completion."
    )
    answer_field: str | None = Field(None, description="What the prompt must be completed with.")
    max_documents: Positive | None = Field(None, description="Read at most this many documents.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        given = [name for name in ("text", "jsonl", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of text, jsonl, hub (found: {', '.join(given) or 'none'})")
        if (self.prompt_field is None) != (self.answer_field is None):
            raise ValueError("prompt_field and answer_field go together: give both or neither")
        if self.documents != "blank_line" and not self.text:
            raise ValueError("documents is an option of text; records are documents already")
        if self.messages is not None and self.end_of_document is not None:
            raise ValueError("end_of_document is of plain text; the chat template ends a conversation")
        if self.messages is not None and (
            self.text or self.field != type(self).model_fields["field"].default or self.prompt_field
        ):
            raise ValueError(
                "messages is a field of jsonl or hub records; leave out text, field, prompt_field and "
                "answer_field"
            )
        if self.loss_on == "assistant" and self.messages is None:
            raise ValueError("loss_on: assistant needs messages, the field that holds the conversation")
        return self

    @property
    def record_field(self) -> str:
        """The field that every record must have."""
        return self.messages or self.field


class Auto(Source):
    """Text without labels: its documents are grouped by the base's embeddings, and every group becomes a
    domain."""

    count: Annotated[int, Field(ge=2)] = Field(description="Domains to make.")
    layer: Annotated[int, Field(ge=0)] = Field(
        0, description="Compare means of this layer's hidden states; 0: of token embeddings."
    )
    max_tokens: Positive = Field(1024, description="Tokens of a document that are looked at.")
    fit_documents: Positive = Field(
        5000, description="Documents that the groups are made from; the others join the nearest."
    )

    @model_validator(mode="after")
    def _plain_documents(self) -> Auto:
        if self.messages is not None or self.prompt_field is not None:
            raise ValueError(
                "auto groups plain documents and keeps nothing but their text; leave out messages and "
                "prompt_field"
            )
        return self


class AutoDomains(StrictModel):
    auto: Auto = Field(description="Text without labels, and how many domains to make of it.")


def _kind_of_domains(value: Any) -> str:
    """`domains: {auto: {..., count: N}}` or a mapping of names to sources."""
    if isinstance(value, AutoDomains):
        return "<auto>"
    alone = isinstance(value, dict) and set(value) == {"auto"}
    return "<auto>" if alone and isinstance(value["auto"], dict) and "count" in value["auto"] else "<given>"


GivenDomains = Annotated[dict[Annotated[str, Field(pattern=DOMAIN_NAME)], Source], Field(min_length=1)]
Domains = Annotated[
    Annotated[GivenDomains, Tag("<given>")] | Annotated[AutoDomains, Tag("<auto>")],
    Discriminator(_kind_of_domains),
]
