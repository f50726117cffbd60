"""Build the site with warnings as errors, and print the path of its first page: build.py [OUT].

OUT is the folder that gets `_build/html`; without it, the project root.
"""

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def pages() -> list[str]:
    """Return the site's pages, root first, as paths without a suffix.

    A page may have others under it, as a lesson its evidence: `sections` in _toc.yml.
    """
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())

    def files(entries: list[dict]) -> list[str]:
        return [f for e in entries for f in (e["file"], *files(e.get("sections", [])))]

    return [toc["root"], *(f for part in toc["parts"] for f in files(part["chapters"]))]


# The sidebar's arrow opens the pages under a chapter; the theme gives it no name to be read aloud.
ARROW = '<summary><span class="toctree-toggle"'
NAMED_ARROW = ARROW.replace("<summary>", '<summary aria-label="Pages under this chapter">')


def build(out: Path) -> Path:
    """Build into `out`/_build/html and return the first page's path.

    `--all` reads every page anew: a page that Sphinx has cached would keep its warnings to itself.
    """
    command = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", out, "--all", "-W", "--keep-going", "-n"]
    if subprocess.run([command, "build", ROOT, *options]).returncode:
        raise SystemExit("The build failed, or gave a warning: see above.")
    html = [out / "_build" / "html" / f"{page}.html" for page in pages()]
    missing = [str(page) for page in html if not page.exists()]
    if missing:  # another major version of jupyter-book exits 0 and builds nothing
        raise SystemExit(f"The build reported no error, but left out {', '.join(missing)}")
    for page in html:
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(ARROW, NAMED_ARROW), encoding="utf-8")
    return html[0]


if __name__ == "__main__":
    print(build(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
