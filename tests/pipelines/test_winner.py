"""A configuration written as a recipe is the configuration that comes back."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import cli
from pipelines.config import parse_config
from pipelines.config.training import _NOT_OPTIONS
from pipelines.errors import ServiceError, UserError
from pipelines.recipe import load_recipe, recipe_names
from pipelines.winner import recipe_of, write_recipe

HEAD = ["Fashion-MNIST, best of 16 trials.", "Run:      agmm train winner.yaml", "Measured: 88.1 % top-1 (1 seed)."]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_comes_back(name, tmp_path, capsys):
    """As it is, and from what `agmm recipes show` prints."""
    with pytest.raises(SystemExit):
        cli.main(["recipes", "show", name])
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    for source in (name, str(tmp_path / "shown.yaml")):
        write_recipe(tmp_path / "again.yaml", load_recipe(source), HEAD, overwrite=True)
        assert load_recipe(str(tmp_path / "again.yaml")) == load_recipe(name).model_copy(update={"tune": None})


def test_the_text_is_for_people():
    """Only what differs, in the order of the configuration, without the search that led here."""
    changes = [
        "model.neuron.leak=0.30000000000000004",
        "optim.weight_decay=1.0e-05",
        "tune.trials=4",
        "run.workers=[1, 2]",
    ]
    config = load_recipe("fashion_mnist_resnet18", changes)
    assert recipe_of(config, HEAD) == EXPECTED


EXPECTED = """\
# Fashion-MNIST, best of 16 trials.
# Run:      agmm train winner.yaml
# Measured: 88.1 % top-1 (1 seed).
name: fashion_mnist_resnet18
data:
  dataset: fashion-mnist
  resolution: 28
  mean: [0.286, 0.286, 0.286]
  std: [0.353, 0.353, 0.353]
model:
  num_classes: 10
  width: 32
  stem: imagenet
  time_steps: 2
  neuron:
    leak: 0.30000000000000004
optim:
  weight_decay: 1.0e-05
  epochs: 3
run:
  workers: [1, 2]
  log_every: 50
tracking:
  register_as: fashion_mnist_resnet18
"""

_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True) | st.sampled_from(
    ["1e-05", "1e5", "0x10", "0o17", "1_000", "2020-01-01", "null", "true", "no", "Off", "nan", "7", "1.", "01"]
)
_texts = st.text(max_size=150)
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_shares = st.floats(0, 1) | st.sampled_from([1e-05, 0.1 + 0.2, 5e-324, 1 - 2**-53])
_rates = st.floats(min_value=0, exclude_min=True, allow_infinity=False) | st.sampled_from([1e-05, 1e16, 1e22, 1.5e300])


@settings(max_examples=60, deadline=None)
@given(
    name=_names,
    dataset=_names,
    leak=_shares,
    lr=_rates,
    decay=_rates,
    options=st.dictionaries(
        _texts.filter(lambda key: key not in _NOT_OPTIONS),
        _texts | _numbers | st.booleans() | st.integers(),
    ),
)
def test_any_value_comes_back_exactly(tmp_path_factory, name, dataset, leak, lr, decay, options):
    tree = {
        "name": name,
        "data": {"dataset": dataset},
        "model": {"neuron": {"leak": leak}},
        "loss": {"distill": {"teacher": "resnet18", "pretrained": True, "options": options}},
        "optim": {"lr": lr, "weight_decay": decay},
        "tune": {"trials": 3},
    }
    config = parse_config(tree, origin="test")
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    write_recipe(path, config, HEAD, overwrite=True)
    found = load_recipe(str(path))
    assert found == config.model_copy(update={"tune": None})
    assert repr(found.loss.distill.options) == repr(config.loss.distill.options)


@pytest.mark.parametrize("text", ["1e-05", "0o17", "12", "nan", "yes", "1:30"])
def test_text_that_looks_like_something_else_is_quoted(text, tiny_tree):
    config = parse_config(
        {**tiny_tree, "name": text if text != "1:30" else "n", "tracking": {"experiment": text}}, origin="test"
    )
    assert f"experiment: '{text}'" in recipe_of(config, [])
    assert yaml.safe_load(recipe_of(config, []))["tracking"]["experiment"] == text


def test_a_head_of_any_lines_is_a_comment(tiny_config, tmp_path):
    write_recipe(tmp_path / "a.yaml", tiny_config, ["two\nname: evil", "", "end"])
    assert (tmp_path / "a.yaml").read_text().startswith("# two\n# name: evil\n#\n# end\nname: tiny\n")
    assert load_recipe(str(tmp_path / "a.yaml")) == tiny_config


def test_what_is_there_stays_unless_told(tiny_config, tmp_path):
    path = tmp_path / "new" / "a.yaml"
    write_recipe(path, tiny_config, ["first"])
    with pytest.raises(UserError, match=r"a\.yaml exists"):
        write_recipe(path, tiny_config, ["second"])
    assert path.read_text().startswith("# first\n")
    write_recipe(path, tiny_config, ["second"], overwrite=True)
    assert path.read_text().startswith("# second\n")
    assert [each.name for each in path.parent.iterdir()] == ["a.yaml"]


def test_a_failure_leaves_nothing(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="Cannot write"):
        write_recipe(tmp_path / "file" / "a.yaml", tiny_config, HEAD)
    with pytest.raises(UserError, match=r"\.yaml or \.yml"):
        write_recipe(tmp_path / "a.txt", tiny_config, HEAD)
    (tmp_path / "taken.yaml").mkdir()
    with pytest.raises(ServiceError, match="Cannot write"):
        write_recipe(tmp_path / "taken.yaml", tiny_config, HEAD, overwrite=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "taken.yaml"]
