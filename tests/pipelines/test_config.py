import pytest
from pydantic import BaseModel

from pipelines.config import RunConfig, config_differences, flatten, parse_config
from pipelines.errors import UserError
from pipelines.recipe import load_recipe


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ([], [224] * 20),
        (["start=128", "from_epoch=2", "to_epoch=8"], [128] * 4 + [160] + [192] * 3 + [224] * 12),
        (["start=100", "to_epoch=2", "multiple=50"], [100, 150] + [224] * 18),
    ],
)
def test_the_resolution_grows_by_hand(changes, sizes):
    """A straight line from 128 to 224 over six epochs: 128, 144, 160, 176, 192, 208; halves round to even multiples."""
    config = load_recipe("imagenet_resnet18", [f"data.progressive.{change}" for change in changes])
    assert [config.data.resolution_in(epoch) for epoch in range(20)] == sizes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.progressive.start=300"], ["at most resolution", "300 and 224"]),
        (["data.progressive.start=128", "data.augment.crop=pad"], ["crop=pad", "use crop=random_resized"]),
        (["data.progressive.from_epoch=9"], ["before to_epoch", "9 and 1"]),
        (["data.progressive.end=9"], ["unknown key", "start, from_epoch, to_epoch, multiple"]),
        (["data.augment.policy=auto"], ["autoaugment_cifar10", "'auto'"]),
        (["data.augment.randaugment.magnitude=31"], ["less than or equal to 30", "31"]),
        (["data.augment.mix.alpha=1"], ["unknown key", "mixup, cutmix"]),
    ],
)
def test_mistakes_in_augmentation_are_explained(overrides, words):
    with pytest.raises(UserError) as caught:
        load_recipe("imagenet_resnet18", overrides)
    for word in words:
        assert word in str(caught.value)


def test_the_tree_survives_a_round_trip(tiny_config):
    assert parse_config(tiny_config.model_dump(mode="json"), origin="test") == tiny_config


def test_a_resume_may_change_where_but_not_what(tiny_tree):
    def changed(section, field, value):
        return parse_config({**tiny_tree, section: {**tiny_tree[section], field: value}}, origin="test")

    base = parse_config(tiny_tree, origin="test")
    assert config_differences(base, changed("run", "workers", 2)) == []
    assert config_differences(base, changed("checkpoint", "every", 3)) == []
    assert config_differences(base, changed("run", "memory", "least")) == []
    assert config_differences(base, changed("data", "uri", "/elsewhere")) == []
    assert config_differences(base, changed("run", "precision", "bf16")) == ["run.precision: fp32 -> bf16"]
    sent = changed("run", "gradients", {"kind": "sign"})
    assert config_differences(base, sent) == ["run.gradients.kind: fp32 -> sign"]
    assert config_differences(base, changed("optim", "lr", 0.2)) == ["optim.lr: 0.1 -> 0.2"]
    assert config_differences(base, changed("data", "share", 0.5)) == ["data.share: 1.0 -> 0.5"]
    assert config_differences(base, changed("data", "decode", "full")) == ["data.decode: scaled -> full"]


@pytest.mark.parametrize(("share", "images", "steps"), [(1, 48, 16), (0.5, 24, 8), (0.26, 12, 4), (0.01, 0, 0)])
def test_a_share_shortens_the_epochs(tiny_tree, share, images, steps):
    config = parse_config({**tiny_tree, "data": {**tiny_tree["data"], "share": share}}, origin="test")
    assert (config.data.kept(48), config.total_steps(48)) == (images, steps)


@pytest.mark.parametrize("share", [0, -0.5, 1.01])
def test_a_share_is_of_the_whole(tiny_tree, share):
    with pytest.raises(UserError, match=r"data\.share"):
        parse_config({**tiny_tree, "data": {**tiny_tree["data"], "share": share}}, origin="test")


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_every_field_says_what_it_is():
    def undescribed(section, path):
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from undescribed(field.annotation, f"{path}{name}.")
            elif not field.description:
                yield f"{path}{name}"

    assert list(undescribed(RunConfig, "")) == []


@pytest.mark.parametrize(("workers", "worlds"), [(1, [1]), (3, [3]), ([1, 3], [1, 2, 3]), ((2, 2), [2])])
def test_workers_are_a_number_or_a_range(tiny_tree, workers, worlds):
    run = parse_config({**tiny_tree, "run": {"workers": workers}}, origin="test").run
    assert list(run.worlds) == worlds
    assert (run.least_workers, run.most_workers) == (worlds[0], worlds[-1])


def test_what_a_step_keeps_is_decided_once(tiny_tree):
    run = {"memory": "balanced", "compile": True}
    with pytest.raises(UserError, match="both decide what a step keeps"):
        parse_config({**tiny_tree, "run": {**tiny_tree["run"], **run}}, origin="test")
