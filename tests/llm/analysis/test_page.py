"""The page: whole in itself, drawn in the colours of its theme, and fit for a browser at phone and desktop width."""

import base64
import csv
import html
import io
import re
import shutil
from html.parser import HTMLParser

import pytest
from occ_llm.analysis import decide, render_page
from occ_llm.analysis.page import SECTIONS, draw_all, verdict
from occ_llm.cli.main import run

WIDTHS = {"phone": 390, "desktop": 1280}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Reader(HTMLParser):
    """Collects attributes of all elements."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)


@pytest.fixture(scope="module")
def page(analysis) -> str:
    return render_page(analysis)


def test_nothing_is_fetched(page):
    reader = Reader(page)
    assert all(link.startswith(("#", "data:text/csv;base64,", "data:image/png;base64,")) for link in reader.links)
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert not re.search(r"@import|url\((?!#)", page)


def test_ids_are_unique_and_links_lead_somewhere(page):
    reader = Reader(page)
    assert len(reader.ids) == len(set(reader.ids))
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    assert set(SECTIONS) <= set(reader.ids)


def test_every_claim_is_on_the_page_and_names_are_escaped(page, analysis):
    text = html.unescape(page)
    for finding in decide(analysis):
        assert verdict(finding) in ("holds", "refuted", "open")
        assert finding.claim in text
    assert "&lt;toy&gt;" in page
    assert "<toy>" not in page


def test_every_figure_carries_its_data(page, analysis):
    figures = [figure for section in draw_all(analysis).values() for figure in section]
    assert len({figure.name for figure in figures}) == len(figures) == 11
    for figure in figures:
        assert figure.data_uri in page
        text = base64.b64decode(figure.data_uri.partition(",")[2]).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [list(row) for row in rows] == [list(row) for row in figure.rows]
        assert figure.title
        assert figure.panels


def test_drawings_follow_the_theme(page):
    drawings = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(drawings) > 20
    for drawing in drawings:
        assert "#000000" not in drawing
        assert "#0072b2" not in drawing.lower()
        assert "aria-label" in drawing
        assert not re.search(r'<svg [^>]*\bwidth="', drawing)
    assert page.count("prefers-color-scheme: dark") == 1


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium of this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            pytest.skip(f"{executable} does not start: {error.message.splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def tiny_page(tmp_path_factory):
    """The page of two layers of the bundled model, as the command writes it."""
    place = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        small = ("--layers", "0", "4", "--windows", "1", "--window", "128")
        short = ("--calibration-windows", "2", "--calibration-window", "256")
        assert run(["analyze", "tiny", str(place / "out"), *small, *short]) == 0
    return place / "out" / "index.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_it(browser, tiny_page, width, scheme, tmp_path):
    view = browser.new_page(viewport={"width": WIDTHS[width], "height": 844}, color_scheme=scheme)
    complaints, requests = [], []
    view.on("console", lambda message: complaints.append(message.text))
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(tiny_page.as_uri())
    assert complaints == []
    assert requests == [tiny_page.as_uri()]
    assert view.evaluate("document.documentElement.scrollWidth") == WIDTHS[width], "no horizontal scrolling"
    sizes = view.evaluate("[...document.querySelectorAll('.panels svg')].map(s => s.getBoundingClientRect().width)")
    assert len(sizes) > 20
    assert 0.75 * min(WIDTHS[width], 400) < min(sizes) <= max(sizes) <= WIDTHS[width]
    letters = view.evaluate(
        "Math.min(...[...document.querySelectorAll('.panels svg text')].map(t => t.getBoundingClientRect().height))"
    )
    assert letters > 8, "letters can be read"
    picture = view.screenshot(path=str(tmp_path / f"{width}-{scheme}.png"), full_page=True)
    assert len(picture) > 50_000
    with view.expect_download() as download:
        view.locator("figure a[download]").first.click()
    assert download.value.suggested_filename == "histograms.csv"
    view.close()
