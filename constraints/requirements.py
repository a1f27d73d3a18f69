"""Print what pyproject.toml needs for some extras, one requirement a line.

pip can install the dependencies of a project only together with the project; the environment is made before
the kernels are built, so that a changed kernel does not make pip think about every package again.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> set[str]:
    """The requirements of the project with these extras, those that name extras of the project itself resolved."""
    found = set(project["dependencies"])
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{re.escape(project['name'])}\[([\w,-]+)\]", requirement)
            found |= requirements(project, own[1].split(",")) if own else {requirement}
    return found


if __name__ == "__main__":
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(sorted(requirements(tomllib.loads(text)["project"], sys.argv[1:]))))
