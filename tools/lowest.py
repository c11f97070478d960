"""`python tools/lowest.py EXTRA…`: pip constraints that pin what pyproject.toml asks for to the lowest version that it allows.

pip install -c lowest.txt -e '.[test]'
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

# name, extras, lower bound, marker: what the project writes, and nothing else.
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[^\]]*\])?\s*((?P<kind>>=|==)\s*(?P<version>[\w.]+))?\s*(;\s*(?P<marker>.*))?")


def lowest(requirements: list[str]) -> list[str]:
    """Each requirement with its lower bound as the only version, markers kept; what has no bound, and our own extras, is left out."""
    pins = []
    for requirement in requirements:
        found = _REQUIREMENT.fullmatch(requirement.strip())
        if found is None:
            raise ValueError(f"{requirement!r} is not NAME>=VERSION; MARKER")
        if found["version"] is not None:
            pins.append(f"{found['name']}=={found['version']}" + (f"; {found['marker']}" if found["marker"] else ""))
    return pins


def main() -> None:
    """Prints one constraint a line, for the package and the extras named."""
    project = tomllib.loads(Path(__file__).resolve().parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    print("\n".join(lowest([*project["dependencies"], *(line for extra in sys.argv[1:] for line in extras[extra])])))


if __name__ == "__main__":
    main()
