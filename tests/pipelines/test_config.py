from pydantic import BaseModel

from pipelines.config import (
    RunConfig,
    config_differences,
    flatten,
    parse_config,
)


def test_the_tree_survives_a_round_trip(tiny_config):
    assert parse_config(tiny_config.model_dump(mode="json"), origin="test") == tiny_config


def test_a_resume_may_change_where_but_not_what(tiny_tree):
    def changed(section, field, value):
        return parse_config({**tiny_tree, section: {**tiny_tree[section], field: value}}, origin="test")

    base = parse_config(tiny_tree, origin="test")
    assert config_differences(base, changed("run", "workers", 2)) == []
    assert config_differences(base, changed("checkpoint", "every", 3)) == []
    assert config_differences(base, changed("data", "uri", "/elsewhere")) == []
    assert config_differences(base, changed("run", "precision", "bf16")) == ["run.precision: fp32 -> bf16"]
    assert config_differences(base, changed("optim", "lr", 0.2)) == ["optim.lr: 0.1 -> 0.2"]


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
