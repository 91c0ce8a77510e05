"""keras_vit.train's pre-training: masks, targets and losses by the papers; what comes out."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from test_train import coloured
from tiny_models import classifier

from keras_vit import MLPMixer, ViT, train
from keras_vit.layers.positions import sincos
from keras_vit.train import masking

IMAGES = coloured(6)[0]
SMALL = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
OPTIONS = {train.MAE: SMALL, train.SimMIM: {"mask_unit": 16}, train.MaskedPatches: {}}


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Train step by step: making a graph takes longer than these few steps."""
    if keras.backend.backend() == "tensorflow":
        compile = functools.partialmethod(keras.Model.compile, run_eagerly=True)
        monkeypatch.setattr(masking.Pretraining, "compile", compile)


def model(cls, **options):
    of = classifier(image_size=32, patch_size=8, depth=1)
    return cls(of.backbone, of.preprocessor, **{**OPTIONS[cls], **options})


def pictures(made):
    return made.preprocess_samples(IMAGES)[0]


def patches_of(x, p=8):
    """(B, N, P*P*C), by loops."""
    return np.stack(
        [
            [im[i : i + p, j : j + p].ravel() for i in range(0, 32, p) for j in range(0, 32, p)]
            for im in x
        ]
    )


def tensors(*arrays):
    return tuple(map(ops.convert_to_tensor, arrays))


def test_mae_sees_the_visible_patches_alone():
    made = model(train.MAE)
    x = ops.convert_to_tensor(pictures(made))
    seen = []
    made.encode, encode = lambda t, training: (seen.append(t), encode(t, training))[1], made.encode
    prediction, mask = made(x, training=True)
    mask = ops.convert_to_numpy(mask)
    assert seen[0].shape == (6, 1 + 4, 48) and prediction.shape == (6, 16, 192)
    assert (mask.sum(1) == 12).all() and len({row.tobytes() for row in mask}) > 4  # by chance equal
    whole = ops.convert_to_numpy(made.embed(x))
    for row, tokens, all_tokens in zip(mask, ops.convert_to_numpy(seen[0]), whole, strict=True):
        visible = all_tokens[1:][row == 0]
        found = tokens[1:]
        np.testing.assert_allclose(tokens[0], all_tokens[0], atol=1e-6)
        distance = np.abs(found[:, None] - visible[None]).max(-1).min(0)
        np.testing.assert_allclose(distance, 0, atol=1e-6)  # each of them, in any order


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="modules cannot be replaced there")
def test_mae_predicts_each_patch_at_its_place():
    """With a decoder that passes on what it gets, visible patches come back in their places."""
    made = model(train.MAE)
    x = ops.convert_to_tensor(pictures(made))
    made.encode = lambda tokens, training: tokens
    made.decoder_embed = made.decoder_norm = lambda z: z
    made.decoder, made.decoder_positions = [], np.zeros((1, 17, 48), "float32")
    made.decoder_pred = lambda z: z
    made.mask_token = np.full((1, 1, 48), 7, "float32")
    z, mask = made.call(x)
    whole, hidden = ops.convert_to_numpy(made.embed(x))[:, 1:], ops.convert_to_numpy(mask) > 0
    z = ops.convert_to_numpy(z)
    np.testing.assert_allclose(z[~hidden], whole[~hidden], atol=1e-6)
    assert (z[hidden] == 7).all()


