"""The printed numbers beside ours: the list, the rule, and the pages made of them."""

import importlib.util
import io
import json
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml

import chapters
import printed
from latentspace import results

EXTENSIONS = chapters.ROOT / "book" / "_ext"


def load(name):
    """A module of the site's extensions, which are no package."""
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(**changes):
    values = {"document": "Thesis", "item": "Table 1", "row": "ours", "metric": "ACC",
              "ours": [0.91, 0.95, 0.93], "paper": 0.94}  # fmt: skip
    return results.record(**{**values, **changes})


# The rule


@pytest.mark.parametrize(
    ("paper", "ours", "spread", "decimals", "expected"),
    [
        (0.95, [0.91, 0.95, 0.93], 0, None, True),  # 2 of our standard deviations are 0.04
        (0.971, [0.91, 0.95, 0.93], 0, None, False),
        (0.98, [0.93], 0.025, None, True),  # 2 of theirs
        (0.98, [0.93], 0.0249, None, False),
        (9.26, [9.3526], 0, None, True),  # 1 % of the printed one
        (9.26, [9.353], 0, None, False),
        (0.8, [0.7501], 0, 1, True),  # rounds to it
        (0.8, [0.7499], 0, 1, False),
        (0.62, [0.63, 0.63], 0, None, False),  # equal runs have no spread to hide behind
        (-0.05, [-0.0506], 0, None, False),
        (0, [0.0], 0, None, True),
    ],
)
def test_tolerance(paper, ours, spread, decimals, expected):
    assert printed.agrees(make(paper=paper, ours=ours), spread, decimals) is expected


