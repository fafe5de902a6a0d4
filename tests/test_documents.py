"""What the documents say is what the program does."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from pipelines import cli
from pipelines.config.search import TuneConfig
from pipelines.config.section import parse_section
from pipelines.recipe import recipe_names, recipe_text

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _commands():
    """Every `agmm ...` command line in the README and in the recipes' heads."""
    lines = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    agmm ")]
    for name in recipe_names():
        run = next(line for line in recipe_text(name).splitlines() if line.startswith("# Run:"))
        lines += [part.strip() for part in run.removeprefix("# Run:").split("&&")]
    return sorted(set(lines))


@pytest.mark.parametrize("line", _commands())
def test_documented_commands_parse(line):
    program, *words = shlex.split(line)
    assert program == "agmm"
    command, context = cli.agmm, None
    while hasattr(command, "commands"):
        context = command.make_context(command.name, list(words), parent=context, resilient_parsing=True)
        name, command, words = command.resolve_command(context, words)
        assert command is not None, name
    command.make_context(command.name, words, parent=context)


def test_the_documented_search_is_one():
    section = README[README.index("## Searching") :]
    block = re.search(r"\n((?:    .*\n)+)", section)[1]
    tune = parse_section(TuneConfig, yaml.safe_load(block)["tune"], origin="README.md", what="search")
    defaults = TuneConfig()
    assert (tune.trials, tune.scheduler, tune.space.leak) == (defaults.trials, defaults.scheduler, defaults.space.leak)


def test_documented_recipes_exist():
    named = re.findall(r"agmm train (\w+)", README)
    assert named
    assert {name for name in named if name != "RECIPE"} <= set(recipe_names())


def test_the_layout_names_files_that_exist():
    house = README[README.index("## The house") :]
    block = house[: house.index("`pipelines` imports")]
    for folder, rooms in re.findall(r"^    (\w+)/ [^\n]*\n((?:      .*\n)*)", block, flags=re.M):
        for room in rooms.split():
            assert (ROOT / folder / room).exists(), f"{folder}/{room}"


def test_every_dependency_of_the_core_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    wanted = [*project["dependencies"], *project["optional-dependencies"]["service"]]
    assert {re.split(r"[\[>=<]", name)[0].lower() for name in wanted} <= pinned
