"""The style's colours, and the HTML that `show` and `scrubber` put on a page."""

import re
import shutil
from xml.etree import ElementTree as ET

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from skimage.color import rgb2lab

from latentspace import figures

WHITE, DARK = "#ffffff", "#14181e"

# Machado, Oliveira and Fernandes (2009), severity 1; act on linear RGB.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def linear(colours):
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in colours])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def as_seen(colours, sight):
    rgb = np.clip(linear(colours) @ np.transpose(SIGHTS[sight]), 0, 1)
    srgb = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    return rgb2lab(srgb[None])[0]


def contrast(one, other):
    dark, light = sorted(linear([one, other]) @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        figures.use_style()
        yield
    plt.close("all")


def curves():
    fig, ax = plt.subplots()
    x = np.linspace(0, 10, 300)
    for i in range(3):
        ax.plot(x, np.sin(x + i), label=f"seed {i}")
    ax.set(xlabel="time (s)", ylabel=r"$\sin(\omega t)$", title="a < b & c")
    ax.grid()
    ax.legend()
    return fig


def cloud(count, seed=0, size=(5.2, 5.2), classes=10):
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=count)
    z = rng.normal(size=(count, 2)) + 3 * np.stack([np.cos(0.6 * y), np.sin(0.6 * y)], 1)
    fig, ax = plt.subplots(figsize=size)
    ax.scatter(*z.T, c=figures.class_colours(y), s=4)
    ax.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(-7, 7), ylim=(-7, 7))
    return fig


def parsed(markup):
    return ET.fromstring(re.sub("<script>.*</script>", "", markup, flags=re.DOTALL))


# Colours


@pytest.mark.parametrize("ground", [WHITE, DARK])
def test_palette_has_contrast_on_both_grounds(ground):
    midtone = [matplotlib.colors.to_hex(figures.MIDTONE(v)) for v in np.linspace(0, 1, 21)]
    for colour in (*figures.PALETTE, *midtone, *figures.class_colours([-1])):
        assert contrast(colour, ground) >= 3, colour


@pytest.mark.parametrize("sight", SIGHTS)
def test_palette_is_told_apart(sight):
    lab = as_seen(figures.PALETTE, sight)
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1000 * np.eye(len(lab))
    assert apart.min() >= 17
    assert apart[:5, :5].min() >= 23


def test_class_colours():
    colours = figures.class_colours(np.array([0, 9, 10, -1]))
    assert list(colours[:3]) == [figures.PALETTE[0], figures.PALETTE[9], figures.PALETTE[0]]
    assert colours[3] not in figures.PALETTE


# show


def test_figure_is_accessible_and_follows_the_theme():
    markup = figures.figure_html(curves(), alt='Three "sines" < 1', caption="`x` < *y* & <b>")
    figure = parsed(markup)
    svg = figure.find("svg")
    assert (svg.get("role"), svg.get("aria-label")) == ("img", 'Three "sines" < 1')
    caption = markup.partition("<figcaption")[2]
    assert "<code>x</code> &lt; <em>y</em> &amp; &lt;b&gt;" in caption
    assert "currentColor" in markup
    assert figures.INK not in markup
    assert "#ffffff" not in markup  # no ground of its own
    assert "max-width:672px" in svg.get("style")


def test_figure_is_small_deterministic_and_without_foreign_matter():
    markup = figures.figure_html(curves(), alt="Sines")
    assert markup == figures.figure_html(curves(), alt="Sines")
    assert len(markup) < 40_000
    assert not re.search(r"<style|<metadata|<!--|<\?xml|matplotlib|http|\d{4}-\d\d-\d\d", markup)


