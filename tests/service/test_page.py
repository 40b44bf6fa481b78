"""The page at / in a real browser: mouse, keyboard, files, faults, dark and light."""

import io
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Error, Page, Route, expect, sync_playwright

from mimodel.artifact import Artifact
from service.settings import Settings
from tests.service.bodies import geotiff_bytes, npy_bytes
from tests.service.conftest import Running
from tests.service.test_load import in_a_thread

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium; Debian has it as the package of that name"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # No sandbox, because tests may run as root; the page is our own.
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def page(browser: Browser, service: Running) -> Iterator[Page]:
    """The page, which asks its own service alone and has no fault on its console."""
    page = browser.new_page(viewport={"width": 1100, "height": 1400})
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(service.url)
    expect(page.locator("#model")).to_contain_text("reads B04, B03, B02, B08")
    yield page
    page.close()
    hosts = {url for url in asked if not url.startswith((service.url, "blob:", "data:"))}
    assert hosts == set()
    # A refusal is no fault of the page.
    assert [text for text in said if "status of 4" not in text] == []


def with_sample(page: Page) -> None:
    page.get_by_role("button", name="Use the index's sample").click()
    expect(page.locator("#status")).to_contain_text("pixels. Choose one")


def pixels_of(page: Page, canvas: str) -> bool:
    """Whether anything is drawn on a canvas."""
    drawn: bool = page.evaluate(
        """(id) => { const c = document.getElementById(id);
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        return d.some((v, i) => i % 4 === 3 && v > 0); }""",
        canvas,
    )
    return drawn


def test_a_click_shows_the_map_and_what_search_finds(page: Page, client: httpx.Client) -> None:
    with_sample(page)
    assert pixels_of(page, "image")
    assert not pixels_of(page, "map")
    box = page.locator("#image").bounding_box()
    assert box
    summary = client.get("/index").json()
    body = client.get("/index/sample.npy").content
    _, height, width = np.load(io.BytesIO(body)).shape
    row, col = height // 4, width // 2
    # The middle of that pixel, wherever the layout has put it.
    page.locator("#image").click(
        position={
            "x": (col + 0.5) * box["width"] / width,
            "y": (row + 0.5) * box["height"] / height,
        }
    )
    expect(page.locator("#status")).to_contain_text(f"Row {row}, column {col}: 12 nearest patches")
    assert pixels_of(page, "map")
    described = f"Similarity to row {row}, column {col}"
    expect(page.locator("#map")).to_have_attribute("aria-label", described)
    sample = summary["sample"]
    query = {name: sample[name] for name in ("scale", "offset", "nodata")}
    query |= {"bands": ",".join(sample["bands"]), "row": row, "col": col}
    answer = client.post(
        "/search",
        params={**query, "count": 12, "per_place": 1},
        content=body,
        headers={"Content-Type": "application/x-npy"},
    ).json()["queries"][0]["nearest"]
    shown = page.locator("#nearest li").all_inner_texts()
    assert len(shown) == 12
    for text, one in zip(shown, answer, strict=True):
        assert f"{one['tile']}, {one['acquired'][:10]}" in text
        assert f"{one['distance']:.2f}" in text
    for picture in page.locator("#nearest img").all():
        assert picture.evaluate("(image) => image.complete && image.naturalWidth") == 64


