"""Pictures to pixels: PIL's numbers, in numpy and in TensorFlow's graphs alike."""

import numpy as np
import pytest
from PIL import Image

from keras_vit import images, labels
from keras_vit.crop import resize_images
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.layers.resample import resize_matrix

RNG = np.random.default_rng(0)
RESAMPLING = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR, "lanczos": Image.LANCZOS}
SIZES = [(40, 60), (60, 40), (33, 33), (20, 90), (16, 16), (9, 13)]


def picture(height, width, channels=3):
    """Smooth colours with some noise, as photographs are."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / (3 + c) + y / 5) for c in range(channels)]
    noisy = np.stack(waves, -1) + RNG.normal(0, 12, (height, width, channels))
    return np.clip(noisy, 0, 255).astype("uint8")


def by_pil(image, size, crop_pct, mode, interpolation):
    """timm's evaluation transform in PIL's words: resize, then crop the centre."""
    scale = int(size / crop_pct)
    height, width = image.shape[:2]
    if mode == "squash":
        rows = columns = scale
    elif width < height:
        rows, columns = int(scale * height / width), scale
    else:
        rows, columns = scale, int(scale * width / height)
    resized = Image.fromarray(image).resize((columns, rows), RESAMPLING[interpolation])
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    return np.asarray(resized)[top : top + size, left : left + size]


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize(
    ("mode", "crop_pct"), [("center", 0.9), ("center", 1.0), ("squash", 0.875)]
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_pil(size, mode, crop_pct, interpolation):
    image = picture(*size)
    converter = ImageConverter(16, crop_pct=crop_pct, crop_mode=mode, interpolation=interpolation)
    wanted = by_pil(image, 16, crop_pct, mode, interpolation)
    np.testing.assert_array_equal(converter.pixels(image), wanted)


def cropped_by_pil(image, converter):
    """A picture as PIL resizes it, and the converter's crop of it."""
    height, width = converter.resized(*image.shape[:2])
    (rows, columns), filter = converter.image_size, RESAMPLING[converter.interpolation]
    top, left = converter.offset(height - rows), converter.offset(width - columns)
    resized = Image.fromarray(image).resize((width, height), filter)
    return np.asarray(resized.crop((left, top, left + columns, top + rows)))


def random_sizes(count, seed):
    """(height, width) from 4 to 400, wide and tall ones among them."""
    random = np.random.default_rng(seed)
    return np.exp(random.uniform(np.log(4), np.log(400), (count, 2))).astype(int).tolist()


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", RESAMPLING)
def test_300_random_sizes_equal_pil_to_the_bit(interpolation, mode):
    tf = pytest.importorskip("tensorflow")
    size = {"bicubic": 33, "bilinear": 16, "lanczos": 20}[interpolation]
    converter = ImageConverter(size, crop_pct=0.9, crop_mode=mode, interpolation=interpolation)
    spec = [tf.TensorSpec((None, None, 3), "uint8")]
    in_graph = tf.function(converter.pixels, input_signature=spec, autograph=False)
    random, orders = np.random.default_rng(5), set()
    for height, width in random_sizes(50, seed=len(mode) + size):  # six cases
        noise = random.integers(0, 256, (height, width, 3), dtype="uint8")
        image = noise if width % 2 else np.where(noise > 127, np.uint8(255), np.uint8(0))
        wanted, view = cropped_by_pil(image, converter), converter.view(height, width)
        orders.add(view.height_first)
        found = {
            "PIL": converter.pixels(image),
            "whole floats": converter.pixels(image.astype("float64")),
            "matrices": resize_images(image, view),
            "graph": in_graph(image).numpy(),
        }
        for pixels in found.values():
            np.testing.assert_array_equal(pixels, wanted)
    assert orders == {True, False}  # which axis comes first