def test_ids_are_unique_and_references_resolve():
    one = figures.figure_html(curves(), alt="One")
    two = figures.figure_html(curves(), alt="Two")
    ids = [set(re.findall(r' id="([^"]+)"', markup)) for markup in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    for markup, names in zip((one, two), ids, strict=True):
        assert len(re.findall(r' id="', markup)) == len(names)
        assert set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', markup)) == names


def test_large_point_clouds_become_pixels():
    fig = cloud(10_000, size=(7, 5))
    markup = figures.figure_html(fig, alt="Ten clouds")
    assert markup.count("<image") == 1
    assert len(markup) < 150_000
    assert not fig.axes[0].collections[0].get_rasterized()  # the figure is left as it was
    assert "<image" not in figures.figure_html(cloud(100), alt="Few points")


def test_pictures_stay_true():
    picture = np.add.outer(np.arange(60), np.arange(60)).astype(np.uint8)
    fig, ax = plt.subplots(figsize=(1, 1))
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    assert "data:image/webp" in figures.figure_html(fig, alt="A ramp")


def test_show_displays_html_once_and_closes(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    fig = curves()
    assert figures.show(fig, alt="Sines") is None
    assert plt.get_fignums() == []
    assert shown[0]._repr_html_().startswith("<figure")
    assert repr(shown[0]) == "Figure: Sines"


def test_scrubber_shows_what_scrubber_html_returns_and_closes_its_figures(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    frames = [cloud(9, 0), cloud(9, 1)]
    markup = figures.scrubber_html(frames, ["a", "b"], alt="Move")
    figures.scrubber(frames, ["a", "b"], alt="Move")
    assert shown[0]._repr_html_() == markup
    assert not set(plt.get_fignums()) & {frame.number for frame in frames}


@pytest.mark.parametrize("alt", ["", "  ", None])
def test_alt_text_is_required(alt):
    with pytest.raises(ValueError, match="alt"):
        figures.show(curves(), alt=alt)
    with pytest.raises(ValueError, match="alt"):
        figures.scrubber([curves()], ["a"], alt=alt)


# scrubber


def test_scrubber_shows_its_last_frame_without_a_script():
    markup = figures.scrubber_html([cloud(9, i) for i in range(3)], ["a", "b", "<c>"], alt="Move")
    stage, bar = list(parsed(markup))[:2]
    frames = stage.findall("svg[@aria-hidden]")
    assert ["visibility:hidden" in frame.get("style") for frame in frames] == [True, True, False]
    assert stage.get("aria-label") == "Move"
    assert "visibility:hidden" in bar.get("style")
    assert bar.find("button").text == "Play"
    assert bar.find("input").get("aria-label") == "Frame"
    assert bar.find("output").text == "<c>"
    assert "http" not in markup


@pytest.mark.parametrize(("first", "shown"), [(0, 0), (1, 1), (-2, 1)])
def test_scrubber_opens_on_the_frame_that_is_asked_for(first, shown):
    markup = figures.scrubber_html([cloud(9, i) for i in range(3)], "abc", alt="Move", first=first)
    stage, bar = list(parsed(markup))[:2]
    hidden = ["visibility:hidden" in svg.get("style") for svg in stage.findall("svg[@aria-hidden]")]
    assert hidden == [i != shown for i in range(3)]
    assert bar.find("input").get("value") == str(shown)
    assert bar.find("output").text == bar.find("input").get("aria-valuetext") == "abc"[shown]


def test_scrubber_shares_its_letters():
    one = figures.scrubber_html([cloud(9)], ["a"], alt="Move")
    four = figures.scrubber_html([cloud(9) for _ in range(4)], "abcd", alt="Move")
    ids = re.findall(r' id="([^"]+)"', four)
    assert set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', four)) <= set(ids)
    assert four.count("<path id=") == one.count("<path id=")


def test_scrubber_stays_below_two_megabytes(monkeypatch):
    sizes = []
    for budget in (10**9, 50_000):
        monkeypatch.setattr(figures, "_SCRUBBER_BYTES", budget)
        frames = [cloud(4000, seed) for seed in range(2)]
        sizes.append(len(figures.scrubber_html(frames, "ab", alt="Move")))
    assert sizes[0] * 40 / 2 < 2_000_000
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_scrubber_of_images(shape):
    frames = [np.full(shape, value, np.uint8) for value in (0, 255)]
    stage = parsed(figures.scrubber_html(frames, ["dark", "light"], alt="Images"))[0]
    assert [svg.get("viewBox") for svg in stage.findall("svg[@aria-hidden]")] == ["0 0 30 20"] * 2


def test_scrubber_does_not_hide_the_clip_path_that_its_frames_share():
    """An image in axes is clipped; the path's first copy lies in a frame that is hidden."""
    frames = []
    for value in (0, 255):
        fig, ax = plt.subplots()
        ax.imshow(np.full((3, 4), value, np.uint8))
        frames.append(fig)
    stage = parsed(figures.scrubber_html(frames, "ab", alt="Move"))[0]
    clips = list(stage.iter("clipPath"))
    assert clips
    assert all("visibility:visible" in clip.get("style", "") for clip in clips)


def test_scrubber_refuses():
    with pytest.raises(ValueError, match="0 frames"):
        figures.scrubber([], [], alt="None")
    with pytest.raises(ValueError, match="1 frames .* 2"):
        figures.scrubber([curves()], ["a", "b"], alt="One")
    with pytest.raises(ValueError, match="float64"):
        figures.scrubber([np.zeros((4, 4))], ["a"], alt="Floats")
    with pytest.raises(IndexError):
        figures.scrubber([curves()], ["a"], alt="One", first=1)


@pytest.mark.site
def test_scrubbers_run_side_by_side_in_a_browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    arrays = [np.full((8, 8), value, np.uint8) for value in range(4)]
    page_text = "<!doctype html>" + "".join(
        figures.scrubber_html(frames, ["w", "x", "y", "z"], alt="Move", caption=caption)
        for frames, caption in (([cloud(9, i) for i in range(4)], "one"), (arrays, "two"))
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(error))
        page.set_content(page_text)
        visible = """figure => [...figure.querySelectorAll("svg[aria-hidden]")]
            .map(svg => getComputedStyle(svg).visibility == "visible")"""
        one, two = page.locator("figure").all()
        slider, button = one.get_by_role("slider", name="Frame"), one.get_by_role("button")
        slider.focus()
        for key, frame in (("Home", 0), ("ArrowRight", 1), ("End", 3)):
            page.keyboard.press(key)
            assert one.evaluate(visible) == [i == frame for i in range(4)]
            assert slider.get_attribute("aria-valuetext") == "wxyz"[frame]
        button.press("Enter")  # plays from the start, and stops at the end
        assert button.inner_text() == "Pause"
        assert one.evaluate(visible) == [True, False, False, False]
        sync_api.expect(button).to_have_text("Play", timeout=5000)
        assert one.evaluate(visible) == two.evaluate(visible) == [False, False, False, True]
        assert errors == []
        browser.close()


# Images


@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 5, 4, 3)])
@pytest.mark.parametrize("frames", [None, ["#ff0000"] * 7])
def test_image_grid(shape, frames):
    images = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    _, ax = plt.subplots()
    figures.image_grid(ax, images, columns=4, frames=frames)
    drawn = np.asarray(ax.images[0].get_array())
    border = 1 if frames is None else 2
    high, wide = 5 + 2 * border, 4 + 2 * border
    assert drawn.shape == (2 * high, 4 * wide, 4)
    sixth = drawn[high + border :, wide + border :][:5, :4]
    grey = images[5] if images.ndim == 4 else np.repeat(images[5][..., None], 3, -1)
    np.testing.assert_array_equal(sixth[..., :3], grey)
    assert drawn[-high:, -wide:].max() == 0  # the eighth place is empty
    if frames is not None:
        assert drawn[1, 1].tolist() == [255, 0, 0, 255]


def test_image_grid_takes_floats_and_refuses_other_shapes():
    _, ax = plt.subplots()
    figures.image_grid(ax, np.full((1, 2, 2), 0.5))
    assert ax.images[0].get_array()[1, 1].tolist() == [128, 128, 128, 255]
    for shape in [(0, 2, 2), (2, 2), (1, 2, 2, 4)]:
        with pytest.raises(ValueError, match="images must be"):
            figures.image_grid(ax, np.zeros(shape))


def test_panel_labels():
    fig, axes = plt.subplots(2, 2)
    axes[0, 0].set_title("First")
    figures.panel_labels(axes)
    assert [ax.get_title() for ax in fig.axes] == ["(a) First", "(b)", "(c)", "(d)"]


def test_outside_a_notebook_show_prints_the_alt_text(capsys):
    figures.show(curves(), alt="Sines")
    assert capsys.readouterr().out == "Figure: Sines\n"
