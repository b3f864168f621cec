"""What is made from the code when the site is built: commands, fields of recipes, fields of the formats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from koffkit.cli import cli
from koffkit.recipe.builtin import describe, shipped
from koffkit.recipe.load import load_recipe
from koffkit.recipe.provenance import ABLATIONS, PAPER
from koffkit.recipe.schema import Recipe
from koffkit.recipe.spelled_out import values_of
from koffkit.run.schemas import RECORDS, schema_of

COMMANDS_HEAD = """# Commands

`koffkit COMMAND --help` prints the same. Every command that has `--json` prints
[one object](json-output.md) on stdout and nothing else there; messages go to stderr. The exit codes are
[here](exit-codes.md).
"""
FIELDS_HEAD = """# Recipe fields

A recipe is a YAML file. This page lists every field under the dotted name that `--set` takes: `NAME` stands
for a name of your choice, and stages are named although they are a list. Unknown keys are errors.
`koffkit recipe schema` prints the same as a JSON schema, and `koffkit recipe show quickstart` is a whole
recipe to start from. A recipe that begins with `extends: RECIPE` says only how it differs from another one.
"""
TYPES = {
    "object": "mapping",
    "string": "text",
    "boolean": "true or false",
    "integer": "integer",
    "number": "number",
    "null": "null",
}
PATTERNS = {"^[0-9a-f]{64}$": "sha256"}
FIELDS_OF = re.compile(r"^<!-- fields of (\w+) -->$", re.MULTILINE)
"""Where a page wants the fields of a format: `<!-- fields of manifest -->`."""
PAPERS_VALUES, PAPERS_ABLATIONS = "<!-- the paper's values -->", "<!-- the paper's ablations -->"
PAPERS_HEAD = "| field | paper | recipe | source | |\n|---|---|---|---|---|"
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}

Schema = dict[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; mkdocs calls this."""
    for name, text in (("commands.md", commands_page()), ("recipe-fields.md", fields_page())):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables of the formats and of the paper where a page wants them; mkdocs calls this."""
    for mark, table in ((PAPERS_VALUES, papers_values), (PAPERS_ABLATIONS, papers_ablations)):
        markdown = markdown.replace(mark, table()) if mark in markdown else markdown
    return FIELDS_OF.sub(lambda mark: record_tables(mark[1]), markdown)


def papers_values() -> str:
    """Every field that the paper has something to say about: its value and ours."""
    small, large = (
        values_of(load_recipe(f"paper/{name}-topics").recipe) for name in ("llama-3.2-3b", "llama-3.1-8b")
    )
    rows = [PAPERS_HEAD]
    for place, stated in PAPER.items():
        paper = _shown(stated.value) + (f"; 8B {_shown(stated.large)}" if stated.large is not None else "")
        ours = _shown(small[place]) + (f"; 8B {_shown(large[place])}" if large[place] != small[place] else "")
        rows.append(f"| `{place}` | {paper} | {ours} | {stated.source} | {_words(stated.note)} |")
    return "\n".join(rows)


def papers_ablations() -> str:
    """The recipes of the paper's ablations: where they stand there, and the fields that they change."""
    rows = ["| recipe | in the paper | changes | |\n|---|---|---|---|"]
    for name, path in shipped().items():
        ablation = ABLATIONS.get(name.removeprefix("paper/").replace("/", "-"))
        if ablation is None:
            continue
        changes = "<br>".join(f"`{place}: {_shown(value)}`" for place, value in ablation.values.items())
        rows.append(f"| `{name}` | {ablation.source} | {changes} | {_words(describe(path))} |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    return json.dumps(value).replace('"', "") if not isinstance(value, str) else value


def commands_page() -> str:
    root = click.Context(cli, info_name="koffkit")
    return "\n".join([COMMANDS_HEAD, *_commands(cli, root)]) + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        inner = click.Context(command, info_name=name, parent=context)
        yield from _command(command, inner)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}\n"
    yield " ".join((command.help or "").split()) + "\n"
    yield f"```\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```\n"
    rows = list(_options(command, context))
    if rows:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| `{_cell(option)}` | {_words(meaning)} |" for option, meaning in rows)
        yield ""


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """How each option is written and what it means; arguments stand in the usage line."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1] and parameter.name != "help":
            yield record


def fields_page() -> str:
    schema = Recipe.model_json_schema()
    return "\n".join([FIELDS_HEAD, *_object("", schema, schema["$defs"])]) + "\n"


def record_tables(name: str) -> str:
    """The fields of one of our JSON files, under the names that the file has."""
    schema = schema_of(RECORDS[name])
    return "\n".join(_object("", schema, schema["$defs"], "", "### `{}`"))


def _object(
    path: str, schema: Schema, definitions: Schema, title: str = "## The recipe", heading: str = "## {}"
) -> Iterator[str]:
    """A table of the fields of one object, then those of the objects in it.

    Args:
        title: the heading of the outermost object. heading: that of the others, `{}` stands for their place.
    """
    yield f"{heading.format(path) if path else title}\n"
    if path and schema.get("description"):
        yield " ".join(schema["description"].split()) + "\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    required = schema.get("required", [])
    fields = {f"{path}.{name}".lstrip("."): (name, field) for name, field in schema["properties"].items()}
    for place, (name, field) in fields.items():
        default = "required" if name in required else _default(field.get("default"))
        meaning = _words(field.get("description") or _object_of(field, definitions).get("description", ""))
        yield f"| `{place}` | {_cell(_type(field, definitions))} | {default} | {meaning} |"
    yield ""
    for place, (_, field) in fields.items():
        for inner, value in _objects_in(place, field, definitions):
            yield from _object(inner, value, definitions, title, heading)


def _objects_in(place: str, field: Schema, definitions: Schema) -> Iterator[tuple[str, Schema]]:
    """The objects that a field may hold, each with its place."""
    if "properties" in (target := _object_of(field, definitions)):
        yield place, target
    for option in _options_of(field):
        yield from _objects_in(place, option, definitions)
    if isinstance(field.get("items"), dict):
        yield from _objects_in(place, field["items"], definitions)
    for value in [field.get("additionalProperties"), *field.get("patternProperties", {}).values()]:
        if isinstance(value, dict):
            yield from _objects_in(f"{place}.NAME", value, definitions)


def _object_of(field: Schema, definitions: Schema) -> Schema:
    """What a field refers to. pydantic leaves out a description that is the one of the object."""
    target: Schema = definitions[_name(field)] if "$ref" in field else {}
    return target


def _options_of(field: Schema) -> list[Schema]:
    return [option for word in ("anyOf", "oneOf", "allOf") for option in field.get(word, [])]


def _type(field: Schema, definitions: Schema) -> str:
    """A type in words, with its limits."""
    if "$ref" in field:
        target = definitions[_name(field)]
        return "mapping" if "properties" in target else _type(target, definitions)
    if options := _options_of(field):
        return " or ".join(dict.fromkeys(_type(option, definitions) for option in options))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}), definitions)}"
    if field.get("pattern") in PATTERNS:
        return PATTERNS[field["pattern"]]
    limits = [f"{sign} {field[key]:g}" for key, sign in LIMITS.items() if key in field]
    return " ".join([TYPES.get(field.get("type", ""), "any value"), *limits])


def _name(field: Schema) -> str:
    return str(field["$ref"]).rpartition("/")[2]


def _default(value: Any) -> str:
    """As YAML has it; the defaults of an object stand in a table of their own."""
    if value and isinstance(value, dict):
        return "see below"
    return f"`{json.dumps(value)}`".replace('"', "")


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _words(text: str) -> str:
    """Plain text for a cell: what Markdown would take for a link or an element stays what it is."""
    parts = _cell(text).split("`")
    for index in range(0, len(parts), 2):  # the others are code
        for sign in "[]<>*":
            parts[index] = parts[index].replace(sign, f"\\{sign}")
    return "`".join(parts)