@pytest.mark.parametrize("mode, crop_pct", [("center", 0.9), ("squash", 1.0)])
def test_photographs_equal_pil_to_the_bit(photographs, mode, crop_pct):
    tf = pytest.importorskip("tensorflow")
    converter = ImageConverter(224, crop_pct=crop_pct, crop_mode=mode)
    spec = [tf.TensorSpec((None, None, 3), "uint8")]
    in_graph = tf.function(converter.pixels, input_signature=spec, autograph=False)
    for i, path in enumerate(photographs[0]):
        image = images.load_image(path)
        wanted = cropped_by_pil(image, converter)
        np.testing.assert_array_equal(converter.pixels(path), wanted)
        if i % 5 == 0:
            view = converter.view(*image.shape[:2])
            np.testing.assert_array_equal(resize_images(image, view), wanted)
            np.testing.assert_array_equal(in_graph(image), wanted)
    assert i == 124


@pytest.mark.parametrize("image_size", [40, (40, 24)], ids=str)
def test_a_crop_larger_than_the_picture_is_padded_with_black(image_size):
    image = picture(30, 20)
    converter = ImageConverter(image_size, crop_pct=1.25, crop_mode="squash")
    view = converter.view(30, 20)
    wanted = cropped_by_pil(image, converter)
    assert (wanted == 0).any()
    np.testing.assert_array_equal(converter.pixels(image), wanted)
    np.testing.assert_array_equal(resize_images(image, view), wanted)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_channels_are_resized_independently(channels):
    image = picture(50, 40, channels)
    converter = ImageConverter(16, [0.5] * channels, [0.5] * channels, crop_pct=0.9)
    single = ImageConverter(16, [0.5], [0.5], crop_pct=0.9)
    wanted = [single.pixels(image[..., i : i + 1]) for i in range(channels)]
    np.testing.assert_array_equal(converter.pixels(image), np.concatenate(wanted, -1))
    if channels == 4:  # alpha is a channel here, and no weight of the colours
        np.testing.assert_array_equal(
            converter.pixels(Image.fromarray(image)), converter.pixels(image)
        )


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(40, 60), (200, 30), (16, 16)], ids=str)
def test_fractions_are_resized_as_in_the_graph(size, mode):
    tf = pytest.importorskip("tensorflow")
    converter = ImageConverter(16, crop_pct=1.0 if size == (16, 16) else 0.8, crop_mode=mode)
    image = (picture(*size) * 0.7).astype("float32")
    found, wanted = tf.function(converter.pixels)(image).numpy(), converter.pixels(image)
    np.testing.assert_allclose(found, wanted, atol=1)
    # Each of the two passes rounds: a half goes up or down with the order of the sums.
    assert (found != wanted).mean() < 0.01
    np.testing.assert_allclose(found, converter._pixels(image, rounded=False), atol=1.5)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("image_size", [16, (16, 24)], ids=str)
def test_the_same_numbers_inside_tf_data(size, image_size, static):
    tf = pytest.importorskip("tensorflow")
    preprocessor = ImagePreprocessor(ImageConverter(image_size, crop_pct=0.9))
    image = picture(*size)
    spec = tf.TensorSpec(image.shape if static else (None, None, 3), "uint8")
    dataset = tf.data.Dataset.from_generator(lambda: iter([image]), output_signature=spec)
    result = next(iter(dataset.map(preprocessor).batch(1)))[0].numpy()
    np.testing.assert_allclose(result, preprocessor(image), atol=1e-5)


@pytest.mark.parametrize("static", [True, False])
def test_batches_of_one_channel_in_a_graph(static):
    # TensorFlow 2.21's matmul broadcasts a matrix over an axis of length 1 out of bounds.
    tf = pytest.importorskip("tensorflow")
    converter = ImageConverter(32, [0.5], [0.5])
    images = np.stack([picture(42, 39, 1), picture(42, 39, 1)])
    spec = tf.TensorSpec(images.shape if static else (None, None, None, 1), "uint8")
    found = tf.function(converter.pixels, input_signature=[spec])(images)
    np.testing.assert_array_equal(found, converter.pixels(images))


def test_labels_pass_through_tf_data():
    tf = pytest.importorskip("tensorflow")
    preprocessor = ImagePreprocessor(ImageConverter(16))
    dataset = tf.data.Dataset.from_tensors((picture(20, 20), 3)).map(preprocessor)
    x, y = next(iter(dataset))
    assert x.shape == (16, 16, 3) and int(y) == 3


