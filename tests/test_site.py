"""The built site, looked at in a browser that has no network."""

import re
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from nbconvert.filters import markdown2html
from playwright.sync_api import sync_playwright

import address
import build
import chapters

pytestmark = pytest.mark.site

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
# What the theme, docutils and pandas break wherever they write, and offer no setting for.
KNOWN = [
    ("region", 'class="logo__image'),  # the sidebar's logo stands outside the landmarks
    # The roles that docutils gives a list of references, where newer rules want others.
    ("aria-allowed-role", 'role="doc-biblioentry"'),
    ("aria-deprecated-role", 'role="doc-biblioentry"'),
    ("aria-required-children", 'class="citation-list"'),
    ("empty-table-header", "<th></th>"),  # the corner of a data frame
    ("empty-table-header", '<th class="blank level0">'),  # and of a styled one
]
THEME_SAYS = "Got invalid theme mode"  # on each first visit, before it falls back to auto


@pytest.fixture(scope="session")
def html(tmp_path_factory):
    """The folder of the site, built with warnings as errors."""
    out = tmp_path_factory.mktemp("site")
    build.build(out)
    return out / "_build" / "html"


@pytest.fixture(scope="session")
def server(html):
    """The address of a server on this machine that gives out the site."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(html))) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


def visit(browser, url):
    """Open a page and wait for its formulas; `page.troubles` lists what went wrong on the way."""
    page = browser.new_page()
    page.troubles = troubles = []
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
    page.on("response", lambda r: r.status >= 400 and troubles.append(f"{r.status}: {r.url}"))
    page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
    page.on(
        "console",
        lambda m: m.type == "error" and THEME_SAYS not in m.text and troubles.append(m.text),
    )
    page.goto(url, wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    return page


@pytest.fixture(scope="module", params=build.pages())
def page(request, browser, server):
    """One page of the book; the tests of it share one visit."""
    page = visit(browser, f"{server}/{request.param}.html")
    page.name = request.param
    yield page
    page.close()


def test_nothing_fails_to_load(page):
    assert page.troubles == []


def test_formulas_are_rendered(page):
    formulas = page.locator(".math").count()
    assert page.locator(".math mjx-container svg").count() >= formulas
    unknown = "mjx-container g[fill='red'][data-mml-node='mtext']"  # how MathJax shows a macro
    assert page.locator(f"[data-mjx-error], {unknown}").count() == 0


def test_a_number_and_its_spread_stay_on_one_line(page):
    cells = page.locator("table.dataframe td").all_text_contents()
    assert [cell for cell in cells if " ± " in cell] == []


def test_colab_opens_the_chapter(page):
    links = page.locator("a[href*='colab.research.google.com/github']").evaluate_all(
        "links => links.map(link => link.href)"
    )
    if not page.name.startswith("notebooks/"):
        assert links == []
        return
    slug = address.forms(address.current(chapters.ROOT))[0]
    notebook = f"{page.name}.ipynb"
    expected = f"https://colab.research.google.com/github/{slug}/blob/main/{notebook}"
    assert set(links) == {expected}
    assert (chapters.ROOT / notebook).exists()


def test_one_search_bar(page):
    assert page.locator(".search-button-field").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_accessibility_rule_is_broken(page, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.evaluate("scheme => document.documentElement.dataset.theme = scheme", scheme)
    page.evaluate("() => Promise.all(document.getAnimations().map(fade => fade.finished))")
    # Only colours differ between the two.
    rules = {"runOnly": ["color-contrast", "link-in-text-block"]} if scheme == "dark" else None
    broken = [
        (rule["id"], node["html"], node["failureSummary"])
        for rule in Axe().run(page, options=rules).response["violations"]
        for node in rule["nodes"]
        if not any(rule["id"] == known and part in node["html"] for known, part in KNOWN)
    ]
    assert broken == []


def test_page_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    width = page.evaluate("document.scrollingElement.scrollWidth")
    page.set_viewport_size({"width": 1280, "height": 720})
    assert width <= 360


# Elements that hide a part of themselves, other than what is meant for screen readers alone: such a
# copy stands in each formula, and makes it wider than it looks.
CLIPPED = """() => [...document.querySelectorAll("article *")].filter(e => {
    if (e.closest(".math, mjx-container")) return false;
    const hides = ["hidden", "clip"].includes(getComputedStyle(e).overflowX);
    return hides && e.clientWidth > 10 && e.scrollWidth > e.clientWidth + 2
}).map(e => e.outerHTML.slice(0, 300))"""
SCROLLING = """() => [
    ...document.querySelectorAll("article .cell_output :is(.output, pre)")
].filter(
    e => e.scrollWidth > e.clientWidth + 2
).map(e => e.outerHTML.slice(0, 300))"""


@pytest.mark.parametrize("width", [1400, 1000, 400])
def test_nothing_is_clipped(page, width):
    """On the wide page an output shows as a whole; on a narrow one it may scroll."""
    page.set_viewport_size({"width": width, "height": 1000})
    clipped = page.evaluate(CLIPPED)
    scrolling = page.evaluate(SCROLLING) if width == 1400 else []
    page.set_viewport_size({"width": 1280, "height": 720})
    assert clipped == []
    assert scrolling == []


# What runs off a sheet, and what must not be on it. Formulas have a copy for screen readers alone.
OFF_THE_SHEET = """() => [...document.querySelectorAll("article *")].filter(e =>
    !e.closest("svg, mjx-assistive-mml") && e.getBoundingClientRect().right > innerWidth + 1
).map(e => e.outerHTML.slice(0, 300))"""
FOR_A_SCREEN = ".bd-sidebar, .bd-header, button, input, a.headerlink, #jb-print-toc"


def test_page_prints(page):
    """On A4 with the margins of print.css, 680 pixels, all that is open fits, in light colours."""
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 680, "height": 960})
    page.evaluate("() => document.documentElement.dataset.theme = 'dark'")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    theme = page.evaluate("() => document.documentElement.dataset.theme")
    off = page.evaluate(OFF_THE_SHEET)
    shown = page.locator("details.hide:not([open]), .toggle-hidden").or_(page.locator(FOR_A_SCREEN))
    shown = [each.evaluate("e => e.outerHTML.slice(0, 300)") for each in shown.all()
             if each.is_visible()]  # fmt: skip
    figures = page.locator("article figure.ls-figure > :is(svg, [role=img])")
    invisible = [each for each in figures.all() if not each.is_visible()]
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    after = page.evaluate("() => document.documentElement.dataset.theme")
    page.emulate_media(media="screen", color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 720})
    assert (theme, after) == ("light", "dark")
    assert off == []
    assert shown == []
    assert invisible == []


def test_the_first_picture_comes_early(page):
    """Before the third screen of 1,400 x 1,000, formulas and style sheets applied."""
    if page.name.removeprefix("notebooks/") not in chapters.lessons():
        pytest.skip("no lesson")
    page.set_viewport_size({"width": 1400, "height": 1000})
    tops = page.locator("article :is(figure, .cell_output img, .cell_output > svg)").evaluate_all(
        "pictures => pictures.map(p => p.getBoundingClientRect().top + scrollY)"
    )
    page.set_viewport_size({"width": 1280, "height": 720})
    assert tops
    assert min(tops) < 2000


def test_no_page_is_heavy(page, html):
    assert (html / f"{page.name}.html").stat().st_size < 2_000_000


# The paragraphs and captions of a page, with a mark in place of what is no plain word.
WORDS = """() => [...document.querySelectorAll("article :is(p, figcaption)")].filter(
    p => !p.closest(".admonition-title, .prev-next-area, .citation, a")
).map(p => {
    const copy = p.cloneNode(true);
    copy.querySelectorAll("a, code, .math, mjx-container, .bibtex-citation").forEach(
        part => part.replaceWith("*"));
    return copy.textContent;
})"""
KINDS = "[Cc]hapters?|Figures?|Tables?|Exercises?"
NAMES = rf"\b[A-Z]\d{{1,2}}\b(?![.-]?\w)|\b(?:{KINDS}) \d+(?:\.E?\d+)?"
THEIRS = r"(?:\*|['’]s?|its|Its|thesis[,:]|of the|ch\.) $"


@pytest.fixture(scope="session")
def anchors(html):
    """The ids on each page of the site, by the page's name."""
    ids = re.compile(r'\bid="([^"]+)"')
    return {name: set(ids.findall((html / f"{name}.html").read_text())) for name in build.pages()}


