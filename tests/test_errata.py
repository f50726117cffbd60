"""The errata page's entries: each complete, shown somewhere, and with a test that exists."""

import re

import pytest

import chapters
import errata
import letters
import numbering
from latentspace import results

TEXT = errata.PAGE.read_text(encoding="utf-8")
ENTRIES = errata.read()
BOOK = numbering.read(chapters.ROOT)


def ids(entry):
    return entry.label


def test_every_heading_of_the_page_is_an_entry():
    headings = [line.split(": ")[0][4:] for line in TEXT.splitlines() if line.startswith("### ")]
    assert [entry.label for entry in ENTRIES] == headings
    assert len(set(headings)) == len(headings)
    assert [entry.anchor for entry in ENTRIES] == [f"erratum-{h.lower()}" for h in headings]


@pytest.mark.parametrize("entry", ENTRIES, ids=ids)
def test_an_entry_says_in_a_few_words_what_it_changes(entry):
    assert entry.kind in ("error", "contradiction", "open", "oversight")
    assert 1 <= len(entry.changes.split()) <= 10
    assert not entry.changes.endswith(".")


def sources(path):
    return (chapters.ROOT / path).read_text(encoding="utf-8")


def section(label):
    """The text that a label leads to: from its line to the next label, or the whole chapter."""
    target = BOOK.labels[label]
    text = sources(f"book/chapters/{target.page.removeprefix('notebooks/')}.md")
    if re.fullmatch(r"(?:lesson|evidence)-\d\d", label):
        return text
    start = text.index(f"({label})=" if f"({label})=" in text else f"$$ ({label})")
    end = text.find("\n(", start + 2)
    return text[start : end if end > 0 else None]


@pytest.mark.parametrize("entry", ENTRIES, ids=ids)
def test_an_entry_leads_to_where_it_is_shown(entry):
    shown = entry.rows["shown in"]
    labels = re.findall(r"\{(?:ref|eq)\}`(?:[^`<]*<)?([\w-]+)>?`", shown)
    assert labels or shown.startswith("no page"), shown
    for label in labels:
        section(label)  # KeyError where there is no such label


@pytest.mark.parametrize("entry", ENTRIES, ids=ids)
def test_the_test_of_an_entry_exists(entry):
    shown = entry.rows["shown in"]
    if re.search(r"\bno test\b", shown):
        assert entry.kind in ("contradiction", "error")
        return
    if "a cell whose output is checked" in shown:
        label = re.search(r"<([\w-]+)>", shown)[1]
        assert "# NBVAL_CHECK_OUTPUT" in section(label)
        assert re.search(rf"\b{entry.label}\b", section(label))
        return
    if records := re.search(r"records (?:of )?(\w+) in `([^`]*)`", shown):
        known = results.read(chapters.ROOT / records[2])
        assert any(records[1] in (r["item"], r["row"].split()[0]) for r in known)
        return
    files = re.findall(r"`(tests/\w+\.py)`", shown)
    assert files, shown
    names = re.findall(r"^(?:class|    def|def) (\w+)", "\n".join(map(sources, files)), re.M)
    wanted = re.findall(r"`([Tt]est\w+)(?:\.\.\.)?`", shown)
    wanted += [f"test_{word}_" for word in re.findall(r"named `(\w+)`", shown)]
    assert wanted, shown
    for name in wanted:
        assert any(name == n or n.startswith(name) for n in names), name


def test_the_index_has_each_entry_once():
    index = errata.index(ENTRIES)
    assert re.findall(r"\{ref\}`(\w+) <", index) == [entry.label for entry in ENTRIES]
    for entry in ENTRIES:
        assert f"<{entry.anchor}>` {entry.title}\n" in index
        assert f"\n  - {entry.changes}\n" in index


def test_an_entry_without_its_lines_is_refused(tmp_path):
    page = tmp_path / "errata.md"
    page.write_text(TEXT.replace("* - it changes\n", "* - it alters\n", 1))
    with pytest.raises(ValueError, match="K1 lacks it changes"):
        errata.read(page)
    page.write_text(TEXT.replace("eq. 2 (oversight)", "eq. 2 (slip)", 1))
    with pytest.raises(ValueError, match="K1: no kind"):
        errata.read(page)


def test_each_erratum_is_in_one_letter_without_markup():
    written = letters.letters()
    assert set(written) == {"deepkde", "tissera2023", "santos2020", "lee2022", "rezaei2021"}
    for entry in ENTRIES:
        assert sum(f"- **{entry.label}, " in text for text in written.values()) == 1
    for text in written.values():
        assert text.startswith("Dear ")
        assert not re.search(r"\{(?:ref|eq|cite|numref)|:::", text)
        for address in re.findall(r"\]\((\S+)\)", text):
            assert address.startswith(letters.site())
