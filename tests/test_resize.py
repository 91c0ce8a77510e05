"""Tables, kernels and channels are resized as timm's own functions do."""

import goldens
import numpy as np
import pytest

from keras_vit import resize, weights


@pytest.fixture(scope="module")
def functions():
    """What timm's own functions gave, in torch's axis order."""
    return goldens.arrays("functions")


SIZES = [(5, 8), (2, 3), (6, 2), (1, 7)]


def name(what, size, resample):
    """The name of a golden array."""
    how = "" if resample == "bicubic" else f"{resample}-"
    return f"{what}-{how}{size[0]}x{size[1]}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "bilinear_corners"])
def test_positions_are_resized_as_timm_does(functions, size, resample):
    table = functions["table"]
    found = resize.resize_positions(table, (3, 4), size, 2, resample)
    np.testing.assert_allclose(found, functions[name("table", size, resample)], atol=1e-5)
    np.testing.assert_array_equal(found[:, :2], table[:, :2])
    assert found.dtype == "float32"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "resample, golden",
    [("bicubic", "bicubic"), ("bilinear", "bilinear"), ("bilinear_corners", "bilinear")],
)
def test_patch_kernels_are_resized_as_timm_does(functions, size, resample, golden):
    kernel = weights.to_keras(functions["kernel"], "proj/kernel")
    found = weights.to_torch(resize.resize_kernel(kernel, size, resample), "proj/kernel")
    np.testing.assert_allclose(found, functions[name("kernel", size, golden)], atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_channels_are_adapted_as_timm_does(functions, channels):
    kernel = weights.to_keras(functions["kernel"], "proj/kernel")
    found = weights.to_torch(resize.adapt_channels(kernel, channels), "proj/kernel")
    np.testing.assert_allclose(found, functions[f"channels-{channels}"], atol=1e-5)


def test_what_needs_no_resizing_stays_as_it_is(functions):
    table, kernel = functions["table"], functions["kernel"]
    assert resize.resize_positions(table, (3, 4), (3, 4), prefix=2) is table
    assert resize.resize_kernel(kernel, kernel.shape[:2]) is kernel


def test_a_table_of_another_grid_and_a_kernel_of_two_channels_are_refused(functions):
    with pytest.raises(weights.WeightsError, match=r"14 rows.*4 x 4 patches.*needs 18"):
        resize.resize_positions(functions["table"], (4, 4), (5, 5), prefix=2)
    with pytest.raises(weights.WeightsError, match="in_channels=4.*kernel with 2"):
        resize.adapt_channels(np.zeros((4, 4, 2, 5), "float32"), 4)
