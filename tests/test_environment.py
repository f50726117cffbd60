"""environment.yml asks for what pyproject.toml asks for."""

import re
import tomllib

import yaml

import chapters

CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge has another name


def lines():
    """The entries of environment.yml; the last one is what pip installs."""
    return yaml.safe_load((chapters.ROOT / "environment.yml").read_text())["dependencies"]


def wanted():
    """The book's requirements by pyproject.toml, as conda names: {name: range}."""
    project = tomllib.loads((chapters.ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = project["dependencies"] + extras["site"] + extras["book"]
    pairs = [re.fullmatch(r"([\w.-]+)(.*)", need).groups() for need in needs if "[" not in need]
    return {CONDA_NAMES.get(name, name): bounds for name, bounds in pairs} | {
        "python": project["requires-python"]
    }


def offered():
    lines = yaml.safe_load((chapters.ROOT / "environment.yml").read_text())["dependencies"]
    pairs = [
        re.fullmatch(r"([\w.-]+)(.*)", line).groups() for line in lines if isinstance(line, str)
    ]
    return dict(pairs)


def test_conda_environment_equals_the_package():
    assert {name: bounds for name, bounds in offered().items() if name != "pip"} == wanted()


def test_conda_environment_installs_the_library():
    assert lines()[-1] == {"pip": ["-e ."]}
