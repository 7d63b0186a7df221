"""The page in a real browser: nothing acts, nothing is fetched, every token can be reached, both themes.

Chromium is Debian's (`apt-get install chromium`), driven by playwright, which is among the development packages.
Where Chromium is absent these tests are skipped.
"""

import shutil

import pytest

from collegium.pipeline.report import report
from tests.support.hostile import HOSTILE, cycling
from tests.support.made_up_run import write_run


playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens a page from disk and notes whatever it does."""
    contexts = []

    def open_page(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page, noted = context.new_page(), {"console": [], "requests": [], "dialogs": []}
        page.on("console", lambda message: noted["console"].append(message.text))
        page.on("pageerror", lambda error: noted["console"].append(str(error)))
        page.on("request", lambda request: noted["requests"].append(request.url))
        page.on("dialog", lambda dialog: (noted["dialogs"].append(dialog.message), dialog.dismiss()))
        page.goto(path.resolve().as_uri())
        return page, noted

    yield open_page
    for context in contexts:
        context.close()


def only_itself(noted, path):
    others = [url for url in noted["requests"] if url != path.resolve().as_uri() and not url.startswith("data:,")]
    return others == [] and noted["console"] == [] and noted["dialogs"] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_page_is_quiet_and_fits(tmp_path, opened, width, theme):
    path = write_run(tmp_path / "run") / "report.html"
    report([path.parent])
    page, noted = opened(path, viewport={"width": width, "height": 900}, color_scheme=theme)
    assert only_itself(noted, path)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(22, 24, 27)") == (theme == "dark")
    smallest = page.evaluate("""Math.min(...[...document.querySelectorAll('svg text')].map(
        text => text.getBoundingClientRect().height))""")
    assert smallest >= 9  # pixels, of a figure in 400


def test_hostile_text_executes_nothing(tmp_path, opened):
    assert len(HOSTILE) == 60
    for start in range(0, 60, 20):
        path = write_run(tmp_path / f"run{start}", cycling(start)) / "report.html"
        report([path.parent])
        page, noted = opened(path, viewport={"width": 400, "height": 900})
        page.mouse.move(200, 400)
        page.mouse.wheel(0, 4000)
        for _ in range(40):
            page.keyboard.press("Tab")
        page.wait_for_timeout(100)
        assert only_itself(noted, path)
        assert page.evaluate("window.hit") is None
        assert page.evaluate("document.scripts.length") == 0
        assert page.evaluate("document.querySelectorAll('iframe,object,embed,form,input,img,base').length") == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_keyboard_reaches_every_token_and_shows_what_is_behind_it(tmp_path, opened):
    path = write_run(tmp_path / "run") / "report.html"
    report([path.parent])
    page, _ = opened(path, viewport={"width": 1400, "height": 900})
    total = page.locator(".tok").count()
    shown = {}
    for _ in range(60):
        page.keyboard.press("Tab")
        state = page.evaluate("""(() => {
            const token = document.activeElement.closest('.tok');
            if (!token) return null;
            const tip = token.querySelector('.tip');
            const box = tip.getBoundingClientRect();
            const inside = box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight + 1;
            return [tip.id, box.width > 0 && inside];
        })()""")
        if state:
            shown[state[0]] = state[1]
    assert len(shown) == total == 8 and all(shown.values())


def test_pointing_at_a_token_shows_the_alternatives(tmp_path, opened):
    path = write_run(tmp_path / "run") / "report.html"
    report([path.parent])
    page, _ = opened(path, viewport={"width": 1400, "height": 900})
    token = page.locator(".tok").first
    tip = token.locator(".tip")
    assert not tip.is_visible()
    token.hover()
    assert tip.is_visible() and "would say" in tip.inner_text() and "90%" in tip.inner_text()


def test_it_prints_without_tips_and_can_be_read_without_colours(tmp_path, opened):
    path = write_run(tmp_path / "run") / "report.html"
    report([path.parent])
    page, _ = opened(path, viewport={"width": 1400, "height": 900})
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.locator(".tok").first.focus()
    assert not page.locator(".tip").first.is_visible()