def named(word, page, anchors):
    """The anchor or page to which a name should lead from that page, None if it is no name there.

    A figure, table or exercise of the page's own chapter must be there, to be led to.
    """
    kind, _, number = word.lower().partition(" ")
    if not number:
        anchor = f"erratum-{kind}"
        return anchor if anchor in anchors["book/errata"] else None
    kind = kind.removesuffix("s")
    if kind == "chapter":
        lessons = {str(int(name[:2])): name for name in chapters.lessons()}
        lesson = lessons.get(number.lstrip("0"))
        return None if lesson is None or page.endswith(lesson) else lesson
    chapter = page.removeprefix("notebooks/")[:2].lstrip("0")
    return f"{kind}-{number}".replace(".", "-") if number.startswith(f"{chapter}.") else None


def test_what_has_a_name_is_a_link(page, anchors):
    """Errata, chapters, figures and tables: who reads their name can follow it."""
    bare = []
    for text in page.evaluate(WORDS):
        for match in re.finditer(NAMES, text):
            target = named(match[0], page.name, anchors)
            owned = re.search(THEIRS, text[: match.start()])
            after = re.sub(r"^(?:(?:,| and| to) \d+)+", "", text[match.end() :])
            owned = owned or re.match(r",? (?:of|in) (?:the|\*)", after)
            own = match.start() == 0 and text.lstrip().startswith(("Figure", "Table"))
            entry = page.name == "book/errata" and (target or "").startswith("erratum-")
            if target and not (owned or own or entry):
                bare.append((match[0], text[max(0, match.start() - 40) : match.end() + 40]))
    assert bare == []