@pytest.mark.parametrize("norm_pix", [True, False])
def test_maes_loss_is_the_papers(norm_pix):
    torch = pytest.importorskip("torch")
    made = model(train.MAE, norm_pix=norm_pix)
    x = pictures(made)
    prediction = np.random.default_rng(0).normal(0, 1, (6, 16, 192)).astype("float32")
    mask = (np.arange(96).reshape(6, 16) % 3 > 0).astype("float32")
    target = torch.tensor(patches_of(x))
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (
            target.var(-1, keepdim=True) + 1e-6
        ) ** 0.5
    error = ((torch.tensor(prediction) - target) ** 2).mean(-1)
    expected = (error * torch.tensor(mask)).sum() / mask.sum()
    found = made.compute_loss(x, None, tensors(prediction, mask))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_sines_and_cosines_are_maes():
    """mae/util/pos_embed.py, written out again."""
    rows, columns, width = 3, 5, 16
    expected = np.zeros((15, width))
    omega = 1 / 10000 ** (np.arange(width // 4) / (width / 4))
    for i in range(15):
        row, column = divmod(i, columns)
        expected[i] = np.concatenate(
            [
                np.sin(column * omega),
                np.cos(column * omega),
                np.sin(row * omega),
                np.cos(row * omega),
            ]
        )
    np.testing.assert_allclose(sincos((rows, columns), width), expected, atol=1e-6)
    with pytest.raises(ValueError, match="divisible by 4. Received: 6"):
        sincos((2, 2), 6)


def test_simmim_hides_squares():
    made = model(train.SimMIM)
    mask = ops.convert_to_numpy(made.mask(pictures(made))).reshape(6, 2, 2, 2, 2)
    assert (mask == mask[:, :, :1, :, :1]).all()  # a unit as a whole
    assert (mask[:, :, 0, :, 0].sum((1, 2)) == 3).all()  # 0.6 of 4, rounded up
    with pytest.raises(ValueError, match="multiple of the patch size 8.*Received: 12"):
        model(train.SimMIM, mask_unit=12)


def test_simmims_loss_is_the_absolute_error_of_hidden_pixels():
    made = model(train.SimMIM)
    x = pictures(made)
    prediction, mask = (ops.convert_to_numpy(v) for v in made(x, training=False))
    target = patches_of(x)
    expected = np.abs(prediction - target)[mask > 0].mean()
    found = made.compute_loss(x, None, tensors(prediction, mask))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_corruption_is_80_10_10():
    made = model(train.MaskedPatches)
    tokens = np.random.default_rng(0).normal(0, 1, (400, 16, 48)).astype("float32")
    found, mask = (ops.convert_to_numpy(v) for v in made.corrupt(ops.convert_to_tensor(tokens)))
    assert (mask.sum(1) == 8).all()
    same = (found == tokens).all(-1)
    assert same[mask == 0].all()
    masked = np.abs(found - ops.convert_to_numpy(made.mask_token)).max(-1) < 1e-6
    hidden = mask > 0
    shares = masked[hidden].mean(), same[hidden].mean(), (~masked & ~same)[hidden].mean()
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)
    for b, n in np.argwhere(hidden & ~masked & ~same)[:20]:
        assert (found[b, n] == tokens[b]).all(-1).any()  # of the same picture


def test_classes_of_mean_colours():
    made = model(train.MaskedPatches)
    colours = np.random.default_rng(0).integers(0, 256, (5, 3))
    images = np.broadcast_to(colours[:, None, None], (5, 32, 32, 3)).astype("uint8")
    target = ops.convert_to_numpy(made.target(made.preprocess_samples(images)[0]))
    red, green, blue = np.minimum(colours / 255 * 8, 7).astype(int).T
    np.testing.assert_array_equal(
        target, np.broadcast_to((red * 64 + green * 8 + blue)[:, None], (5, 16))
    )
    x = pictures(made)
    logits, mask = (ops.convert_to_numpy(v) for v in made(x, training=False))
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log, ops.convert_to_numpy(made.target(x))[..., None], -1)[..., 0]
    expected = -picked[mask > 0].mean()
    assert float(made.compute_loss(x, None, tensors(logits, mask))) == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("cls", OPTIONS)
def test_the_backbone_learns_and_is_an_ordinary_one(cls, tmp_path):
    made = model(cls)
    before = [np.array(w) for w in made.backbone.get_weights()]
    history = train.pretrain(made, IMAGES, 3, batch_size=3, learning_rate=3e-3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert list(history) == ["loss"]
    changed = [
        not np.array_equal(old, new)
        for old, new in zip(before, made.backbone.get_weights(), strict=True)
    ]
    assert all(changed)
    vit = ViT(made.backbone, 3, preprocessor=made.preprocessor)
    vit.save_to_preset(tmp_path / "vit")
    loaded = ViT.from_preset(tmp_path / "vit")
    np.testing.assert_allclose(
        loaded.predict(IMAGES, verbose=0), vit.predict(IMAGES, verbose=0), atol=1e-6
    )


@pytest.mark.parametrize("cls", [train.MAE, train.SimMIM])
def test_reconstructions(cls):
    made = model(cls)
    whole, seen, filled = made.reconstruct(IMAGES[:2])
    pixels = made.preprocessor.image_converter.pixels(IMAGES[:2]) / 255
    np.testing.assert_allclose(whole, pixels, atol=1e-5)
    hidden = np.abs(seen - whole).max(-1) > 1e-3
    assert 0.3 < hidden.mean() < 0.9
    np.testing.assert_allclose(filled[~hidden], whole[~hidden], atol=2e-3)


def test_other_backbones():
    of = classifier(MLPMixer)
    with pytest.raises(ValueError, match="Received: MLPMixerBackbone"):
        train.MAE(of.backbone, of.preprocessor)
