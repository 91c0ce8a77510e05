"""The interactive page: what is in the file, and what it does in a browser."""

import base64
import gzip
import json
import os
import re

import browser as browsers
import keras
import numpy as np
import pytest
from PIL import Image

from keras_vit import MLPMixer, ViT, explain
from keras_vit.images import ImageConverter, ImagePreprocessor

TINY = {"image_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
GRID = (4, 6)
LABELS = ["cat", "dog", "<b>emu</b>", "fox", "gnu"]


def classifier(pooling="token", **trunk):
    keras.utils.set_random_seed(0)
    backbone = ViT.backbone_cls(**TINY, **trunk)
    preprocessor = ImagePreprocessor(ImageConverter(backbone.image_size, crop_mode="squash"))
    model = ViT(backbone, 5, preprocessor=preprocessor, labels=LABELS, pooling=pooling)
    random = np.random.default_rng(1)
    model.set_weights(
        [w + random.normal(0, 0.3, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    return model


def pictures(count=2):
    random = np.random.default_rng(2)
    return [random.integers(0, 256, (40, 60, 3), "uint8") for _ in range(count)]


@pytest.fixture(scope="module")
def model():
    return classifier(reg_tokens=1)


@pytest.fixture(scope="module")
def made(model):
    return explain.page(model, pictures(), heads_of=[0, -1])


def read(page):
    about = re.search(r'id="about">(.*?)</script>', page.html, re.S)[1]
    data = re.search(r'id="data">(.*?)</script>', page.html, re.S)[1]
    return json.loads(about), gzip.decompress(base64.b64decode(data))


def unpacked(blob, start, rows, columns):
    largest = np.frombuffer(blob, "<f4", rows, start)[:, None]
    return np.frombuffer(blob, "uint8", rows * columns, start + 4 * rows).reshape(rows, columns) * (
        largest / 255
    )


def test_the_file_holds_the_maps(model, made):
    about, blob = read(made)
    images = pictures()
    maps = explain.attention_maps(model, images)
    assert about["grid"] == list(GRID) and about["prefix"] == 2
    for i, picture in enumerate(about["images"]):
        assert [len(block["heads"]) for block in picture["blocks"]] == [2, 0, 2]
        for m, block in zip(maps, picture["blocks"], strict=True):
            near = {"atol": m.max() / 254}
            np.testing.assert_allclose(unpacked(blob, *block["mean"]), m[i].mean(0), **near)
            np.testing.assert_allclose(unpacked(blob, *block["max"]), m[i].max(0), **near)
        np.testing.assert_allclose(
            unpacked(blob, *picture["blocks"][2]["heads"][1]), maps[2][i, 1], **near
        )
        total = explain.rollout(maps)[i]
        np.testing.assert_allclose(
            unpacked(blob, *picture["rollout"]), total, atol=total.max() / 254
        )
        ids = explain.top_classes(model, images, 5)
        wanted = explain.class_relevance(model, images, ids)[i]
        for j, cls in enumerate(picture["classes"]):
            assert cls["name"] == LABELS[ids[i, j]]
            found = unpacked(blob, *picture["relevance"][j]).reshape(GRID)
            np.testing.assert_allclose(found, wanted[j], atol=wanted.max() / 254)
    distances = np.array(about["images"][0]["distances"])
    wanted = explain.attention_distance(model, images[:1])
    np.testing.assert_allclose(distances, wanted, rtol=1e-4)


def test_the_file_is_self_contained(made):
    text = made.html
    assert "<b>emu" not in text
    assert not re.search(r"https?://|//cdn|@import|url\(|fetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    assert made.size == len(text.encode())
    notebook = made._repr_html_()
    assert notebook.startswith("<iframe srcdoc=") and "<!doctype" not in notebook


def test_a_large_page_keeps_fewer_heads_or_is_refused(model, tmp_path):
    images = pictures(1)
    all_heads = explain.page(model, images)
    assert [len(b["heads"]) for b in read(all_heads)[0]["images"][0]["blocks"]] == [2, 2, 2]
    less = explain.page(model, images, limit=all_heads.size - 1)
    assert less.size < all_heads.size
    with pytest.raises(ValueError, match="The page would have .* MB, more than the limit"):
        explain.page(model, images, tmp_path / "no.html", limit=1000)
    assert not any(tmp_path.iterdir())


def test_models_without_attention_have_no_page():
    backbone = MLPMixer.backbone_cls(image_size=16, patch_size=8, embed_dim=8, depth=1)
    preprocessor = ImagePreprocessor(ImageConverter(16))
    mixer = MLPMixer(backbone, 3, preprocessor=preprocessor, pooling="avg")
    with pytest.raises(ValueError, match="attention blocks"):
        explain.page(mixer, pictures(1))


# --- In a browser ---


@pytest.fixture(scope="module")
def browser():
    if not browsers.DRIVER or not browsers.CHROMIUM:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    with browsers.open_browser() as opened:
        yield opened


SAID = "return document.getElementById('said').textContent"
SEEN = "return document.querySelector('.panel canvas').toDataURL()"


@pytest.fixture
def opened(browser, made, tmp_path):
    made.save(tmp_path / "page.html")
    browser.window(1000, 800)
    browser.requests(), browser.errors()
    browser.do("url", url=(tmp_path / "page.html").as_uri())
    browser.wait("return document.querySelector('.panel canvas') && state.image === 0")
    yield browser
    asked = browser.requests()
    assert asked == [(tmp_path / "page.html").as_uri()], "a request"
    assert browser.errors() == []


def test_hover_click_and_tap_choose_the_query(opened):
    assert "class token" in opened.run(SAID)
    before = opened.run(SEEN)
    opened.point(".panel canvas", 5.5 / 6, 0.5 / 4, press=False)
    assert "row 0, column 5" in opened.run(SAID)
    hovered = opened.run(SEEN)
    assert hovered != before
    opened.point(".panel canvas", 2.5 / 6, 3.5 / 4)
    assert "row 3, column 2" in opened.run(SAID)
    opened.point(".panel canvas", 0.5 / 6, 0.5 / 4, press=False)  # it is held
    assert "row 3, column 2" in opened.run(SAID)
    opened.window(390, 844, mobile=True)
    opened.point(".panel canvas", 4.5 / 6, 1.5 / 4, kind="touch")
    opened.wait(SAID + ".includes('row 1, column 4')")
    assert opened.run("return document.documentElement.scrollWidth") <= 390


def test_without_a_class_token_all_patches_are_shown(browser, tmp_path):
    model = classifier("avg", class_token=False, reg_tokens=2)
    explain.page(model, pictures(1), tmp_path / "page.html")
    browser.window(1000, 800)
    browser.do("url", url=(tmp_path / "page.html").as_uri())
    browser.wait("return document.querySelector('.panel canvas') && panels.length === 2")
    assert "from all patches" in browser.run(SAID)
    assert browser.run("return document.getElementById('token').textContent") == "All patches"
    shown = browser.run("return Array.from(values(0).values)")
    (maps,) = explain.attention_maps(model, pictures(1), blocks=-1)
    np.testing.assert_allclose(shown, maps[0].mean(0)[2:, 2:].mean(0), atol=maps.max() / 254)
    assert browser.errors() == []


def test_keys_choose_query_block_and_head(opened):
    for key, words in (
        ("right", "row 2, column 3"),
        ("left", "row 2, column 2"),
        ("down", "row 3, column 2"),
        ("down", "row 3, column 2"),
        ("up", "row 2, column 2"),
        ("[", "block 1, mean"),
        ("[", "block 0, mean"),
        (".", "block 0, maximum"),
        (".", "block 0, head 0"),
        ("]", "block 1, maximum"),
        ("c", "the class token"),
    ):
        opened.press(key)
        assert words in opened.run(SAID), key


def test_a_query_shows_its_own_row(opened, model):
    opened.press("right")
    shown = opened.run("return Array.from(values(0).values)")
    maps = explain.attention_maps(model, pictures(), blocks=-1)[0]
    row = maps[0].mean(0)[2 + 2 * 6 + 3, 2:]
    np.testing.assert_allclose(shown, row, atol=maps[0].max() / 254)


def test_tabs_classes_pictures_and_two_blocks(opened):
    names = opened.run("return [...document.querySelectorAll('#tabs button')].map((b) => b.value)")
    assert names == ["attention", "rollout", "relevance", "distance"]
    seen = set()
    for i, _ in enumerate(names):
        opened.point(f"#tabs button:nth-child({i + 1})", 0.5, 0.5)
        assert opened.run("return state.tab") == names[i]
        seen.add(opened.run(SEEN) if names[i] != "distance" else "")
    assert len(seen) == 4
    assert opened.run("return document.querySelectorAll('#chart circle').length") == 6
    opened.point("#tabs button:nth-child(3)", 0.5, 0.5)
    opened.point("#classes button:nth-child(2)", 0.5, 0.5)
    assert opened.run("return state.cls") == 1 and opened.run(SEEN) not in seen
    opened.point("#tabs button:nth-child(1)", 0.5, 0.5)
    opened.point("#two", 0.5, 0.5)
    widths = "return [...document.querySelectorAll('.panel')].map((p) => p.offsetWidth)"
    assert min(opened.run(widths)) > 300
    drawn = "return [...document.querySelectorAll('.panel canvas')].map((c) => c.toDataURL())"
    assert len(set(opened.run(drawn))) == 2
    opened.point("#pictures button:nth-child(2)", 0.5, 0.5)
    assert opened.run("return state.image") == 1


def test_the_button_writes_a_png(opened, tmp_path):
    folder = tmp_path / "down"
    folder.mkdir()
    opened.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    opened.point("#save", 0.5, 0.5)
    for _ in range(300):
        if [p.name for p in folder.iterdir()] == ["attention.png"]:
            break
        opened.run("return 1")
    with Image.open(folder / "attention.png") as picture:
        size = opened.run(
            "const c = document.querySelector('.panel canvas'); return [c.width, c.height]"
        )
        assert list(picture.size) == size


def test_dark_and_light(opened):
    back = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(back)
    opened.window(1000, 800, dark=True)
    assert opened.run(back) != light


@pytest.mark.skipif("KEEP" not in os.environ, reason="writes screenshots to look at")
def test_screenshots(opened):
    for name, size in (("laptop", (1000, 800)), ("phone", (390, 844))):
        opened.window(*size, mobile=name == "phone", dark=name == "phone")
        opened.screenshot(f"{os.environ['KEEP']}/{name}.png")
