from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.errors import UsageError
from koffkit.recipe.builtin import shipped
from koffkit.recipe.load import load_recipe
from koffkit.recipe.schema import Recipe

GOOD = """\
koffkit: 1
name: demo
base: {model: some/where}
domains:
  one: {text: a.txt}
mask:
  structures: [mlp_neuron]
  global_sparsity: 0.12
memory:
  lora: {rank: 8, alpha: 8, targets: [up_proj]}
  kv: null
stages:
  - learn_masks: {max_steps: 5}
  - evaluate: {}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def findings(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as error:
        load_recipe(write(tmp_path, text), overrides)
    return str(error.value).splitlines()


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD)).recipe
    assert recipe.distill.top_k == 100
    assert recipe.mask.layout == "uniform"
    assert recipe.sequence_length == 512
    assert recipe.memory_layers(4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "global_sparsity: 0.12",
            "global_sparcity: 0.12",
            r"r.yaml:8: mask.global_sparcity: unknown key; did you mean 'global_sparsity'?",
        ),
        (
            "{max_steps: 5}",
            "{max_steps: 5, patience: 2}",
            "patience: 2 counts measurements of the KL on held-out text, and train.evaluate_every makes none",
        ),
        (
            "{max_steps: 5}",
            "{max_step: 5}",
            "r.yaml:13: stages.0.learn_masks.max_step: unknown key; did you mean 'max_steps'?",
        ),
        ("rank: 8", "rank: eight", "r.yaml:10: memory.lora.rank: 'eight': "),
        (
            "global_sparsity: 0.12",
            "global_sparsity: 1.5",
            "r.yaml:8: mask.global_sparsity: 1.5: input should be less than 1",
        ),
        ("[mlp_neuron]", "[mlp_neurons]", "r.yaml:7: mask.structures.0: 'mlp_neurons': "),
        (
            "  global_sparsity: 0.12\n",
            "  global_sparsity: 0.12\n  layout: jagged\n",
            "r.yaml:9: mask.layout: 'jagged': input should be",
        ),
        (
            "structures: [mlp_neuron]",
            "structures: []",
            "mask: structures is empty; name at least one kind of unit",
        ),
        (
            "  kv: null\n",
            "  kv: null\ndistill: {domain_weights: {two: 2}}\n",
            "names two, which is no domain (there is one)",
        ),
        (
            "global_sparsity: 0.12",
            "global_sparsity: 0.12\n  temperature: -1",
            "temperature is -1.0; it must be above 0",
        ),
        (
            "{text: a.txt}",
            "{text: a.txt, jsonl: b}",
            "r.yaml:5: domains.one: give exactly one of text, jsonl, hub (found: text, jsonl)",
        ),
        ("  one:", "  none:", "domains: none cannot be a domain"),
        ("  one:", "  ../one:", "r.yaml:5: domains.../one"),
        ("name: demo\n", "", "name: is required"),
        (
            "  - evaluate: {}\n",
            "  - recover: {max_steps: 1}\n  - recover: {max_steps: 1}\n",
            "stages must be learn_masks or select_masks, then any of",
        ),
        ("name: demo", "name: demo\nname: again", "r.yaml:3: name: given twice (first on line 2)"),
        ("{model: some/where}", "{model: some/where", "not valid YAML"),
    ],
)
def test_an_error_names_file_line_field_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert message in "\n".join(findings(tmp_path, GOOD.replace(old, new, 1)))


def test_a_bare_no_is_a_precision(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD + "train: {precision: no}\n")).recipe.train.precision == "no"
    assert (
        "train.precision: True: input should be 'no' or 'bf16'"
        in findings(tmp_path, GOOD + "train: {precision: yes}\n")[0]
    )


def test_a_learned_placement_needs_memories_to_learn_from(tmp_path: Path) -> None:
    text = GOOD.replace("memory:\n", "memory:\n  layers: {learned_bytes: 90000}\n")
    assert load_recipe(write(tmp_path, text)).recipe.memory.layers
    found = findings(tmp_path, text.replace("{max_steps: 5}", "{max_steps: 5, joint: false}"))
    assert (
        "learned_bytes chooses by the memories of stage learn_masks, which has none with joint: false"
        in found[0]
    )


def test_all_errors_at_once(tmp_path: Path) -> None:
    text = (
        GOOD.replace("rank: 8", "rank: 0")
        .replace("structures:", "structure:")
        .replace("koffkit: 1", "koffkit: 2")
    )
    found = findings(tmp_path, text)
    assert [line.split(": ")[1] for line in found] == [
        "koffkit",
        "mask.structures",
        "mask.structure",
        "memory.lora.rank",
    ]


def test_set_changes_fields_stages_and_lists(tmp_path: Path) -> None:
    overrides = [
        "mask.global_sparsity=0.2",
        "memory.lora=null",
        "memory.kv.tokens=4",
        "stages.learn_masks.max_steps=9",
        "stages.1.evaluate.swap=false",
    ]
    recipe = load_recipe(write(tmp_path, GOOD), overrides).recipe
    assert (recipe.mask.global_sparsity, recipe.memory.lora, recipe.memory.kv.tokens) == (0.2, None, 4)
    assert recipe.stages[0].options.max_steps == 9 and recipe.stages[1].options.swap is False
    whole = (
        load_recipe(write(tmp_path, GOOD), ["stages.learn_masks={max_steps: 3, batch_size: 7}"])
        .recipe.stages[0]
        .options
    )
    assert (whole.max_steps, whole.batch_size) == (3, 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mask", "write it as a.b=VALUE"),
        ("stages.7.x=1", "'7' is not in a list of 2"),
        ("name.x=1", "single value"),
        ("mask.x=[", "not valid YAML"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    assert message in "\n".join(findings(tmp_path, GOOD, override))


def test_a_misspelt_override_is_an_unknown_key(tmp_path: Path) -> None:
    assert (
        "mask.global_sparsty: unknown key; did you mean 'global_sparsity'?"
        in findings(tmp_path, GOOD, "mask.global_sparsty=0.2")[0]
    )


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_loads_by_name(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.recipe.name == name.replace("/", "-")
    first = loaded.path.read_text(encoding="utf-8").splitlines()[0]
    schema = loaded.path.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.resolve() == shipped()["quickstart"].with_name("recipe.schema.json").resolve()


def test_memory_layers() -> None:
    recipe = load_recipe("quickstart", ["memory.layers={upper: 2}"]).recipe
    assert recipe.memory_layers(6) == [4, 5]
    assert load_recipe("quickstart", ["memory.layers=[3, 1]"]).recipe.memory_layers(6) == [1, 3]
    assert load_recipe("quickstart", ["memory.lora=null", "memory.kv=null"]).recipe.memory_layers(6) == []
    with pytest.raises(ValueError, match="does not fit a model of 6 layers"):
        load_recipe("quickstart", ["memory.layers=[6]"]).recipe.memory_layers(6)


@pytest.mark.parametrize("route", ["{}", "{kind: encoder, encoder: ./x}", "{kind: probe, layer: 1}"])
@pytest.mark.parametrize("source", ["{text: a.txt}", "{jsonl: a.jsonl, messages: talk, loss_on: assistant}"])
def test_a_recipe_written_out_in_full_can_be_read_again(tmp_path: Path, route: str, source: str) -> None:
    text = GOOD.replace("  - evaluate: {}", f"  - route: {route}\n  - evaluate: {{}}").replace(
        "{text: a.txt}", source
    )
    recipe = load_recipe(write(tmp_path, text)).recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("mask.init_spread=0.5", "mask.init_std=0.5"),
        ("distill.top_k={coverage: 0.9}", "distill.top_k={top_p: 0.9}"),
    ],
)
def test_former_names_of_fields_are_read(former: str, present: str) -> None:
    read = load_recipe("quickstart", [former]).recipe
    assert read == load_recipe("quickstart", [present]).recipe
    assert read != load_recipe("quickstart").recipe


def test_a_field_under_both_its_names_is_refused(tmp_path: Path) -> None:
    both = findings(tmp_path, GOOD, "mask.init_spread=0.5", "mask.init_std=0.5")
    assert "mask: init_spread is the former name of init_std; give init_std alone" in both[0]


def test_an_error_inside_a_choice_of_forms_names_the_field_as_written(tmp_path: Path) -> None:
    wrong = findings(tmp_path, GOOD, "distill.top_k={top_p: 2}")
    assert any("distill.top_k.top_p: 2: input should be less than 1" in line for line in wrong)
    assert all("function" not in line for line in wrong)
