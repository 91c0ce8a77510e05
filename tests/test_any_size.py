"""One model for images of every size: `from_preset(..., image_size=None)`."""

import goldens
import keras
import numpy as np
import pytest

import keras_vit


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


@pytest.mark.parametrize("name", ["vit-plain", "deit-distilled", "vit-dinov2_reg4", "vit-siglip"])
def test_one_model_gives_timms_logits_at_two_sizes(name, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path), image_size=None)
    assert model.backbone.input_shape[1:3] == (None, None)
    pairs = [(golden["x"], golden["logits"]), (goldens.other_size(golden["x"]), golden["resized"])]
    for x, logits in [*pairs, pairs[0]]:  # the first again: nothing stays of the other
        np.testing.assert_allclose(run(model, x), logits, rtol=0, atol=1e-5)