def test_normalisation_is_by_the_numbers():
    converter = ImageConverter(4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    image = picture(4, 4)
    wanted = (image / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0]
    np.testing.assert_allclose(converter(image), wanted, atol=1e-6)


def test_a_batch_a_list_and_single_images_agree():
    converter = ImageConverter(16, crop_pct=0.9)
    batch = np.stack([picture(30, 40) for _ in range(3)])
    alone = np.stack([converter(image) for image in batch])
    np.testing.assert_array_equal(converter(batch), alone)
    np.testing.assert_array_equal(converter(list(batch)), alone)
    np.testing.assert_array_equal(converter([Image.fromarray(i) for i in batch]), alone)
    np.testing.assert_allclose(converter(batch.astype("float64")), alone, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_files_of_any_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    image = Image.fromarray(picture(20, 30))
    image = (
        Image.fromarray(picture(20, 30, 1)[..., 0].astype("uint16")) if mode == "I;16" else image
    )
    (image if mode == "I;16" else image.convert(mode)).save(path)
    assert images.load_image(path).shape == (20, 30, 3)
    assert ImageConverter(16)(path).shape == (16, 16, 3)


def test_pictures_are_turned_upright(tmp_path):
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright, the sensor was not
    Image.fromarray(picture(20, 30)).save(path, exif=exif)
    assert images.load_image(path).shape == (30, 20, 3)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 4)])
def test_grey_and_transparent_arrays(shape):
    image = RNG.integers(0, 256, shape, dtype="uint8")
    result = ImageConverter(16).pixels([image])
    assert result.shape == (1, 16, 16, 3)
    if shape[-1] != 4:
        assert (result[..., 0] == result[..., 2]).all()


def test_config_round_trip():
    preprocessor = ImagePreprocessor(ImageConverter((16, 24), crop_pct=0.8, crop_mode="squash"))
    again = ImagePreprocessor.from_config(preprocessor.get_config())
    image = picture(30, 30)
    np.testing.assert_array_equal(again(image), preprocessor(image))
    assert again.image_size == (16, 24)


def test_a_matrix_row_outside_is_zero_and_the_others_sum_to_one():
    matrix = resize_matrix(10, 6, start=-2, length=10)
    np.testing.assert_allclose(matrix.sum(1), [0, 0, 1, 1, 1, 1, 1, 1, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"crop_mode": "border"}, "crop_mode"), ({"interpolation": "nearest"}, "interpolation")],
)
def test_unknown_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageConverter(16, **arguments)(picture(20, 20))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 20, 20, 5)), "channels"),
        (np.zeros((20,)), "shape"),
        (np.zeros((1, 2, 20, 20, 3)), "shape"),
        ([], "empty"),
    ],
)
def test_wrong_images(value, message):
    with pytest.raises(ValueError, match=message):
        ImageConverter(16)(value)


def test_files_that_are_no_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture at"):
        images.load_image(tmp_path / "absent.jpg")
    with pytest.raises(ValueError, match="is a folder. Pass a list of its files"):
        images.load_image(tmp_path)
    path = tmp_path / "text.jpg"
    path.write_text("not a picture")
    with pytest.raises(ValueError, match="not a picture"):
        images.load_image(path)
    Image.fromarray(picture(50, 50)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a picture"):
        images.load_image(tmp_path / "cut.png")


def test_labels_of_imagenet():
    names = labels.imagenet_labels()
    assert len(set(names)) == 1000
    assert [names[i] for i in (0, 281, 999)] == ["tench", "tabby", "toilet tissue"]


def test_top_labels_are_sorted():
    probabilities = np.array([[0.1, 0.6, 0.3]])
    assert labels.top_labels(probabilities, ["a", "b", "c"], 2) == [[("b", 0.6), ("c", 0.3)]]


def test_photographs_equal_timm_pixel_by_pixel(deit_tiny, shared):
    import keras_vit

    model = keras_vit.from_preset(deit_tiny, load_weights=False)
    reference = np.load(shared / "images/imagenet/deit_tiny_reference.npz")
    files = [shared / "images/imagenet" / name for name in reference["pixel_files"]]
    pixels = model.preprocessor.image_converter.pixels(files)
    np.testing.assert_array_equal(pixels, reference["pixels"])
