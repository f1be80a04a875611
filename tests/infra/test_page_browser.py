"""An evaluation's page in Chromium: sounds play, keys and sorting work, nothing overflows, hostile text is text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from pipelines.evaluate.page.page import render_page
from tests.support.browser import explain_missing_browser, measure_contrast, open_page, start_browser, wait_until
from tests.support.example_report import HOSTILE_CAPTION, HOSTILE_NAME, PROMPTS, SYSTEMS, make_report_folder

MISSING = explain_missing_browser()
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_page(make_report_folder(tmp_path_factory.mktemp("report"), seconds=20.0))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as started:
        yield started


@pytest.fixture
def page(browser: Any, report_page: Path) -> Iterator[Any]:
    with open_page(browser, report_page) as opened:
        yield opened
        assert opened.problems == []


def list_playing(page: Any) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('audio')].filter(a => !a.paused).map(a => a.ariaLabel)")


def wait_until_playing(page: Any, label: str, *, after_s: float = 0.0) -> None:
    wait_until(
        page,
        "([label, t]) => [...document.querySelectorAll('audio')].some("
        "a => a.ariaLabel === label && !a.paused && a.currentTime > t)",
        [label, after_s],
    )


def position_of(page: Any, label: str) -> float:
    return page.evaluate("l => [...document.querySelectorAll('audio')].find(a => a.ariaLabel === l).currentTime", label)


def first_column(page: Any) -> list[str]:
    names = page.locator(".results:not([hidden]) tbody th.name").all_inner_texts()
    return [name.removesuffix("●").strip() for name in names]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_page_fits_and_shows_every_picture(
    browser: Any, report_page: Path, size: tuple[int, int], theme: Literal["light", "dark"]
):
    with open_page(browser, report_page, width=size[0], height=size[1], theme=theme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        page.evaluate("for (const image of document.images) image.loading = 'eager'")
        wait_until(page, "[...document.images].every(image => image.complete)")
        assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
        ground, text = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        assert (ground == "rgb(255, 255, 255)") == (theme == "light")
        assert ground != text
        assert page.problems == []


def test_hostile_text_is_text(page: Any):
    assert HOSTILE_CAPTION in page.locator(".caption").nth(2).inner_text()
    assert HOSTILE_NAME in first_column(page)
    assert page.locator("script").count() == 1
    assert page.locator("[onload], [onerror], a[href^=javascript]").count() == 0


def test_space_plays_and_pauses_one_clip(page: Any):
    page.keyboard.press("j")
    page.keyboard.press(" ")
    wait_until_playing(page, "real music, prompt 1", after_s=0.2)
    page.get_by_role("button", name="Play S 4, prompt 2").click()
    wait_until_playing(page, "S 4, prompt 2", after_s=0.2)
    assert list_playing(page) == ["S 4, prompt 2"]
    page.keyboard.press(" ")
    assert list_playing(page) == []


def test_the_next_system_goes_on_where_this_one_is(page: Any):
    page.keyboard.press("j")
    page.keyboard.press(" ")
    wait_until_playing(page, "real music, prompt 1", after_s=1.0)
    page.keyboard.press("ArrowRight")
    wait_until_playing(page, "teacher heun 18, prompt 1", after_s=1.0)
    assert list_playing(page) == ["teacher heun 18, prompt 1"]
    assert position_of(page, "teacher heun 18, prompt 1") >= position_of(page, "real music, prompt 1") - 0.1
    page.keyboard.press("h")
    wait_until_playing(page, "real music, prompt 1", after_s=1.0)
    page.keyboard.press("h")  # from the first to the last
    wait_until_playing(page, f"{HOSTILE_NAME}, prompt 1", after_s=1.0)
    page.keyboard.press("0")
    wait_until(page, "[...document.querySelectorAll('audio')].some(a => !a.paused && a.currentTime < 1)")


def test_quick_keys_leave_the_current_clip_playing_alone(page: Any):
    page.keyboard.press("j")
    page.keyboard.press(" ")
    wait_until_playing(page, "real music, prompt 1", after_s=0.5)
    for key in "lhlhllhhlljkjl":
        page.keyboard.press(key)
    current = page.locator(".clip.current audio").get_attribute("aria-label")
    wait_until_playing(page, current, after_s=0.1)
    page.wait_for_timeout(300)
    assert list_playing(page) == [current]


def test_another_prompt_starts_at_its_beginning(page: Any):
    page.keyboard.press("j")
    page.keyboard.press(" ")
    wait_until_playing(page, "real music, prompt 1", after_s=1.0)
    page.keyboard.press("j")
    wait_until_playing(page, "real music, prompt 2")
    assert position_of(page, "real music, prompt 2") < 1.0
    page.keyboard.press("ArrowUp")
    page.keyboard.press("k")  # there is none before the first
    wait_until_playing(page, "real music, prompt 1")


def test_a_spectrogram_is_the_position_in_its_clip(page: Any):
    picture = page.locator(".clip[data-system='0'] .picture").first
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    wait_until(page, "document.querySelector('.clip audio').currentTime > 1")
    assert position_of(page, "real music, prompt 1") == pytest.approx(15.0, abs=0.5)


def test_another_system_of_a_model_takes_over_the_position(page: Any):
    page.get_by_role("button", name="Play LS 4, prompt 1").click()
    wait_until_playing(page, "LS 4, prompt 1", after_s=1.0)
    page.locator("select[data-column='4']").select_option(label="LS 1")
    wait_until_playing(page, "LS 1, prompt 1", after_s=1.0)
    assert page.locator("audio[aria-label='LS 4, prompt 2']").is_hidden()
    assert page.get_by_role("button", name="Play LS 1, prompt 2").is_visible()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_clip_that_keys_reach_is_in_view(browser: Any, report_page: Path, size: tuple[int, int]):
    """Whatever is at the button's centre is the button itself: no sticky heading covers it."""
    with open_page(browser, report_page, width=size[0], height=size[1]) as page:
        page.keyboard.press("j")
        for key in "jlljhklllj":
            page.keyboard.press(key)
            assert page.evaluate(
                "(() => { const b = document.activeElement, r = b.getBoundingClientRect();"
                " return b.closest('.clip.current') !== null"
                " && document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2) === b; })()"
            )


