"""Run the chapters inside Colab's package set: colab.py FOLDER.

Makes a fresh environment in FOLDER with the releases of .github/colab.txt, runs the set-up cell in
it as Colab would, but with the library from this checkout, then what each chapter imports, and
last the chapters' smoke runs. Fails if the cell changes a package that was there. Needs nothing but
Python and a network.
"""

import ast
import json
import re
import subprocess
import sys
import venv
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import requirements

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = 'f"git+{address}@{version}"'
TOOLS = {"jupytext", "nbval", "papermill", "pytest", "pytest-timeout", "pyyaml"}


def installed() -> dict[str, str]:
    """Return the version of each package in this environment."""
    return {re.sub(r"[-_.]+", "-", d.name.lower()): d.version for d in distributions() if d.name}


def run_cell(library: str) -> list[str]:
    """Run the set-up cell in this environment, and say what it changed of what was there."""
    cell = (ROOT / "book" / "tools" / "setup_cell.py").read_text()
    if LIBRARY not in cell:
        raise SystemExit(f"The set-up cell no longer installs {LIBRARY}")
    sys.modules["google.colab"] = ModuleType("google.colab")
    before = installed()
    exec(cell.replace(LIBRARY, repr(library)), {})
    after = installed()
    return [
        f"{name}: {version} became {after.get(name, 'absent')}"
        for name, version in before.items()
        if after.get(name) != version and name != "latentspace"
    ]


def imports(notebook: Path) -> list[str]:
    """Return the statements by which a notebook imports, in order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    kinds = ast.Import | ast.ImportFrom
    return [ast.unparse(node) for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)]


def import_all() -> None:
    """Run each notebook's imports in this environment, and say how many there were."""
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        statements = imports(notebook)
        exec("\n".join(statements), {})
        print(f"{notebook.stem}: {len(statements)} imports", flush=True)


def tools() -> list[str]:
    """Return the requirements of the smoke runs that Colab does not have."""
    extras = map(requirements.requirements, ("site", "book", "test"))
    wanted = {re.match(r"[\w-]+", line)[0]: line for lines in extras for line in lines}
    return [wanted[name] for name in sorted(TOOLS)]


def main(folder: Path) -> None:
    """Make the environment and run all of it; raises CalledProcessError where a step fails."""
    venv.create(folder, clear=True, with_pip=True)
    python, fixed = folder / "bin" / "python", folder / "installed.txt"
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", ROOT / ".github" / "colab.txt"], check=True)
    subprocess.run([python, __file__, "--cell", ROOT], check=True)
    subprocess.run([python, __file__, "--imports"], check=True)
    freeze = [python, "-m", "pip", "freeze", "--exclude", "latentspace"]
    fixed.write_bytes(subprocess.run(freeze, check=True, capture_output=True).stdout)
    subprocess.run([*pip, "-c", fixed, *tools()], check=True)
    tests = [python, "-m", "pytest", "tests/test_notebooks.py", "-m", "chapter"]
    subprocess.run(tests, check=True, cwd=ROOT)


if __name__ == "__main__":
    if sys.argv[1] == "--cell":
        if changed := run_cell(sys.argv[2]):
            raise SystemExit("The set-up cell changed what was there: " + "; ".join(changed))
    elif sys.argv[1] == "--imports":
        import_all()
    else:
        try:
            main(Path(sys.argv[1]).resolve())
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"This step failed: {' '.join(map(str, error.cmd))}") from error
