"""Print what pyproject.toml needs for some extras, one requirement a line.

pip can install the dependencies of a project only together with the project; the environment is made before
the kernels are built, so that a changed kernel does not make pip think about every package again.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
requirements = set(project["dependencies"])
for extra in sys.argv[1:]:
    requirements.update(project["optional-dependencies"][extra])
print("\n".join(sorted(requirements)))