LINKS = """() => [...document.querySelectorAll("article a[href]")].map(
    a => new URL(a.getAttribute("href"), document.baseURI).href
)"""


@pytest.fixture(scope="session")
def terms(browser, server):
    """The glossary's terms: the id of each, its name, and what it means."""
    page = visit(browser, f"{server}/book/glossary.html")
    yield page.locator("dl.glossary > dt").evaluate_all(
        "terms => terms.map(t => [t.id, t.firstChild.textContent, t.nextElementSibling.innerText])"
    )
    page.close()


def test_a_term_is_a_link_at_its_first_use(page, terms):
    if page.name == "book/glossary":
        pytest.skip("where terms are explained")
    linked = {link.partition("#")[2] for link in page.evaluate(LINKS)}
    words = " ".join(page.evaluate(WORDS)).lower()
    bare = [
        name
        for anchor, name, meaning in terms
        if anchor not in linked and not meaning.startswith("In chapter")
        and re.search(rf"(?<![\w-]){re.escape(name.split(' (')[0].lower())}(?![\w-])", words)
    ]  # fmt: skip
    assert len(terms) > 60
    assert bare == []


def test_links_lead_somewhere(page, anchors, server):
    lost = []
    for link in page.evaluate(LINKS):
        if link.startswith(server):
            name, _, anchor = link.removeprefix(f"{server}/").partition("#")
            name = name.removesuffix(".html")
            if name in anchors and anchor and anchor not in anchors[name]:
                lost.append(link)
            if name and name not in anchors and not name.startswith(("_sources", "_images")):
                lost.append(link)
    assert lost == []


def test_numbers_begin_with_the_chapters(page):
    """Equations and exercises, where they stand and in links to them."""
    shown = page.locator("article .eqno, article .caption-number").all_text_contents()
    chapter = page.name.removeprefix("notebooks/")[:2].lstrip("0")
    letter = "E" if page.name.endswith("_evidence") else ""
    numbers = [re.search(r"\d+\.E?\d+", text)[0] for text in shown]
    equations = [n for n, text in zip(numbers, shown, strict=True) if "(" in text]
    assert equations == [f"{chapter}.{letter}{i + 1}" for i in range(len(equations))]
    exercises = [n for n, text in zip(numbers, shown, strict=True) if "(" not in text]
    assert exercises == [f"{chapter}.{i + 1}" for i in range(len(exercises))]
    links = page.locator("article a[href*='#equation-eq-'], article a[href*='#ex-']").evaluate_all(
        "links => links.map(link => [link.href.split('#')[1], link.innerText])"
    )
    for anchor, text in links:
        if text not in ("#", "¶") and re.search(r"\d", text):
            own = re.search(r"(?:eq|ex)-(\d\d)", anchor)[1].lstrip("0")
            assert re.fullmatch(rf"\({own}\.E?\d+\)|Exercise {own}\.\d+", text)


def found(browser, server, words):
    """The addresses that a search for these words gives, in order."""
    page = visit(browser, f"{server}/search.html?q={words}")
    page.wait_for_selector("#search-results p:text('found')", timeout=10_000)
    links = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.pathname)")
    assert page.troubles == []
    page.close()
    return links


# The notebooks, rendered as by a front end that knows nothing of MyST, beside the site's pages.

PLAIN = """<!doctype html><meta charset="utf-8"><title>plain</title><script>
MathJax = {{tex: {{inlineMath: [["$", "$"]]}}}}</script>
<script src="{server}/_static/mathjax/tex-svg-full.js"></script><body>{cells}</body>"""
NUMBERS = "mjx-assistive-mml mlabeledtr > mtd:first-child"


def rendered(name):
    """The HTML of a stored notebook's prose, by nbconvert."""
    cells = [cell for cell in chapters.stored(name).cells if cell.cell_type == "markdown"]
    return "\n".join(f"<div>{markdown2html(cell.source)}</div>" for cell in cells)


