"""Raw pixels from files and arrays of any kind: PIL's numbers, scaled, or refused by name."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from keras_vit import pixels
from keras_vit.images import ImageConverter
from keras_vit.pixels import load_image, open_image, picture_files, raw_pixels

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (24, 32, 3), "uint8")
GREY16 = [(2000, 7), (30000, 117), (60000, 234), (255, 0), (256, 1), (65535, 255)]


@pytest.mark.parametrize("value, wanted", GREY16)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_16_bit_files_are_scaled_to_8(tmp_path, name, value, wanted):
    if name == "a.jp2":
        pytest.importorskip("PIL.features").check("jpg_2000") or pytest.skip("no JPEG 2000 in PIL")
    Image.fromarray(np.full((6, 5), value, "uint16")).save(tmp_path / name)
    assert (load_image(tmp_path / name) == wanted).all()
    converter = ImageConverter(4, mean=[0] * 3, std=[1 / 255] * 3)
    np.testing.assert_allclose(converter(tmp_path / name), wanted, atol=1e-4)
    with Image.open(tmp_path / name) as image:
        np.testing.assert_allclose(converter([image]), wanted, atol=1e-4)


@pytest.mark.parametrize("value, wanted", GREY16)
def test_16_bit_arrays_and_tensors_are_scaled_to_8(value, wanted):
    tf = pytest.importorskip("tensorflow")
    images = np.full((2, 6, 5, 3), value, "uint16")
    images[:, 0, 0] = 60000  # else 255 would be told to be almost black
    converter = ImageConverter((6, 5), crop_mode="squash")
    scaled = tf.io.decode_png(tf.io.encode_png(images[1]))  # to 8 bits
    assert (scaled.numpy()[-1] == wanted).all()
    for found in (converter.pixels(images), converter.pixels(list(images))):
        assert (found[1, -1] == wanted).all()
    assert (tf.function(converter.pixels)(tf.constant(images))[1, -1].numpy() == wanted).all()


def test_files_of_16_bits_in_colour_are_scaled_to_8(tmp_path):
    tf = pytest.importorskip("tensorflow")
    colours = RNG.integers(0, 65536, (6, 5, 3), "uint16")
    (tmp_path / "a.png").write_bytes(tf.io.encode_png(colours).numpy())
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), colours >> 8)


@pytest.mark.parametrize("name", ["grey16_2000.png", "grey16_30000.png", "grey16_60000.png"])
def test_the_shared_16_bit_files(shared, name):
    wanted = dict(GREY16)[int(name.split("_")[1].removesuffix(".png"))]
    assert set(load_image(shared / "cases" / name).ravel()) == {wanted}


def test_the_shared_float_file(shared):
    assert set(load_image(shared / "cases" / "float_half.tiff").ravel()) == {128}


def test_float_files_from_0_to_1(tmp_path):
    x = np.array([[0, 0.25, 0.5, 1]], "float32")
    Image.fromarray(x).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif", 1).ravel().tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    "values, message",
    [
        ([0.0, 255.0], "floats from 0 to 255. Floats from 0 to 1 are read"),
        ([0.0, 3.5], "floats from 0 to 3.5"),
        ([-0.5, 0.5], "floats from -0.5 to 0.5"),
        ([float("nan"), 0.5], "floats from nan to"),
        (np.array([0, 300], "int32"), "32-bit integers, whose range is not known"),
    ],
)
def test_files_whose_range_is_not_known(tmp_path, values, message):
    x = values if isinstance(values, np.ndarray) else np.array(values, "float32")
    Image.fromarray(x[None]).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=message) as caught:
        load_image(tmp_path / "a.tif")
    assert str(caught.value).startswith(repr(str(tmp_path / "a.tif")))
    with Image.open(tmp_path / "a.tif") as image, pytest.raises(ValueError, match=message):
        open_image(image)


NORMALISED = "normalises them itself. Received: "
REFUSED = {
    "of mean 0 and deviation 1": (RNG.normal(0, 1, (2, 8, 8, 3)), NORMALISED),
    "from -1 to 1": (RNG.uniform(-1, 1, (2, 8, 8, 3)), NORMALISED),
    "less ImageNet's mean": (COLOURS[None] - np.array([104.0, 117, 124]), NORMALISED),
    "16-bit numbers as floats": (np.full((1, 8, 8, 3), 30000.0), "16-bit pixels as uint16"),
    "16-bit numbers as int32": (np.full((1, 8, 8, 3), 30000, "int32"), "int32 values from 3e"),
    "all below zero": (np.full((1, 8, 8, 3), -2.0), NORMALISED),
    "NaN": (np.full((1, 8, 8, 3), np.nan), "values from nan to nan"),
    "one NaN": (np.where(np.arange(192).reshape(1, 8, 8, 3) == 7, np.nan, 9.0), "nan"),
    "infinity": (np.full((1, 8, 8, 3), np.inf), "values from inf to inf"),
}
NUMBERS = {
    "complex": "complex64",
    "dates": "datetime64[s]",
    "bytes": "S3",
    "times": "timedelta64[s]",
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_are_no_pixels(case):
    x, message = REFUSED[case]
    for images in (x, list(x), x[0], x.astype("float32")):
        with pytest.raises(ValueError) as caught:
            ImageConverter(8)(images)
        assert message in str(caught.value) or "float32 values" in str(caught.value)


@pytest.mark.parametrize("dtype", NUMBERS.values(), ids=NUMBERS)
def test_arrays_that_are_no_numbers(dtype):
    x = np.zeros((2, 8, 8, 3), dtype)
    for images in (x, list(x), x[0]):
        with pytest.raises(ValueError, match="Received: "):
            ImageConverter(8).pixels(images)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", "float64"])
def test_the_order_of_bytes_changes_nothing(dtype):
    x = COLOURS[None].astype(dtype) * np.dtype(dtype).type(256 if dtype == "uint16" else 1)
    swapped = x.astype(x.dtype.newbyteorder())
    for images in (swapped, list(swapped)):
        np.testing.assert_array_equal(ImageConverter(8).pixels(images), ImageConverter(8).pixels(x))


DARK = {
    "floats from 0 to 1": (COLOURS[None] / 255, "But 1 is the largest value of these"),
    "bright pictures, normalised": (COLOURS[None] / 128 + 0.1, "the largest value of these"),
    "float32": ((COLOURS[None] / 510).astype("float32"), "But 0.5 is the largest"),
    "uint16 of 8 bits": (COLOURS[None].astype("uint16"), "uint16 images are 16-bit pixels"),
}


@pytest.mark.parametrize("case", DARK)
def test_arrays_that_are_almost_black_bring_one_warning(case):
    x, message = DARK[case]
    for images in (x, list(x)):
        with pytest.warns(UserWarning) as caught:
            ImageConverter(8)(images)
        assert len(caught) == 1 and message in str(caught[0].message)


ACCEPTED = {
    "uint8": (COLOURS, "uint8"),
    "uint8 from 0 to 1": (COLOURS % 2, "uint8"),
    "black floats": (np.zeros((4, 4, 3)), "uint8"),
    "whole floats": (COLOURS.astype("float32"), "uint8"),
    "int64": (COLOURS.astype("int64"), "uint8"),
    "fractions": (COLOURS * 0.5, "float64"),
    "interpolation's overshoots": (COLOURS * 1.2 - 20, "float64"),
    "none": (np.zeros((0, 4, 4, 3)), "float64"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_arrays_that_are_pixels(case):
    x, dtype = ACCEPTED[case]
    found = raw_pixels(x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, x)


def test_bool_is_black_and_white():
    mask = COLOURS > 99
    tf = pytest.importorskip("tensorflow")
    converter = ImageConverter((24, 32), crop_mode="squash")
    np.testing.assert_array_equal(converter.pixels(mask), mask * 255)
    np.testing.assert_array_equal(tf.function(converter.pixels)(mask), mask * 255)


# --- Damaged files ----------------------------------------------------------------------

FORMATS = ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA"]
FORMATS += ["TIFF", "WEBP"]


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_of_every_format_are_named(tmp_path, kind):
    file = io.BytesIO()
    try:
        Image.fromarray(COLOURS).save(file, kind)
    except (KeyError, OSError):
        pytest.skip(f"this PIL does not write {kind}")
    content, random, refused = file.getvalue(), np.random.default_rng(1), 0
    path = tmp_path / f"damaged.{kind.lower()}"
    for i in range(24):
        end = len(content) if i % 2 else random.integers(len(content))
        damaged = bytearray(content[:end])
        for _ in range(8 * (i % 2)):
            damaged[random.integers(end)] = random.integers(256)
        path.write_bytes(damaged)
        try:
            found = load_image(path)
        except ValueError as error:
            assert str(error).startswith(repr(str(path)))
            refused += 1
        else:
            assert found.ndim == 3 and found.dtype == np.uint8
    assert refused > 5


ERRORS = [RuntimeError("x"), IndexError(), KeyError("x"), TypeError("x"), EOFError(), SyntaxError()]
ERRORS += [OverflowError("x"), MemoryError(), Image.DecompressionBombError("x"), OSError(5, "x")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_pil_raises_is_named(tmp_path, monkeypatch, error):
    def fail(path):
        raise error

    monkeypatch.setattr(pixels.Image, "open", fail)
    with pytest.raises(ValueError, match="'a.avif' is not a picture that PIL reads: .+"):
        load_image("a.avif")


def test_the_shared_damaged_file(shared):
    with pytest.raises(ValueError, match="damaged.avif' is not a picture that PIL reads: .+"):
        load_image(shared / "cases" / "damaged.avif")


# --- Which files ------------------------------------------------------------------------


def test_files_of_formats_without_a_decoder_are_no_pictures(tmp_path):
    endings = Image.registered_extensions()
    stubs = {
        kind
        for kind, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    assert stubs <= pixels.NOT_DECODED
    for ending in endings:
        (tmp_path / f"a{ending}").write_bytes(b"")
    found = {path.suffix for path in picture_files(tmp_path)}
    assert {".avif", ".jpg", ".jpeg", ".mpo", ".png", ".tif", ".webp"} <= found
    assert not found & {".h5", ".hdf", ".pdf", ".mpg", ".grib"}
    assert found == {e for e, kind in endings.items() if kind not in pixels.NOT_DECODED}


def test_files_in_all_folders_below_and_through_links(tmp_path):
    for name in ("b/c/2.PNG", "a/1.jpg", "0.png", ".hidden/3.png", "a/._1.jpg", "a/notes.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "4.png").write_bytes(b"")
    (tmp_path / "data" / "z").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")  # a circle
    found = [
        path.relative_to(tmp_path / "data").as_posix() for path in picture_files(tmp_path / "data")
    ]
    assert found == ["0.png", "a/1.jpg", "b/c/2.PNG", "z/4.png"]


# --- Memory -----------------------------------------------------------------------------

LIMIT = 160  # MB beside the picture: PIL's coefficients for the longest edge


def grown(function):
    """What a call adds to this process' memory at most, in MB."""
    clear = pathlib.Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("needs Linux' /proc to measure memory")

    def status(field):
        text = pathlib.Path("/proc/self/status").read_text()
        return int(text.split(f"{field}:")[1].split()[0]) / 1024

    clear.write_text("5")  # the peak begins anew
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