LIST = [
    {
        "document": "Thesis",
        "note": "Seen by night.",
        "tables": [
            {
                "table": "Table 1",
                "numbers": 5,
                "from": "02_deepkde",
                "rows": [
                    {"item": "Table 1", "setting": "all", "scale": "printed"},
                    {"item": "Table 1", "setting": "few", "scale": "reduced"},
                ],
                "spread": {"rival": {"ACC": 0.2}},
                "rest": "No <GPU>.",
            },
            {"table": "Table 2", "numbers": 7},
        ],
        "beside": [{"from": "02_deepkde", "item": "Table 9"}],
    }
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one chapter with five records, three of them of a printed table."""
    for folder in ("book/chapters", "book/results", "notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "_config.yml").touch()
    cell = "```{code-cell} ipython3\n:tags: [parameters]\n\nseeds = [0, 1, 2]\n```\n"
    (tmp_path / "book" / "chapters" / "02_deepkde.md").write_text(cell)
    (tmp_path / "book" / "printed.yaml").write_text(yaml.safe_dump(LIST))
    monkeypatch.chdir(tmp_path / "book" / "chapters")
    records = [
        make(setting="all images"),
        make(setting="all images", row="rival", paper=0.6),
        make(setting="few images", paper=0.6),
        make(item="Table 9"),
        make(item="Table 7", paper=None),
    ]
    results.save("02_deepkde", records, {"seeds": [0, 1, 2]})
    return tmp_path


def test_every_number_is_counted_once(project):
    (document,) = printed.read(project)
    first, second = document.tables
    states = {(m.record["row"], m.record["setting"]): m.state for m in first.rows}
    assert states == {
        ("ours", "all images"): "agrees",
        ("rival", "all images"): "agrees",  # thanks to the spread printed beside it
        ("ours", "few images"): "differs, reduced",
    }
    assert first.counts() == {"agrees": 2, "differs, reduced": 1, "not run": 2}
    assert second.counts() == {"not run": 7}
    assert document.counts() == {"agrees": 2, "differs, reduced": 1, "not run": 9}
    assert printed.unlisted(project) == []


def test_records_without_a_place_and_tables_with_too_many_are_found(project):
    records = [make(setting="all images"), make(item="Table 3")]
    results.save("02_deepkde", records, {"seeds": [0, 1, 2]})
    assert printed.unlisted(project) == ["02_deepkde: Thesis, Table 3"]
    records = [make(setting="all images", row=str(i)) for i in range(6)]
    results.save("02_deepkde", records, {"seeds": [0, 1, 2]})
    with pytest.raises(ValueError, match="Table 1: 6 of 5"):
        printed.read(project)


# The book's own list and records


def test_no_printed_number_is_left_out():
    assert printed.unlisted() == []


def test_each_rule_of_the_list_finds_records():
    """A renamed item or a lost file would count as "not run" in silence."""
    for entry in yaml.safe_load((chapters.ROOT / "book" / "printed.yaml").read_text()):
        for source in entry["tables"] + entry.get("beside", []):
            if "from" not in source:
                continue
            found = results.read(chapters.ROOT / "book" / "results" / f"{source['from']}.json")
            for rule in source.get("rows", [source]):
                taken = [r for r in found if printed._takes(rule, entry["document"], r)]
                assert taken, (source["from"], rule)
            rows = {record["row"] for record in found}
            assert set(source.get("spread", {})) <= rows


def test_no_record_was_edited_by_hand():
    """Mean, spread and number of each follow from its values."""
    for path in (chapters.ROOT / "book" / "results").glob("[0-9][0-9]_*.json"):
        for record in json.loads(path.read_text())["records"]:
            values, where = record["values"], (path.stem, record["row"], record["metric"])
            assert record["n_seeds"] == len(values), where
            # Six digits are kept of each value, so of a spread far below the mean few are left.
            slack = 1e-5 * max(map(abs, values), default=0)
            assert record["mean"] == pytest.approx(statistics.fmean(values), rel=1e-5, abs=slack)
            if len(values) > 1:
                expected = statistics.stdev(values)
                assert record["std"] == pytest.approx(expected, rel=1e-4, abs=slack), where
            else:
                assert record["std"] is None, where


# The pages


class Text(HTMLParser):
    """The words of a table, row by row."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.open = [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


def site(source):
    """Build the site in `source` with the directive; return its page and the warnings."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    (source / "index.rst").write_text("Scores\n======\n\n.. scoreboard::\n")
    warnings, out = io.StringIO(), source / "_build"
    with docutils_namespace():
        Sphinx(
            source, None, out, out / "trees", "html", status=None, warning=warnings,
            confoverrides={"extensions": ["scoreboard"], "html_theme": "basic", "nitpicky": True},
        ).build()  # fmt: skip
    return (out / "index.html").read_text(), warnings.getvalue()


def test_page_follows_the_records(project, monkeypatch):
    monkeypatch.syspath_prepend(EXTENSIONS)
    page, warnings = site(project)
    assert warnings == ""
    summary, table = (Text(part).rows for part in page.split('<table class="scores">'))
    assert summary == [
        ["Document", "Printed", "agrees", "differs", "agrees, reduced scale",
         "differs, reduced scale", "not run"],
        ["Thesis", "12", "2", "–", "–", "1", "9"],
    ]  # fmt: skip
    assert ["Table 1", "rival", "ACC ↑", "0.6", "0.930 ± 0.020", "3", "agrees", "all images",
            "2, lesson"] in table  # fmt: skip
    assert 'href="../notebooks/02_deepkde.html"' in page
    assert "Table 1: 2 of 5. No &lt;GPU&gt;." in page
    assert "Seen by night." in page

    results.save("02_deepkde", [make(setting="all images")], {"seeds": [0, 1, 2]})
    page, _ = site(project)  # the page is read again, though its text has not changed
    assert Text(page).rows[1] == ["Thesis", "12", "1", "–", "–", "–", "11"]
    (project / "book" / "results" / "02_deepkde.json").write_text('{"records": [{}]}')
    _, warnings = site(project)
    assert "02_deepkde.json is not a results file" in warnings


def test_pages_need_none_of_the_librarys_dependencies():
    """`make book` installs what shows stored outputs, and no numpy."""
    missing = "numpy", "scipy", "pandas", "sklearn", "matplotlib", "torch", "torchvision"
    for name in ("scoreboard", "front"):
        script = (
            "import sys, runpy\n"
            f"sys.modules.update(dict.fromkeys({missing!r}))\n"
            f"runpy.run_path({str(EXTENSIONS / f'{name}.py')!r})"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# The front page


def front_lines(directive):
    text = (chapters.ROOT / "book" / "intro.md").read_text()
    (body,) = re.findall(rf"^```\{{{directive}\}}\n(.*?)^```$", text, re.M | re.S)
    return body.splitlines()


def test_gallery_has_a_picture_of_each_chapter():
    front = load("front")
    numbers = []
    for line in front_lines("gallery"):
        name, _, question = line.partition(" | ")
        numbers.append(int(re.fullmatch(r"Figure (\d+)\.\d+", name)[1]))
        assert question.endswith("?")
        picture = front.SVG.search(front.figure(name))[0]
        assert 'aria-label="' in picture
        assert "figcaption" not in front.figure(name)
    assert numbers == list(range(1, 13))
    assert "<button" in front.figure(front_lines("moving-picture")[0])


def test_a_figure_is_found_by_its_whole_number():
    front = load("front")
    assert front.figure("Figure 1.1") != front.figure("Figure 1.10")
    with pytest.raises(ValueError, match="has no Figure 1.99"):
        front.figure("Figure 1.99")


def named_in_needs(name):
    """The chapters that the line "You need ..." of a lesson names."""
    text = (chapters.TEXTS / f"{name}.md").read_text()
    (line,) = re.findall(r"^You need .*$", text, re.M)
    return {int(n) for n in re.findall(r"lesson-(\d\d)|[Cc]hapters? (\d+)", line) for n in n if n}


def reach(number, pairs):
    """All chapters from which arrows lead to this one."""
    direct = {start for start, end in pairs if end == number}
    return direct.union(*(reach(start, pairs) for start in direct))


@pytest.mark.parametrize("name", chapters.lessons())
def test_map_says_what_the_lessons_say(name):
    front, number = load("front"), int(name[:2])
    assert number in front.PLACES
    assert reach(number, front.NEEDS) == set().union(
        *({n} | reach(n, front.NEEDS) for n in named_in_needs(name))
    )
