import pytest

from pipelines.errors import UserError
from pipelines.recipe import load_recipe, recipe_names, recipe_schema, recipe_text


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_carries_its_lab_record(name):
    config = load_recipe(name)
    assert config.name == name
    head = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    assert head[1].startswith("# Run:")
    assert name in head[1]
    assert head[2].startswith("# Measured:")


def test_set_is_the_last_word():
    changes = ["model.neuron.leak=0.25", "optim.lr=1e-2", "data.augment.flip=false"]
    config = load_recipe("fashion_mnist_resnet18", changes)
    assert (config.model.neuron.leak, config.optim.lr, config.data.augment.flip) == (0.25, 0.01, False)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning_rate=1", ["optim.learning_rate: unknown key", "lr, momentum"]),
        ("optim.lr=fast", ["optim.lr", "valid number", "'fast'"]),
        ("model.neuron.leak=2", ["model.neuron.leak", "less than or equal to 1", "Got 2"]),
        ("model.gate.kind=big", ["model.gate.kind", "'agmm'", "'constant'", "'big'"]),
        ("model=3", ["model", "Got 3"]),
        ("run.workers=500", ["batch_size", "128 images for 500 workers"]),
        ("run.workers=[1, 500]", ["batch_size", "128 images for 500 workers"]),
        ("run.workers=0", ["run.workers", "[min, max] with 1 <= min <= max", "Got 0"]),
        ("run.workers=[3, 2]", ["run.workers", "[min, max] with 1 <= min <= max", "Got [3, 2]"]),
        ("run.workers=[1, 2, 3]", ["run.workers: must be a number of workers, or [min, max]"]),
        ("run.workers=true", ["run.workers: must be a number of workers, or [min, max]"]),
        ("data.augment.scale=[1, 0.1]", ["0 < low <= high <= 1"]),
        ("optim.lr", ["a.b=value"]),
        ("name.x=1", ["'name' is a value, not a section"]),
        ("name=../up", ["name", "pattern", "'../up'"]),
        ("tracking.register_as=a/b:c", ["tracking.register_as", "pattern"]),
        ("data.std=[0, 0, 0]", ["data.std.0", "greater than 0"]),
        ("data.dataset=2020-13-45", ["data.dataset", "not a YAML value"]),
        ("loss.distill.share=0.9", ["loss.distill", "set loss.distill.teacher"]),
    ],
)
def test_mistakes_are_explained(override, words):
    with pytest.raises(UserError) as caught:
        load_recipe("fashion_mnist_resnet18", [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("recipe", ["no_such_recipe", "missing.yaml"])
def test_an_unknown_recipe_is_refused(recipe):
    with pytest.raises(UserError, match="recipe"):
        load_recipe(recipe)


@pytest.mark.parametrize("text", ["a: [", "- 1", "\0", "seed: 1\nname: a\nseed: 2", "data: {uri: a, uri: b}"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml"):
        load_recipe(str(tmp_path / "r.yaml"))


def _written(folder, **recipes):
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_variant_says_only_what_it_changes(tmp_path):
    _written(
        tmp_path,
        base="extends: fashion_mnist_resnet18\nname: base\nmodel: {neuron: {leak: 0.25}}",
        over="extends: base.yaml\nname: over\nmodel: {width: 8}\noptim: {lr: 0.3}",
    )
    over, demo = load_recipe(str(tmp_path / "over.yaml"), ["optim.lr=0.4"]), load_recipe("fashion_mnist_resnet18")
    assert (over.name, over.model.neuron.leak, over.model.width, over.optim.lr) == ("over", 0.25, 8, 0.4)
    assert over.data == demo.data
    assert over.model.stem == demo.model.stem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: nobody", "^Unknown recipe 'nobody'"),
        ("extends: gone.yaml", "Cannot read recipe"),
        ("extends: [a]", "extends must be"),
        ("extends: r.yaml", "in a circle"),
        ("extends: fashion_mnist_resnet18\nmodle: 1", "modle: unknown key"),
    ],
)
def test_a_variant_of_nothing_is_refused(tmp_path, text, words):
    _written(tmp_path, r=text)
    with pytest.raises(UserError, match=words):
        load_recipe(str(tmp_path / "r.yaml"))


def test_a_circle_over_folders_is_seen(tmp_path):
    (tmp_path / "d").mkdir()
    _written(tmp_path / "d", r="extends: ../d/r.yaml")
    with pytest.raises(UserError, match="in a circle"):
        load_recipe(str(tmp_path / "d" / "r.yaml"))


def test_merge_keys_are_yaml(tmp_path):
    text = "extends: fashion_mnist_resnet18\nname: r\nloss: &l {tet: 0.1}\nrun: {workers: 1}\n"
    _written(tmp_path, r=text.replace("loss: &l {tet: 0.1}", "loss:\n  <<: &l {tet: 0.1}\n  tet: 0.2"))
    assert load_recipe(str(tmp_path / "r.yaml")).loss.tet == 0.2


def test_the_schema_knows_every_section():
    assert {"extends", "data", "model", "loss"} <= recipe_schema()["properties"].keys()