@pytest.mark.parametrize("name", ["02_deepkde", "05_neural_mixtures_evidence"])
def test_notebook_reads_without_myst(browser, server, name):
    """As `test_plain` says of all of them, here as a browser shows two."""
    page = browser.new_page()
    page.route("**/plain.html", lambda route: route.fulfill(
        content_type="text/html", body=PLAIN.format(server=server, cells=rendered(name))
    ))  # fmt: skip
    page.goto(f"{server}/plain.html", wait_until="load")
    page.evaluate("() => MathJax.startup.promise")
    assert page.locator("[data-mjx-error]").count() == 0
    numbers = page.locator(NUMBERS).all_text_contents()
    assert len(numbers) == rendered(name).count(r"\tag{")
    page.evaluate("document.querySelectorAll('details').forEach(box => { box.open = true })")
    page.evaluate("document.querySelectorAll('mjx-container, code').forEach(e => e.remove())")
    words = page.locator("body").inner_text()
    page.close()
    raw = r":::|\{[\w:-]+\}|\([\w-]+\)=|^:\w|[$`|\\]|\b(?:eq|ex|evi|lesson|erratum)-\d|</?\w+>"
    assert re.findall(raw, words, flags=re.M) == []


def test_equations_have_the_numbers_of_the_page(html):
    for name in chapters.names():
        page = (html / "notebooks" / f"{name}.html").read_text()
        tags = re.findall(r"\\tag\{(.*?)\}", rendered(name))
        assert tags == re.findall(r'class="eqno">\(([\w.]+)\)', page), name


def test_notebooks_lead_to_places_of_the_site(html):
    start = f"https://{address.forms(address.current(chapters.ROOT))[1]}/"
    wanted = {
        link
        for name in chapters.names()
        for link in re.findall(rf'href="{re.escape(start)}([^"]*)"', rendered(name))
    }
    assert len(wanted) > 100
    places = {}
    for page in {link.partition("#")[0] for link in wanted}:
        text = (html / page).read_text()
        places[page] = set(re.findall(r'\bid="([^"]*)"', text)) | {""}
    assert [link for link in sorted(wanted) if link.partition("#")[2] not in
            places[link.partition("#")[0]]] == []  # fmt: skip


def test_the_page_offers_the_plain_notebook(html):
    """What the button for downloads gives."""
    name = chapters.names()[0]
    offered = html / "_sources" / "notebooks" / f"{name}.ipynb"
    assert offered.read_bytes() == (chapters.NOTEBOOKS / f"{name}.ipynb").read_bytes()


def test_search_answers(browser, server):
    assert any("glossary" in link for link in found(browser, server, "silhouette"))


@pytest.mark.parametrize("words", ["HDBSCAN", "bandwidth", "Sinkhorn", "StatDEC"])
def test_search_finds_lessons_before_evidence(browser, server, words):
    kinds = ["_evidence" in link for link in found(browser, server, words) if "notebooks" in link]
    assert True in kinds
    assert kinds == sorted(kinds)


def test_scoreboard_filters_and_sorts(browser, server):
    page = visit(browser, f"{server}/book/scoreboard.html")
    rows = page.locator("table.scores tbody tr")
    assert rows.count() > 200
    assert not rows.first.is_visible()  # folded, so that the summary is one screen
    page.fill(".scores-filter input", "deepdpm usps acc")
    page.select_option(".scores-filter select", "agrees")
    texts = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert 0 < len(texts) < 10
    assert all("usps" in text and "ACC" in text and "agrees" in text for text in texts)
    page.fill(".scores-filter input", "deepdpm")
    page.locator("table.scores:visible th button", has_text="Ours").click()
    values = [float(row.locator("td").nth(4).inner_text().split()[0]) for row in rows.all()
              if row.is_visible()]  # fmt: skip
    assert values == sorted(values)
    assert len(set(values)) > 5
    page.close()


def test_first_address_leads_to_the_preface(browser, server):
    page = browser.new_page()  # not by `visit`, which looks at a page that is leaving
    page.goto(f"{server}/", wait_until="commit")
    page.wait_for_url("**/book/intro.html", timeout=10_000)
    page.close()


def test_formulas_are_rendered_from_a_plain_folder(browser, html):
    page = visit(browser, (html / "book" / "notation.html").as_uri())
    assert page.locator(".math mjx-container svg").count() > 20
    assert page.troubles == []
    page.close()


def test_site_shows_stored_outputs_only():
    config = yaml.safe_load((chapters.ROOT / "_config.yml").read_text())
    assert config["execute"]["execute_notebooks"] == "off"
