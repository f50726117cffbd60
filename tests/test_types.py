"""Everything public has type hints, and mypy agrees with them."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import latentspace

ROOT = Path(__file__).parents[1]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(latentspace.__path__, "latentspace.")
    if not module.name.endswith("__main__")
]
SELVES = ("self", "cls")


def public_callables(module):
    """Functions, and methods of classes, that the module's `__all__` offers and itself defines."""
    for name in module.__all__:
        thing = getattr(module, name)
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            for key, member in vars(thing).items():
                function = getattr(member, "fget", getattr(member, "__func__", member))
                if not inspect.isfunction(function) or (key[0] == "_" and key != "__init__"):
                    continue
                # A tuple's fields and a dataclass's own methods are typed where they are named.
                if function.__code__.co_filename == module.__file__:
                    yield f"{name}.{key}", function
        elif inspect.isfunction(thing):
            yield name, inspect.unwrap(thing)


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_are_typed(name):
    module = importlib.import_module(name)
    bare = []
    for label, function in public_callables(module):
        signature = inspect.signature(function)
        empty = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.annotation is inspect.Parameter.empty and parameter.name not in SELVES
        ]
        if signature.return_annotation is inspect.Signature.empty:
            empty.append("return")
        bare += [f"{label}: {', '.join(empty)}"] if empty else []
    assert not bare


def test_mypy_agrees():
    pytest.importorskip("mypy", reason="mypy (the extra `test`) is not installed")
    command = [sys.executable, "-m", "mypy", "--cache-dir", os.devnull]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