def test_by_keyboard_alone(page: Page) -> None:
    page.locator("#file").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the button behind it
    expect(page.locator("#status")).to_contain_text("Choose one")
    expect(page.locator("#image")).to_be_focused()
    before = page.locator("#image").screenshot()
    for key in ("Shift+ArrowDown", "ArrowDown", "Shift+ArrowLeft", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    assert page.locator("#image").screenshot() != before
    text = page.locator("#status").inner_text()
    page.keyboard.press("Enter")
    place = text.split(". Enter")[0]
    expect(page.locator("#status")).to_contain_text(f"{place}: 12 nearest")
    # On to the first patch, and to what is nearest to that one.
    first = page.locator("#nearest button").first
    for _ in range(12):
        if first.evaluate("(element) => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Patch of ")
    expect(first).to_be_focused()


def test_files_of_both_kinds(page: Page, tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(0.02, 0.4, (4, 80, 96)).astype(np.float32)
    image[:, :10, :10] = np.nan
    (tmp_path / "image.npy").write_bytes(npy_bytes(image))
    (tmp_path / "image.tif").write_bytes(geotiff_bytes(image))
    for name in ("image.npy", "image.tif"):
        page.locator("#file").set_input_files(tmp_path / name)
        expect(page.locator("#status")).to_have_text(f"{name}: 80 × 96 pixels. Choose one.")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("Row 40, column 48: 12 nearest")


class Held:
    """Requests that are let through when the test says so, the first of a path alone."""

    def __init__(self, page: Page, path: str) -> None:
        self.route: Route | None = None
        page.route(f"**/{path}*", self._hold)

    def _hold(self, route: Route) -> None:
        if self.route is None:
            self.route = route
        else:
            route.continue_()

    def release(self, page: Page) -> None:
        """Answer it now, if anybody still waits; and wait until the page has had the time."""
        assert self.route
        with suppress(Error):  # it was given up
            self.route.continue_()
        page.wait_for_timeout(500)


def test_of_two_images_the_one_that_was_chosen_last_is_shown(page: Page, tmp_path: Path) -> None:
    for name, height in (("slow", 80), ("quick", 96)):
        image = np.random.default_rng(0).uniform(0.02, 0.4, (4, height, 70)).astype(np.float32)
        (tmp_path / f"{name}.npy").write_bytes(npy_bytes(image))
    held = Held(page, "preview")
    asked: list[int] = []
    page.on(
        "request",
        lambda one: (
            asked.append(len(one.post_data_buffer or b"")) if "/similarity" in one.url else None
        ),
    )
    page.locator("#file").set_input_files(tmp_path / "slow.npy")
    expect(page.locator("#status")).to_have_text("Reading slow.npy…")
    page.locator("#file").set_input_files(tmp_path / "quick.npy")
    expect(page.locator("#status")).to_have_text("quick.npy: 96 × 70 pixels. Choose one.")
    held.release(page)
    expect(page.locator("#status")).to_have_text("quick.npy: 96 × 70 pixels. Choose one.")
    assert page.locator("#image").evaluate("(canvas) => canvas.height / canvas.width") == 96 / 70
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Row 48, column 35: 12 nearest")
    assert asked == [(tmp_path / "quick.npy").stat().st_size]


def test_an_image_is_asked_about_as_it_is_shown(page: Page, tmp_path: Path) -> None:
    """While another one is read, and whatever is typed into the form meanwhile."""
    for name, height in (("shown", 80), ("coming", 96)):
        image = np.random.default_rng(0).uniform(0.02, 0.4, (4, height, 70)).astype(np.float32)
        (tmp_path / f"{name}.npy").write_bytes(npy_bytes(image))
    page.locator("#file").set_input_files(tmp_path / "shown.npy")
    expect(page.locator("#status")).to_contain_text("80 × 70 pixels")
    held = Held(page, "preview")
    page.locator("#file").set_input_files(tmp_path / "coming.npy")
    expect(page.locator("#status")).to_have_text("Reading coming.npy…")
    page.get_by_text("Bands, and how numbers become reflectance").click()
    page.get_by_label("Scale").fill("0.5")
    with page.expect_request("**/similarity*") as asked:
        page.locator("#image").click()
    assert len(asked.value.post_data_buffer or b"") == (tmp_path / "shown.npy").stat().st_size
    assert "scale" not in asked.value.url
    held.release(page)
    expect(page.locator("#status")).to_have_text("coming.npy: 96 × 70 pixels. Choose one.")


def test_an_answer_to_an_earlier_question_hides_no_complaint(page: Page) -> None:
    with_sample(page)
    held = Held(page, "similarity")
    page.keyboard.press("Enter")
    expect(page.locator("#nearest li")).to_have_count(12)
    page.locator("#file").set_input_files(
        {"name": "x.npy", "mimeType": "", "buffer": b"this is no array"}
    )
    expect(page.get_by_role("alert")).to_be_visible()
    held.release(page)
    expect(page.locator("#status")).to_contain_text("12 nearest")
    expect(page.get_by_role("alert")).to_be_visible()
    page.locator("#image").click()  # what is asked after it does
    expect(page.get_by_role("alert")).to_be_hidden()


def test_of_two_filters_the_last_counts(page: Page) -> None:
    with_sample(page)
    page.keyboard.press("Enter")
    expect(page.locator("#nearest li")).to_have_count(12)
    held = Held(page, "search")
    given_up: list[str] = []
    page.on("requestfailed", lambda one: given_up.append(one.url))
    page.get_by_label("Months").fill("7")
    page.keyboard.press("Tab")
    page.wait_for_timeout(100)
    page.get_by_label("Months").fill("2")
    page.keyboard.press("Tab")
    expect(page.locator("#nearest li").first).to_contain_text("2019-02-10")
    held.release(page)
    texts = page.locator("#nearest li").all_inner_texts()
    assert texts
    assert all("2019-02-10" in text for text in texts)
    # And the service is told that nobody waits for the other.
    assert any("/search" in url and "months=7" in url for url in given_up)


def test_what_the_service_refuses_is_said(page: Page, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(1000, 4000, (3, 70, 80), np.uint16)
    (tmp_path / "numbers.npy").write_bytes(npy_bytes(numbers))
    page.locator("#file").set_input_files(tmp_path / "numbers.npy")
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("expected 4 bands")
    (tmp_path / "numbers.npy").write_bytes(npy_bytes(np.concatenate([numbers, numbers[:1]])))
    page.locator("#file").set_input_files([])
    page.locator("#file").set_input_files(tmp_path / "numbers.npy")
    expect(problem).to_contain_text("digital numbers; say scale and offset")
    page.get_by_text("Bands, and how numbers become reflectance").click()
    page.get_by_label("Scale").fill("0.0001")
    page.get_by_role("button", name="Read it again so").click()
    expect(page.locator("#status")).to_contain_text("70 × 80 pixels")
    expect(problem).to_be_hidden()
    (tmp_path / "image.png").write_bytes(b"no matter")
    page.locator("#file").set_input_files(tmp_path / "image.png")
    expect(problem).to_contain_text("ends in .npy, .tif or .tiff")


def test_filters_of_the_search(page: Page, client: httpx.Client) -> None:
    with_sample(page)
    page.keyboard.press("Enter")
    expect(page.locator("#nearest li")).to_have_count(12)
    page.get_by_label("Months").fill("2")
    page.keyboard.press("Tab")
    expect(page.locator("#nearest li").first).to_contain_text("2019-02-10")
    texts = page.locator("#nearest li").all_inner_texts()
    assert all("2019-02-10" in text for text in texts)
    tile = sorted(client.get("/index").json()["tiles"])[1]
    page.get_by_label("Tile").select_option(tile)
    expect(page.locator("#nearest li").first).to_contain_text(tile)
    page.get_by_label("Alike in").select_option("both")
    expect(page.locator("#nearest li").first).to_contain_text(tile)
    page.get_by_label("Months").fill("1")
    page.keyboard.press("Tab")
    expect(page.locator("#nothing")).to_have_text("The index has no such patch.")


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (colour) => colour.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return rgb(colour);
    }
    return rgb(getComputedStyle(document.body).backgroundColor);
  };
  const all = [...document.querySelectorAll("body *")].filter((e) =>
    e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  return all.map((element) => {
    const [a, b] = [light(rgb(getComputedStyle(element).color)), light(behind(element))];
    return [element.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_legible(page: Page, scheme: str) -> None:
    """Contrast of at least 4.5 to 1, as WCAG 2 AA asks."""
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    with_sample(page)
    page.keyboard.press("Enter")
    expect(page.locator("#nearest li")).to_have_count(12)
    page.get_by_text("Bands, and how numbers become reflectance").click()
    page.locator("#file").set_input_files(
        {"name": "x.npy", "mimeType": "", "buffer": b"this is no array"}
    )
    expect(page.get_by_role("alert")).to_be_visible()
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 30
    assert [pair for pair in ratios if pair[1] < 4.5] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground.split("(")[1].split(",")[0]) < 128) == (scheme == "dark")
    # Nothing is wider than a small screen.
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_key_is_asked_for_and_no_index_is_no_fault(browser: Browser, artifact: Artifact) -> None:
    key = "correct-horse-battery-staple"
    with in_a_thread(artifact, Settings.model_validate({"api_key": key})) as client:
        page = browser.new_page()
        page.goto(str(client.base_url))
        expect(page.get_by_role("alert")).to_contain_text("send a key")
        page.get_by_label("Key of this service").fill(key)
        page.get_by_role("button", name="Use the key").click()
        expect(page.locator("#model")).to_contain_text("reads B04")
        expect(page.locator("#search")).to_be_hidden()
        expect(page.locator("#sample")).to_be_hidden()
        image = np.random.default_rng(0).uniform(0.02, 0.4, (4, 64, 64)).astype(np.float32)
        page.locator("#file").set_input_files(
            {"name": "image.npy", "mimeType": "", "buffer": npy_bytes(image)}
        )
        expect(page.locator("#status")).to_contain_text("64 × 64 pixels")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text("Row 32, column 32.")
        page.close()


def test_the_page_is_held_to_its_own_origin(client: httpx.Client) -> None:
    for path, kind in (("/", "html"), ("/web/page.js", "javascript"), ("/web/page.css", "css")):
        answer = client.get(path)
        assert answer.status_code == 200
        assert kind in answer.headers["Content-Type"]
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "http://" not in answer.text.replace("http://www.w3.org", "")
        assert "https://" not in answer.text
    for path in ("/web/", "/web/../app.py", "/web/%2e%2e/app.py", "/web/page.html"):
        assert client.get(path).status_code == 404
