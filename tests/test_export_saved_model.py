"""keras_vit.export.to_saved_model: what TensorFlow alone serves is what the model computes."""

import io
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tiny_models
from PIL import Image
from tiny_models import FAMILIES, classifier, softmax

from keras_vit import explain, from_preset
from keras_vit.export import decode, to_saved_model, variants
from keras_vit.images import load_image

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="files are made on the TensorFlow backend"
)
ALL = ["serving_default", "serve_float", "serve_bytes", "features", "attention"]


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return to_saved_model(model, tmp_path_factory.mktemp("saved") / "model", attention=True)


@pytest.fixture(scope="module")
def loaded(saved):
    return tf.saved_model.load(str(saved))


@pytest.fixture(scope="module")
def pictures():
    return tiny_models.pictures()


def encoded(image, kind="PNG", **options):
    """The bytes of a picture file."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def inputs(count=2, size=(32, 32), channels=3):
    """Prepared images."""
    return np.random.default_rng(2).normal(0, 1, (count, *size, channels)).astype("float32")


# --- What is served ---

ALONE = """
import sys
blocked = ("keras", "keras_hub", "keras_vit")
for name in blocked:
    sys.modules[name] = None  # an import of these fails
import numpy as np
import tensorflow as tf
folder, pictures, out = sys.argv[1:]
loaded = tf.saved_model.load(folder)
pictures = np.load(pictures)
pictures = [pictures[k][None] for k in sorted(pictures)]
found = [loaded(x) for x in pictures]
found += [loaded.signatures["serving_default"](images=x) for x in pictures]
found += [loaded.signatures["serve_float"](images=x.astype("float32")) for x in pictures]
files = tf.stack([tf.io.encode_png(x[0]) for x in pictures])
found += [loaded.signatures["serve_bytes"](image_bytes=files)]
np.save(out, np.concatenate([x["probabilities"] for x in found]))
loaded.signatures["features"](images=pictures[0])
loaded.signatures["attention"](images=pictures[0])
mine = [name for name in sys.modules if name.split(".")[0] in blocked]
assert sorted(mine) == sorted(blocked) and not any(sys.modules[name] for name in mine), mine
"""


def test_it_runs_where_there_is_no_keras(model, saved, pictures, tmp_path):
    np.savez(tmp_path / "pictures.npz", *pictures)
    command = [sys.executable, "-c", ALONE, str(saved), "pictures.npz", "out.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = softmax(model.predict(pictures, verbose=0))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), np.tile(expected, (4, 1)), atol=1e-5)


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
def test_every_family(options, tmp_path):
    """Without preprocessing, which is the same for all."""
    model = classifier(**options)
    folder = to_saved_model(model, tmp_path / "m", preprocessing=False)
    loaded = tf.saved_model.load(str(folder))
    assert sorted(loaded.signatures) == ["features", "serving_default"]
    headless = classifier(**options, num_classes=0)
    headless.set_weights(
        [w for v, w in zip(model.weights, model.get_weights(), strict=True) if "head" not in v.path]
    )
    x = inputs(3, model.image_size)
    found, expected = (softmax(np.array(logits)) for logits in (loaded(x)["logits"], model(x)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(loaded.features(x)["features"], headless(x), atol=1e-4)


def test_every_signature(model, loaded, pictures):
    assert sorted(loaded.signatures) == sorted(ALL)
    expected = softmax(model.predict(pictures, verbose=0))
    files = tf.constant([encoded(picture) for picture in pictures])
    found = loaded.serve_bytes(files)["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    headless = classifier(num_classes=0)
    headless.set_weights(model.get_weights()[: len(headless.weights)])
    features = headless.predict(pictures, verbose=0)
    for picture, p, f in zip(pictures, expected, features, strict=True):
        np.testing.assert_allclose(loaded(picture[None])["probabilities"][0], p, atol=1e-5)
        found = loaded.features(picture[None])["features"][0]
        np.testing.assert_allclose(found, f, atol=1e-4)


def test_attention_is_that_of_explain(model, loaded, pictures):
    found = [loaded.attention(picture[None].astype("float32")) for picture in pictures]
    expected = explain.attention_maps(model, pictures)
    assert sorted(found[0]) == ["blocks_0", "blocks_1"]
    for i, maps in enumerate(expected):
        assert maps.shape == (3, 3, 5, 5)
        maps_found = np.concatenate([x[f"blocks_{i}"] for x in found])
        np.testing.assert_allclose(maps_found, maps, atol=1e-5)
    with pytest.raises(ValueError, match="need a classifier with attention blocks"):
        to_saved_model(classifier(**FAMILIES["MLPMixer"]), "never", attention=True)


def test_signatures(loaded):
    assert sorted(loaded.signatures) == sorted(ALL)
    specs = {k: v.structured_input_signature[1] for k, v in loaded.signatures.items()}
    strings = specs.pop("serve_bytes")["image_bytes"]
    assert strings.shape.as_list() == [None] and strings.dtype == tf.string
    for name, spec in specs.items():
        assert list(spec) == ["images"] and spec["images"].shape.as_list() == [None, None, None, 3]
        assert spec["images"].dtype == (tf.float32 if name == "serve_float" else tf.uint8)
    outputs = {k: v.structured_outputs for k, v in loaded.signatures.items()}
    assert outputs["serving_default"]["probabilities"].shape.as_list() == [None, 7]
    assert outputs["serve_bytes"]["probabilities"].shape.as_list() == [None, 7]
    assert outputs["features"]["features"].shape.as_list() == [None, 48]


def test_weights_are_stored_once(tmp_path):
    model = classifier(embed_dim=192)
    folder = to_saved_model(model, tmp_path / "m", attention=True)
    sizes = {p.name: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    weights = 4 * model.count_params()
    stored = sizes.pop("variables.data-00000-of-00001")
    assert weights < stored < 1.01 * weights + 10_000
    assert sum(sizes.values()) < 1_500_000  # graphs
    graph = (folder / "saved_model.pb").read_bytes()
    assert model.get_layer("blocks_0").mlp.fc1.kernel.numpy()[0].tobytes() not in graph


def test_any_number_of_images(loaded):
    for count in (0, 1, 5):
        images = np.zeros((count, 40, 50, 3), "uint8")
        assert loaded(images)["probabilities"].shape == (count, 7)
        files = tf.constant([encoded(x) for x in images], tf.string, (count,))
        assert loaded.serve_bytes(files)["probabilities"].shape == (count, 7)


# --- Options ---


@pytest.mark.parametrize("batch_size", [None, 2])
def test_bare_model(model, batch_size, tmp_path):
    to_saved_model(model, tmp_path / "m", preprocessing=False, batch_size=batch_size)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    assert sorted(loaded.signatures) == ["features", "serving_default"]
    np.testing.assert_allclose(loaded(inputs())["logits"], np.asarray(model(inputs())), atol=1e-5)
    features = keras.Model(model.input, model.get_layer("head").input)
    found = loaded.features(inputs())["features"]
    np.testing.assert_allclose(found, np.asarray(features(inputs())), atol=1e-5)


def test_a_fixed_batch(model, pictures, tmp_path):
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "m", batch_size=2)))
    files = tf.constant([encoded(x) for x in pictures])
    expected = softmax(model.predict(pictures[:2], verbose=0))
    np.testing.assert_allclose(loaded.serve_bytes(files[:2])["probabilities"], expected, atol=1e-5)
    with pytest.raises((ValueError, TypeError)):
        loaded.serve_bytes(files)


@pytest.mark.parametrize("preprocessing", [True, False])
def test_a_model_of_any_size(preprocessing, pictures, tmp_path):
    model = classifier(image_size=None, grid_size=(2, 2), preprocessed=preprocessing)
    folder = to_saved_model(model, tmp_path / "m", preprocessing, attention=True)
    loaded = tf.saved_model.load(str(folder))
    if preprocessing:
        expected = softmax(model.predict(pictures[1:2], verbose=0))
        found = loaded(pictures[1][None])["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        return
    for size in ((32, 32), (48, 80)):
        x = inputs(size=size)
        np.testing.assert_allclose(loaded(x)["logits"], np.asarray(model(x)), atol=1e-5)
        tokens = size[0] * size[1] // 16**2 + 1
        assert loaded.attention(x)["blocks_1"].shape == (2, 3, tokens, tokens)


def test_another_size(model, pictures, tmp_path):
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "m", image_size=(48, 64))))
    larger = variants.at_size(model, (48, 64))
    expected = softmax(larger.predict(pictures[:1], verbose=0))
    np.testing.assert_allclose(loaded(pictures[0][None])["probabilities"], expected, atol=1e-5)


def test_what_the_folder_says(tmp_path):
    folder = to_saved_model(classifier(num_classes=2, labels=["Käse", "cat"]), tmp_path / "m")
    about = folder / "assets.extra"
    assert (about / "labels.txt").read_text("utf-8") == "Käse\ncat\n"
    preset = json.loads((about / "preset.json").read_text("utf-8"))
    assert preset["class"] == "ViT" and preset["crop_pct"] == 0.8 and preset["preprocessing"]
    to_saved_model(classifier(), folder)  # without labels
    assert [path.name for path in about.iterdir()] == ["preset.json"]


def test_no_head(pictures, tmp_path):
    model = classifier(num_classes=0)
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "m")))
    expected = model.predict(pictures[:1], verbose=0)
    for function in (loaded, loaded.features):
        found = function(pictures[0][None])["features"]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_other_numbers_of_channels(tmp_path, pictures):
    model = classifier(in_channels=1)
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "grey")))
    files = [encoded(pictures[0]), encoded(pictures[1], "JPEG"), encoded(pictures[2][..., 0])]
    expected = softmax(model.predict([Image.open(io.BytesIO(file)) for file in files], verbose=0))
    found = loaded.serve_bytes(tf.constant(files))["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model = classifier(in_channels=2)
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "two")))
    assert sorted(loaded.signatures) == ["features", "serve_float", "serving_default"]


def test_mixed_precision(tmp_path, pictures):
    model = classifier(dtype="mixed_bfloat16")
    folder = to_saved_model(model, tmp_path / "m", attention=True)
    loaded = tf.saved_model.load(str(folder))
    found = loaded(pictures[0][None])["probabilities"]
    expected = softmax(model.predict(pictures[:1], verbose=0))
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert loaded.features(pictures[0][None])["features"].dtype == tf.float32


def test_a_model_of_others(tmp_path):
    images = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images))
    model = keras.Model(images, keras.layers.Dense(2, name="head")(x))
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "m", preprocessing=False)))
    assert sorted(loaded.signatures) == ["serving_default"]
    np.testing.assert_allclose(loaded(inputs())["features"], np.asarray(model(inputs())), atol=1e-5)


# --- Files of pictures ---


@pytest.fixture(scope="module")
def files():
    """Pictures in many formats, and one of 47 x 61 pixels in each of them."""
    random = np.random.default_rng(4)
    rgb = np.kron(random.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1)))[:47, :61].astype("uint8")
    image, grey = Image.fromarray(rgb), Image.fromarray(rgb[..., 0])
    alpha = random.integers(0, 256, (47, 61, 1), "uint8")
    two, four = (np.concatenate([x, alpha], axis=-1) for x in (rgb[..., :1], rgb))
    palette = image.quantize(50)
    return {
        "JPEG": encoded(image, "JPEG"),
        "JPEG, progressive": encoded(image, "JPEG", progressive=True),
        "JPEG, 4:4:4": encoded(image, "JPEG", subsampling=0, quality=95),
        "JPEG, 4:1:1": encoded(image, "JPEG", subsampling="4:1:1"),
        "JPEG, grey": encoded(grey, "JPEG"),
        "JPEG, CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "PNG": encoded(image),
        "PNG, grey": encoded(grey),
        "PNG, grey and alpha": encoded(two),
        "PNG, RGBA": encoded(four),
        "PNG, palette": encoded(palette),
        "PNG, palette, one of it transparent": encoded(palette, transparency=3),
        "PNG, one bit": encoded(image.convert("1")),
        "GIF": encoded(palette, "GIF"),
        "BMP": encoded(image, "BMP"),
        "WebP": encoded(image, "WEBP", lossless=True),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_pil(files, channels):
    function = tf.function(lambda content: decode.pixels(content, channels))
    for kind, content in files.items():
        expected = load_image(io.BytesIO(content), channels)
        np.testing.assert_array_equal(function(tf.constant(content)), expected, err_msg=kind)


def test_photographs_are_decoded_as_pil_does_it(photographs):
    function = tf.function(lambda content: decode.pixels(content, 3))
    for path in photographs[0]:
        np.testing.assert_array_equal(function(tf.io.read_file(str(path))), load_image(path))


@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize("profile", [None, bytes(100_000)])
def test_jpegs_are_turned_upright(endian, profile):
    function = tf.function(lambda content: decode.pixels(content, 3))
    picture = tiny_models.pictures()[1]
    for orientation in range(10):  # 1 to 8 mean something
        exif = Image.Exif()
        exif.endian = endian
        exif[0x010F], exif[0x0112], exif[0x0132] = "a maker", orientation, "2026:01:01 00:00:00"
        content = encoded(picture, "JPEG", exif=exif, icc_profile=profile)
        expected = load_image(io.BytesIO(content))
        np.testing.assert_array_equal(function(tf.constant(content)), expected, str(orientation))


def test_broken_files_are_errors(loaded, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(pictures[1], "JPEG", exif=exif)
    cut = [whole[:n] for n in (0, 1, 3, 12, 20, 40, 60, 200)]
    table = whole.index(b"Exif") + 6
    endless = whole[: table + 8] + b"\xff\xff" + whole[table + 10 :]  # 65535 tags: it is decoded
    assert loaded.serve_bytes(tf.constant([endless]))["probabilities"].shape == (1, 7)
    for content in [b"no picture", encoded(pictures[0])[:100], *cut]:
        with pytest.raises(tf.errors.InvalidArgumentError):
            loaded.serve_bytes(tf.constant([whole, content]))


def test_photographs_as_bytes(deit_tiny, photographs, tmp_path):
    paths = photographs[0][:8]
    model = from_preset(deit_tiny)
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "m")))
    files = tf.constant([path.read_bytes() for path in paths])
    found = loaded.serve_bytes(files)["probabilities"].numpy()
    expected = softmax(model.predict(paths, verbose=0))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (found.argmax(-1) == expected.argmax(-1)).all()


# --- Bad input ---


def keras_export(folder):
    tf.saved_model.save(tf.Module(), str(folder))


def thesis(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")


def other_preset(folder):
    keras_export(folder)
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "preset.json").write_text("[]")


def regular_file(folder):
    folder.write_text("years")


@pytest.mark.parametrize("fill", [keras_export, thesis, other_preset, regular_file])
def test_it_does_not_replace_what_others_wrote(fill, model, tmp_path):
    path = tmp_path / "mine"
    fill(path)
    before = {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}
    with pytest.raises(ValueError, match="is not a SavedModel that this package|is a file"):
        to_saved_model(model, path)
    assert {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()} == before
    assert list(tmp_path.iterdir()) == [path]


def test_it_replaces_its_own_files_and_leaves_others(model, tmp_path):
    labelled = classifier(labels=list("abcdefg"))
    folder = tmp_path / "m"
    (folder / "lost+found").mkdir(parents=True)  # a mounted disk
    (folder / ".keep").touch()
    to_saved_model(labelled, folder, preprocessing=False)
    assert (folder / "assets.extra" / "labels.txt").exists()
    (folder / "notes.txt").write_text("mine")
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_text("mine")
    (folder / "assets.extra" / "more").mkdir()
    (folder / "assets.extra" / "more" / "1").write_text("mine")
    to_saved_model(model, folder, preprocessing=False)
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {
        ".keep",
        "notes.txt",
        "saved_model.pb",
        "fingerprint.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "assets.extra/preset.json",
        "assets.extra/tf_serving_warmup_requests",
        "assets.extra/more/1",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_link_to_another_folder_is_followed(model, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    for _ in range(2):
        to_saved_model(model, tmp_path / "link", preprocessing=False)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "saved_model.pb").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link"]


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "many"])
def test_numbers_that_are_no_batch(model, batch_size, tmp_path):
    with pytest.raises(ValueError, match="batch_size must be a positive whole number, or None"):
        to_saved_model(model, tmp_path / "m", batch_size=batch_size)
    assert not list(tmp_path.iterdir())
