"""Print the requirements of one extra of pyproject.toml, a line each: requirements.py EXTRA."""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def requirements(extra: str) -> list[str]:
    """Return the requirement lines of `extra`, without the package's own."""
    return tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][extra]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