LARGE = {  # (height, width), mode
    "thin": ((1, 4_000_000), "L"),
    "tall": ((4_000_000, 1), "L"),
    "narrow": ((30, 500_000), "RGB"),
    "large": ((7000, 7000), "RGB"),
}


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("case", LARGE)
def test_memory_is_bounded_by_the_picture(tmp_path, case, mode):
    (height, width), kind = LARGE[case]
    Image.new(kind, (width, height), 200 if kind == "L" else (200, 200, 200)).save(
        tmp_path / "a.png", compress_level=1
    )
    converter = ImageConverter(224, crop_pct=0.9, crop_mode=mode)
    results = []
    took = grown(lambda: results.append(converter.pixels(tmp_path / "a.png")))
    assert (results[0] == 200).all() and results[0].shape == (224, 224, 3)
    assert took < 4 * height * width / 1e6 + LIMIT  # PIL keeps four bytes a pixel


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_memory_of_arrays_is_bounded(mode, dtype):
    images = np.full((1, 1, 5_000_000, 3), 200.5 if dtype == "float32" else 200, dtype)
    converter = ImageConverter(224, crop_pct=0.9, crop_mode=mode)
    results = []
    took = grown(lambda: results.append(converter.pixels(images)))
    assert set(results[0].ravel()) <= {200, 201} and took < 3 * images.nbytes / 1e6 + LIMIT


def test_an_edge_beyond_the_limit_is_refused(tmp_path):
    Image.new("L", (pixels.EDGE + 1, 1)).save(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match="a.png' has an edge of 4194305 pixels; the limit is 4194304"
    ):
        load_image(tmp_path / "a.png")


def test_a_graph_refuses_a_long_edge_by_its_limit():
    tf = pytest.importorskip("tensorflow")
    converter = ImageConverter(8, crop_mode="squash")
    call = tf.function(converter.pixels, input_signature=[tf.TensorSpec((None, None, 3), "uint8")])
    assert (call(np.full((2, 65535, 3), 9, "uint8")).numpy() == 9).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="65535 pixels, the limit inside a"):
        call(np.zeros((2, 65536, 3), "uint8"))