def test_headings_sort_and_real_music_stays_below(page: Any):
    by_mmd = [s[0] for s in sorted(SYSTEMS, key=lambda s: s[6])]
    heading = page.locator(".results:not([hidden]) th", has_text="MMD")
    heading.get_by_role("button").click()
    assert first_column(page) == [*by_mmd, "real music, train"]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").press("Enter")
    assert first_column(page) == [*by_mmd[::-1], "real music, train"]
    assert heading.get_attribute("aria-sort") == "descending"
    page.locator(".results:not([hidden]) th", has_text="precision").get_by_role("button").click()
    assert first_column(page)[0] == "teacher heun 18"  # higher is better
    assert heading.get_attribute("aria-sort") is None


def test_systems_without_a_value_are_sorted_last(page: Any):
    heading = page.locator(".results:not([hidden]) th", has_text="total ms").get_by_role("button")
    for _ in range(2):
        heading.click()
        assert first_column(page)[-2] == HOSTILE_NAME


def test_columns_and_embedder_are_selectable(page: Any):
    shown = ".results:not([hidden]) thead th:visible"
    titles = " ".join(page.locator(shown).all_inner_texts())
    assert "MMD" in titles
    assert "LUFS" not in titles
    page.get_by_label("audio", exact=True).check()
    page.get_by_label("quality", exact=True).uncheck()
    titles = " ".join(page.locator(shown).all_inner_texts())
    assert "LUFS" in titles
    assert "MMD" not in titles
    page.get_by_label("quality", exact=True).check()
    page.get_by_label("embedder").select_option(label="clap-laion")
    assert page.locator(".results:not([hidden]) tbody tr").first.locator("td").first.inner_text().startswith("9.7")


def test_keys_of_other_controls_are_their_own(page: Any):
    page.get_by_label("embedder").focus()
    page.keyboard.press("l")
    page.keyboard.press("ArrowDown")
    assert page.locator(".current").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_wants(browser: Any, report_page: Path, theme: Literal["light", "dark"]):
    with open_page(browser, report_page, theme=theme) as page:
        page.get_by_label("all metrics").check()
        for selector in ("body", ".summary", "nav a", ".notes li", ".legend", ".results td small", ".results td.failed",
                         ".results .dagger", ".references td", "kbd", ".help", ".hit", ".miss", ".facts", "figcaption",
                         ".player button"):  # fmt: skip
            assert measure_contrast(page, selector) >= 4.5, selector


def test_headings_stay_in_view(browser: Any, report_page: Path):
    with open_page(browser, report_page, width=900, height=320) as page:
        for region in (".results:not([hidden])", ".listening"):
            box = page.locator(region)
            box.scroll_into_view_if_needed()
            before = page.evaluate("s => document.querySelector(s + ' thead').getBoundingClientRect().top", region)
            box.evaluate("b => b.scrollTo(150, 200)")
            assert box.evaluate("b => [b.scrollLeft, b.scrollTop].every(offset => offset > 50)")
            row = page.evaluate("s => document.querySelector(s + ' tbody th').getBoundingClientRect().left", region)
            after = page.evaluate("s => document.querySelector(s + ' thead').getBoundingClientRect().top", region)
            assert after == pytest.approx(before, abs=1)
            assert row == pytest.approx(box.bounding_box()["x"] + 1, abs=1)


def test_print_shows_all_rows_and_no_controls(page: Any):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1032, "height": 718})  # A4 landscape within its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 1032
    assert page.locator("button:visible:not(.results button), input:visible, nav:visible").count() == 0
    heights = page.evaluate("(b => [b.scrollHeight, b.clientHeight])(document.querySelector('.listening'))")
    assert heights[0] <= heights[1] + 1
    assert page.locator(".listening tbody tr:visible").count() == len(PROMPTS)


def test_without_scripts_the_sounds_have_the_browsers_own_controls(browser: Any, report_page: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report_page.as_uri())
    assert page.locator("audio[controls]:visible").count() == len(PROMPTS) * 6
    context.close()
