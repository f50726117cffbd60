"""Drawings of methods: where boxes and arrows end up."""

import numpy as np
import pytest

from latentspace import figures
from latentspace.schematic import KINDS, Schematic


def drawing():
    made = Schematic(7, 2)
    made.box("a", 1, 1, "first")
    made.box("b", 5, 0.6, "second", kind="network", width=2)
    return made


def test_arrow_goes_from_edge_to_edge():
    made = drawing()
    made.arrow("a", "b")
    (ax,) = made.figure.axes
    made.figure.canvas.draw()
    arrow = ax.patches[-1]
    on_screen = arrow.get_transform().transform(arrow.get_path().vertices)
    path = ax.transData.inverted().transform(on_screen)
    first, tip = path[0], path[np.argmax(path[:, 0])]
    assert 1.55 < first[0] < 1.75 and 3.85 < tip[0] < 4.05  # the boxes end at 1.6 and begin at 4


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_shows_its_text(kind):
    made = Schematic(2, 1)
    made.box("x", 1, 0.5, "some words", kind=kind)
    assert "some words" in [text.get_text() for text in made.figure.axes[0].texts]
    assert "<svg" in figures.figure_html(made.figure, alt="a box with some words")


def test_a_word_at_an_arrow_stands_above_its_middle_or_where_it_is_told():
    made = drawing()
    made.arrow("a", "b", "between")
    made.arrow("b", "a", "aside", at=(2.0, 1.7))
    texts = {text.get_text(): text for text in made.figure.axes[0].texts}
    x, y = texts["between"].get_position()
    assert x == 3 and 0.8 < y < 1  # the boxes are at (1, 1) and (5, .6)
    assert texts["aside"].get_position() == (2.0, 1.7)


def test_refusals():
    made = drawing()
    with pytest.raises(ValueError, match="already"):
        made.box("a", 2, 2, "again")
    with pytest.raises(KeyError):
        made.arrow("a", "c")
    with pytest.raises(KeyError):
        made.box("c", 2, 2, "x", kind="none")
