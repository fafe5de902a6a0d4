"""Print what the image installs beside this project, for pip: requirements.py EXTRA... in the folder of pyproject.toml.

FFCV itself is installed without its dependencies: it asks for the opencv-python that needs a display's libraries, where
opencv-python-headless does the same.
"""

import sys
import tomllib
from pathlib import Path

FFCV_NEEDS = ("assertpy", "fastargs", "numba", "pytorch-pfn-extras", "terminaltables")


def requirements(pyproject: str, extras: list[str]) -> list[str]:
    """List the dependencies of the core, of these extras and of FFCV. KeyError for an extra that there is not."""
    project = tomllib.loads(pyproject)["project"]
    wanted = [*project["dependencies"], *FFCV_NEEDS]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return sorted(set(wanted))


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path("pyproject.toml").read_text(encoding="utf-8"), sys.argv[1:])) + "\n")
