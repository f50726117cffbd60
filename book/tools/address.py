"""Change the public address everywhere, for a fork: address.py https://github.com/OWNER/NAME.

`repository.url` in _config.yml is where the address stands; every other place is a copy of it,
that a test compares. Needs nothing but Python and git.
"""

import re
import subprocess
import sys
from pathlib import Path

ADDRESS = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)")


def current(root: Path) -> str:
    """Return the address that _config.yml gives."""
    config = (root / "_config.yml").read_text()
    return re.search(r"^repository:.*?^  url: (\S+)", config, re.M | re.S)[1]


def forms(address: str) -> list[str]:
    """Return how an address is written in links: the repository's path, and the site on Pages.

    Raises SystemExit if it is not a GitHub repository (Colab opens notebooks from GitHub only).
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise SystemExit(f"Not an address like https://github.com/OWNER/NAME: {address!r}")
    owner, name = match.groups()
    return [f"{owner}/{name}", f"{owner.lower()}.github.io/{name}"]


def change(root: Path, new: str) -> list[str]:
    """Replace the current address by `new` in every tracked file, and return the files changed."""
    pairs = list(zip(forms(current(root)), forms(new), strict=True))
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    changed = []
    for name in filter(None, tracked):
        path = root / name
        before = after = path.read_bytes()
        for old, replacement in pairs:
            after = after.replace(old.encode(), replacement.encode())
        if after != before:
            path.write_bytes(after)
            changed.append(name)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("Say where the fork lives: make address URL=https://github.com/OWNER/NAME")
    root = Path(__file__).resolve().parents[2]
    print("\n".join(change(root, sys.argv[1].rstrip("/").removesuffix(".git"))))
