"""The page of the library's names, read from the source, against the imported library."""

import importlib
import importlib.util
import inspect

import pytest

import chapters

pytest.importorskip("sphinx")
SPEC = importlib.util.spec_from_file_location("api", chapters.ROOT / "book" / "_ext" / "api.py")
api = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(api)


def names_of(function):
    """A function's parameters without self."""
    parameters = list(inspect.signature(function).parameters)
    return [name for name in parameters if name not in ("self", "cls")]


@pytest.mark.parametrize("path", api.modules(), ids=api.module_name)
def test_page_says_what_the_library_is(path):
    module = importlib.import_module(api.module_name(path))
    found = api.public(path)
    assert sorted(name for name in found if "." not in name) == sorted(module.__all__)
    for name, entry in found.items():
        owner, _, method = name.rpartition(".")
        value = getattr(getattr(module, owner), method) if owner else getattr(module, name)
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        assert entry.doc == (inspect.getdoc(value) or ""), name
        if inspect.isfunction(value):
            shown = eval(f"lambda {entry.signature.partition('(')[2][:-1]}: 0", {**vars(module)})
            assert list(inspect.signature(shown).parameters) == names_of(value), name


def test_every_public_module_is_there():
    found = {api.module_name(path) for path in api.modules()}
    assert {"latentspace.density", "latentspace.data", "latentspace.training"} <= found
    assert len(found) > 40


def test_a_name_without_a_definition_is_an_error(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text('__all__ = ["x"]\n')
    with pytest.raises(ValueError, match="does not define"):
        api.public(path)
