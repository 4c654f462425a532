"""The page in a real browser: curves drawn, switches that change them, a table that filters, and nothing fetched or complained.

Needs Chromium and ``pip install 'lmablate[browser]'`` (`make browser`); skipped in words where either is missing.
"""

import os
import shutil

import fake_results
import pytest
from test_report import report
from test_report_page import HOSTILE

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# How many pixels of a canvas have a colour (axes and words are grey), and a sum that tells two drawings apart.
DRAWN = """selector => {
  const canvas = document.querySelector(selector), copy = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  Object.assign(copy.canvas, {width: canvas.width, height: canvas.height});
  copy.drawImage(canvas, 0, 0);
  const bytes = copy.getImageData(0, 0, canvas.width, canvas.height).data;
  let [coloured, sum] = [0, 0];
  for (let i = 0; i < bytes.length; i += 4) {
    const [r, g, b, a] = bytes.subarray(i, i + 4);
    coloured += a > 20 && Math.max(r, g, b) - Math.min(r, g, b) > 40;
    sum = (sum + (i + 1) * (r + 3 * g + 7 * b + 11 * a)) % 1e12;
  }
  return [coloured, sum];
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'lmablate[browser]'")
    path = os.environ.get("LMABLATE_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as started:
        path = path or started.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip("no Chromium: install it, or name one in LMABLATE_BROWSER")
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    base = tmp_path_factory.mktemp("browser")
    fake_results.write_fake_study(
        base / "results", "alpha", {"rope": {"posemb": "rope"}, HOSTILE: {"posemb": "none"}}, seeds=range(3), rates=(1e-3, 3e-3, 8e-3),
        diverged=lambda arm, stage, lr, seed: (arm, stage, seed) == (HOSTILE, "evaluate", 1),
    )  # fmt: skip
    fake_results.write_fake_results(base / "results", {"norm": ("rms", "layer")}, seeds=range(40), sweep=None)
    report(base / "results", base / "out")
    return base / "out" / "index.html"


@pytest.fixture
def page(browser, written):
    """The page, open; at the end nothing was fetched but itself, and the console is empty."""
    yield from opened(browser, written)


def opened(browser, path, **context):
    window = browser.new_context(viewport={"width": 1200, "height": 900}, **context)
    page, said, asked = window.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert said == []
    assert asked == [path.as_uri()]
    window.close()


def drawn(page, number=0, layer="canvas:not(.glass)"):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate(DRAWN, f".chart[data-question='{number}'] {layer}")


def test_curves_are_drawn_and_every_switch_changes_them(page):
    pictures = [drawn(page)]
    assert pictures[0][0] > 2000 and drawn(page, 1)[0] > 2000
    chart = page.locator(".chart[data-question='0']")
    for label in ("from the start", "log loss", "single runs", "log tokens"):
        chart.get_by_label(label).check()
        pictures.append(drawn(page))
    chart.get_by_label("Loss", exact=True).select_option("training loss")
    pictures.append(drawn(page))
    assert len({tuple(picture) for picture in pictures}) == len(pictures)
    assert chart.get_by_label("from the start").is_disabled()
    assert "training loss against training tokens, 2 of 2 arms: every run" in chart.locator(
        "canvas"
    ).first.get_attribute("aria-label")


def test_arms_are_toggled_from_the_legend(page):
    chart, whole = page.locator(".chart[data-question='0']"), drawn(page)
    rope = chart.locator(".legend").get_by_role("button", name="rope")
    assert rope.get_attribute("aria-pressed") == "true"
    rope.click()
    assert rope.get_attribute("aria-pressed") == "false" and drawn(page) != whole
    rope.click()
    assert drawn(page) == whole
    chart.get_by_role("button", name="no arms").click()
    assert drawn(page)[0] == 0
    chart.get_by_role("button", name="all arms").click()
    assert drawn(page) == whole


def test_pointing_and_keys_tell_run_arm_seed_step_and_loss(page):
    chart = page.locator(".chart[data-question='1']")
    canvas, tip = chart.locator("canvas").first, chart.locator(".tip")
    canvas.scroll_into_view_if_needed()
    assert tip.is_hidden()
    box = canvas.bounding_box()
    for share in (0.8, 0.85, 0.9, 0.95):  # down the right edge, where the losses end
        page.mouse.move(box["x"] + 0.97 * box["width"], box["y"] + share * (box["height"] - 44))
        if tip.is_visible():
            break
    words = tip.inner_text()
    for word in ("run ", "seed ", "step 400", "819,200 tokens", "validation loss 4.", "arm's mean 4."):
        assert word in words
    assert drawn(page, 1, ".glass")[0] > 50
    page.mouse.move(5, 5)
    assert tip.is_hidden()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    page.keyboard.press("ArrowLeft")
    assert "step 400" in first and "step 350" in tip.inner_text()
    page.keyboard.press("ArrowDown")
    assert tip.inner_text().split("\n")[1] != first.split("\n")[1]
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_the_table_filters_sorts_pages_and_shows_a_run(page, written):
    runs = page.locator(".runs[data-question='1']")
    rows, status = runs.locator("tbody tr"), runs.get_by_role("status")
    assert (rows.count(), status.inner_text()) == (50, "1 to 50 of 80 runs")
    runs.get_by_role("button", name="next").click()
    assert (rows.count(), status.inner_text()) == (30, "51 to 80 of 80 runs")
    assert runs.get_by_role("button", name="next").is_disabled()
    runs.get_by_label("Filter runs").fill("layer seed=17")
    assert (rows.count(), status.inner_text()) == (1, "1 to 1 of 1 runs, out of 80")
    runs.get_by_label("Filter runs").fill("nowhere")
    assert (rows.count(), status.inner_text()) == (0, "none of 80 runs")
    runs.get_by_label("Filter runs").fill("")
    head = runs.get_by_role("button", name="val. loss")
    for sign, order in ((1, "ascending"), (-1, "descending")):
        head.click()
        losses = [float(text) * sign for text in runs.locator("tbody td:nth-child(5)").all_inner_texts()]
        assert len(losses) == 50 and losses == sorted(losses)
        assert head.locator("xpath=..").get_attribute("aria-sort") == order
    run_id = rows.first.locator("code").first.inner_text()
    link = rows.first.locator("a").get_attribute("href")
    assert (written.parent / link).resolve() == written.parents[1] / "results" / run_id / "config.yaml"
    rows.first.get_by_role("button", name="curve").click()
    assert f"run {run_id}" in page.locator(".chart[data-question='1'] .tip").inner_text()
    assert rows.first.get_by_role("button", name="curve").get_attribute("aria-pressed") == "true"


def test_a_hostile_name_is_text_in_legend_and_table(page):
    assert page.locator(".chart[data-question='0'] .legend").get_by_text(HOSTILE, exact=True).count() == 1
    assert page.locator(".runs[data-question='0'] td").get_by_text(HOSTILE, exact=True).count() > 3
    assert page.locator("img").count() == 0


def test_no_other_script_runs_on_the_page(browser, written, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(written.read_text().replace("</body>", "<script>document.title = 'hacked'</script></body>"))
    window = browser.new_context()
    page = window.new_page()
    page.goto(bad.as_uri())
    assert page.title() != "hacked" and drawn(page)[0] > 2000
    window.close()


def test_dark_colours_and_a_narrow_window_are_drawn_anew(browser, written):
    for page in opened(browser, written, color_scheme="light"):
        light = drawn(page)
        page.emulate_media(color_scheme="dark")
        assert drawn(page) != light
        page.set_viewport_size({"width": 390, "height": 800})
        page.wait_for_function("document.querySelector('.plot canvas').clientWidth < 390")
        assert drawn(page)[0] > 500
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_a_script_the_page_is_whole(browser, written):
    for page in opened(browser, written, java_script_enabled=False):
        assert page.locator("details.still svg").first.is_visible()
        assert page.locator(".chart canvas").count() == 0
        assert page.locator("details.still").nth(1).locator("tbody tr").count() == 6


def test_still_figures_come_back_on_paper(page):
    assert not page.locator("details.still svg").first.is_visible()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.still svg").first.is_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert not page.locator("details.still svg").first.is_visible()
