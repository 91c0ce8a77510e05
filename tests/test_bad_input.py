"""What is wrong is said, with what to do; what lies on disk stays as it was."""

import hashlib
import json
import pickle
import struct

import keras
import numpy as np
import pytest
import safetensors.numpy
import tiny_checkpoints as tiny
from PIL import Image

import keras_vit
from keras_vit.hub import MissingFile
from keras_vit.weights import WeightsError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A directory in timm's layout."""
    return tiny.write(tmp_path / "checkpoint", tiny.timm_files())


@pytest.fixture
def unchanged(tmp_path):
    """Call it when the scene is set; at the test's end all files must be as they were then."""
    seen = {}

    def state():
        files = sorted(p for p in tmp_path.rglob("*") if p.is_file())
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    yield lambda: seen.update(before=state())
    assert seen["before"] == state()


def refused(folder, kind=ValueError, **options):
    """The message with which a directory is refused."""
    with pytest.raises(kind) as caught:
        keras_vit.from_preset(folder, **options)
    return str(caught.value)


def change(folder, file=CONFIG, **fields):
    """Change fields of a JSON file; a name with a dot is a field of a field."""
    path = folder / file
    config = json.loads(path.read_text())
    for name, value in fields.items():
        *outer, name = name.split("__")
        place = config
        for key in outer:
            place = place[key]
        if value is KeyError:
            del place[name]
        else:
            place[name] = value
    path.write_text(json.dumps(config))
    return folder


# --- Names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("vit_tiny_patch16_244", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        ("vit_base_patch16_224.augreg_in1", "vit_base_patch16_224.augreg_in1k"),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k"),
        ("DeiT-tiny-patch16-224", "deit_tiny_patch16_224.fb_in1k"),
    ],
)
def test_an_unknown_name(name, nearest):
    message = refused(name)
    assert message.startswith(f"Unknown preset {name!r}. The nearest names are: {nearest}")
    assert 'a repository of the Hub ("hf://org/name"), a directory with' in message


def test_a_name_that_is_like_no_other():
    assert "nearest" not in refused("qqqq") and "nearest" not in refused("")


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "~/nothing", "../a/b/c"])
def test_a_directory_that_is_not_there(path):
    assert f"{path} is not a directory." in refused(path)


def test_a_file_instead_of_its_directory(folder):
    assert "config.json is not a directory." in refused(folder / CONFIG)


def test_another_class(folder):
    with pytest.raises(ValueError, match="is a checkpoint of ViT, not of DeiT. Use keras_vit.ViT"):
        keras_vit.DeiT.from_preset(folder)


# --- Layouts and what config.json says --------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"layers": 3, "width": 8}', "none of the supported layouts: timm's has `architecture`"),
        (b'{"layers": 3, "width": 8}', "Its fields: layers, width."),
        (b"{}", "Its fields: nothing."),
        (b"[1, 2]", "must hold a JSON object. Received: list"),
        (b"", "config.json is not valid JSON"),
        (b'{"architecture": "vit', "Copy or save it again."),
        (b"\x80\x02}q\x00.", "config.json is not valid JSON"),
        (b"[" * 100000, "config.json is not valid JSON"),
    ],
)
def test_an_unknown_layout(folder, unchanged, content, message):
    (folder / CONFIG).write_bytes(content)
    unchanged()
    assert message in refused(folder)


TIMM_FIELDS = [
    ({"architecture": "resnet50"}, "architecture 'resnet50', which is not supported. Supported"),
    ({"architecture": "vit_tinny_patch16_224"}, "The nearest supported ones: vit_tiny_patch16"),
    ({"architecture": 5}, "architecture must be a string. Received: 5"),
    ({"model_args": ["x"]}, "model_args must be an object. Received: ['x']"),
    ({"model_args__rope_theta": 5}, "changes rope_theta of vit_tiny_patch16_224, which is not"),
    ({"model_args__act_layer": "mish"}, "act_layer must be one of gelu, gelu_new"),
    (
        {"model_args__global_pool": "max"},
        "global_pool='max' is not supported. Supported for vit: token, avg",
    ),
    ({"model_args__embed_dim": "8"}, "embed_dim must be a whole number from 1 to 65536. Received"),
    ({"model_args__embed_dim": 10**9}, "Received: 1000000000"),
    ({"model_args__depth": 10**6}, "depth must be a whole number from 1 to 256"),
    ({"model_args__embed_dim": 2**16}, "The model would have 3e+10 weights, more than any known"),
    ({"model_args__qkv_bias": "yes"}, "qkv_bias must be true or false. Received: 'yes'"),
    ({"model_args__mlp_ratio": float("inf")}, "mlp_ratio must be a finite number"),
    ({"model_args__num_heads": 3}, "width of the tokens must be divisible by num_heads"),
    ({"model_args__img_size": 10}, "must be a multiple of the patch size 4. Received: 10 pixels"),
    ({"pretrained_cfg__mean": []}, "mean must be a list of numbers. Received: []"),
    ({"pretrained_cfg__std": [1, 0, 1]}, "std must be a positive number. Received: 0"),
    ({"pretrained_cfg__std": [1, 1]}, "mean and std must have equal lengths. Received: 3 and 2"),
    ({"pretrained_cfg__crop_mode": "border"}, "crop_mode must be one of center, squash"),
    ({"pretrained_cfg__interpolation": "random"}, "interpolation must be one of bicubic, bilinear"),
    ({"num_classes": -3}, "num_classes must be a whole number from 0"),
]
HF_FIELDS = [
    ({"model_type": "bert"}, "a transformers model of type 'bert', which is not supported. Supp"),
    ({"hidden_size": KeyError}, "config.json of FOLDER has no field 'hidden_size'."),
    ({"num_attention_heads": KeyError}, "FOLDER has no field 'num_attention_heads'."),
    ({"hidden_size": None}, "hidden_size must be a whole number from 1 to 65536. Received: None"),
    ({"hidden_act": "mish"}, "hidden_act must be one of gelu"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1 to 256"),
    ({"image_size": [8, 8, 8]}, "image_size must be a whole number, or two: (height, width)"),
    ({"id2label": {"rose": 0}}, "id2label must name the classes 0, 1, 2 ..."),
    ({"id2label": [1, 2]}, "id2label must name the classes 0, 1, 2 ..."),
]
PROCESSOR_FIELDS = [
    ({"resample": 0}, "resample must be a whole number from 1 to 3. Received: 0"),
    ({"image_mean": "0.5"}, "image_mean must be a list of numbers. Received: '0.5'"),
    ({"size": {"longest_edge": 5}}, "has no field 'height'"),
    ({"rescale_factor": 0}, "rescale_factor must be a positive number"),
]


@pytest.mark.parametrize("fields, message", TIMM_FIELDS)
def test_a_field_of_a_timm_config(folder, unchanged, fields, message):
    change(folder, **fields)
    unchanged()
    assert message in refused(folder)


@pytest.mark.parametrize(
    "file, fields, message",
    [(CONFIG, *case) for case in HF_FIELDS]
    + [("preprocessor_config.json", *case) for case in PROCESSOR_FIELDS],
)
def test_a_field_of_a_transformers_config(tmp_path, unchanged, file, fields, message):
    folder = tiny.write(tmp_path / "checkpoint", tiny.transformers_files())
    change(folder, file, **fields)
    unchanged()
    assert message.replace("FOLDER", str(folder)) in refused(folder)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"image_shape": (8, 8, 3)},
            "from_preset has no argument image_shape. It takes: num_classes, ",
        ),
        ({"num_classes": -1}, "num_classes must be a whole number from 0 to"),
        ({"num_classes": 2.5}, "num_classes must be a whole number from 0 to"),
        ({"image_size": 9}, "multiple of the patch size 4. Received: 9 pixels. The nearest mul"),
        ({"image_size": (8, 10)}, "width of the input images (image_size) must be"),
        ({"image_size": 0}, "image_size must be a whole number from 1"),
        ({"image_size": "224"}, "image_size must be a whole number, or two: (height, width)"),
        ({"patch_size": 3}, "must be a multiple of the patch size 3. Received: 8 pixels"),
        ({"in_channels": 0}, "in_channels must be a whole number from 1"),
        ({"pooling": "cls"}, "pooling must be one of token, avg, "),
        ({"drop_path_rate": 1.5}, "drop_path_rate must be from 0 to below 1. Received: 1.5"),
        ({"drop_rate": -1}, "drop_rate must be from 0 to below 1. Received: -1"),
        ({"dtype": "float33"}, "Cannot convert 'float33'"),
    ],
)
def test_an_argument(folder, unchanged, options, message):
    unchanged()
    assert message in refused(folder, **options)


def test_numbers_of_numpy_are_numbers(folder):
    model = keras_vit.from_preset(folder, num_classes=np.int64(5), image_size=np.int32(12))
    assert model.num_classes == 5 and model.image_size == (12, 12)


# --- Weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [tiny.timm_files, tiny.transformers_files])
def test_no_weights(tmp_path, unchanged, layout):
    folder = tiny.write(tmp_path / "checkpoint", layout())
    (folder / WEIGHTS).unlink()
    unchanged()
    message = refused(folder, MissingFile)
    assert f"{folder} has no file {WEIGHTS} with the weights. It contains: " in message


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"])
def test_a_pickle_is_refused_unopened(folder, tmp_path, unchanged, name):
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    unchanged()
    message = refused(folder, MissingFile)
    assert f"{folder} has its weights only in {name}, not in {WEIGHTS}." in message
    assert "is refused. Convert it" in message


def test_a_pickle_that_calls_itself_safetensors(folder, tmp_path, unchanged):
    (folder / WEIGHTS).write_bytes(pickle.dumps(Trap(tmp_path / "trap")) * 10)
    unchanged()
    assert "is not a complete safetensors file" in refused(folder, WeightsError)


@pytest.mark.parametrize("end", [0, 4, 8, 100, -1])
def test_a_file_that_was_cut_off(folder, unchanged, end):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:end])
    unchanged()
    message = refused(folder, WeightsError)
    assert f"{folder / WEIGHTS} is not a complete safetensors file" in message
    assert message.endswith("Copy or save it again.")


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8, 3])
def test_a_header_of_a_wrong_length(folder, unchanged, length):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + content[8:])
    unchanged()
    assert "is not a complete safetensors file" in refused(folder, WeightsError)


def rewrite(folder, edit):
    """Change a directory's tensors, a dict of arrays, in place."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def test_one_error_lists_all_that_does_not_fit(folder, unchanged):
    def edit(tensors):
        del tensors["cls_token"], tensors["blocks.0.attn.qkv.bias"]
        tensors["blocks.0.attn.gate"] = tensors["extra.weight"] = np.zeros(2, "float32")
        tensors["head.weight"] = np.zeros((4, 8), "float32")
        tensors["norm.weight"] = np.zeros((8, 1), "float32")

    rewrite(folder, edit)
    unchanged()
    assert refused(folder, WeightsError).splitlines() == [
        f"The weights of {folder} do not fit the model:",
        "  2 missing from the file:",
        "    cls_token",
        "    blocks.0.attn.qkv.bias",
        "  2 not used by the model:",
        "    blocks.0.attn.gate",
        "    extra.weight",
        "  2 of the wrong shape:",
        "    norm.weight: (8, 1) in the file, (8,) in the model",
        "    head.weight: (4, 8) in the file, (3, 8) in the model",
    ]


def test_tensors_of_the_transformers_layout_are_named_as_in_the_file(tmp_path, unchanged):
    folder = tiny.write(tmp_path / "checkpoint", tiny.transformers_files())
    query = "vit.encoder.layer.0.attention.attention.query.weight"
    rewrite(folder, lambda tensors: tensors.pop(query))
    unchanged()
    message = refused(folder, WeightsError)
    assert "encoder.layer.0.attention.attention.query.weight + encoder.layer.0" in message


def test_tensors_of_whole_numbers(folder, unchanged):
    rewrite(folder, lambda t: t.update({"norm.weight": np.ones(8, "int32")}))
    unchanged()
    message = refused(folder, WeightsError)
    assert f"norm.weight of {folder / WEIGHTS} holds int32, not floating-point numbers" in message


def test_more_blocks_than_the_file_has_tensors(folder, unchanged):
    change(folder, model_args__depth=100)
    unchanged()
    message = refused(folder, WeightsError)
    assert "its config says 100 blocks, but the file holds 20 tensors." in message


def test_a_wide_config_is_refused_before_memory_is_taken(folder, unchanged):
    change(folder, model_args__embed_dim=32768)  # its one block would take 34 GB
    unchanged()
    assert "(1, 1, 8) in the file, (1, 1, 32768) in the model" in refused(folder, WeightsError)


@pytest.mark.parametrize(
    "fields, options, message",
    [
        (
            {"patch_size": 4096, "img_size": 8192},
            {"image_size": 4096},
            "kernel in the file is 4 x 4",
        ),
        ({"img_size": 4096}, {"in_channels": 1}, "The position embedding has 5 rows, but a grid"),
    ],
)
def test_a_config_that_lies_about_what_is_to_be_resized(
    folder, unchanged, fields, options, message
):
    change(folder, **{f"model_args__{name}": value for name, value in fields.items()})
    unchanged()
    assert message in refused(folder, WeightsError, **options)


def test_after_an_error_the_next_model_is_built(folder):
    """An error amid a load must not leave half-made variables to Keras."""
    rewrite(folder, lambda t: t.update({"norm.weight": np.ones(8, "int32")}))
    refused(folder, WeightsError)
    rewrite(folder, lambda t: t.update({"norm.weight": np.ones(8, "float32")}))
    model = keras_vit.from_preset(folder)
    logits = model(np.zeros((1, tiny.SIZE, tiny.SIZE, 3), "float32"))
    assert np.isfinite(keras.ops.convert_to_numpy(logits)).all()


@pytest.mark.parametrize(
    "name, message",
    [
        ("task.json", "it has no task.json. Save the classifier, not its backbone"),
        ("model.weights.h5", "is not a complete Keras preset"),
        ("task.weights.h5", "it has no task.weights.h5, the weights of the head. Save it again"),
    ],
)
def test_an_incomplete_keras_preset(folder, tmp_path, unchanged, name, message):
    keras_vit.from_preset(folder).save_to_preset(tmp_path / "keras")
    (tmp_path / "keras" / name).unlink()
    unchanged()
    assert message in refused(tmp_path / "keras")


@pytest.mark.parametrize("name", [CONFIG, "task.json", "model.weights.h5", "task.weights.h5"])
def test_a_keras_preset_that_was_cut_off(folder, tmp_path, unchanged, name):
    keras_vit.from_preset(folder).save_to_preset(tmp_path / "keras")
    path = tmp_path / "keras" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    unchanged()
    assert str(tmp_path / "keras") in refused(tmp_path / "keras")


# --- Images -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return keras_vit.from_preset(tiny.write(tmp_path_factory.mktemp("tiny"), tiny.timm_files()))


@pytest.mark.parametrize("content", ["text", "nothing", "half a picture"])
def test_a_file_that_is_no_picture(model, tmp_path, unchanged, content):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "good.jpg")
    good = (tmp_path / "good.jpg").read_bytes()
    bad = {"text": b"hello", "nothing": b"", "half a picture": good[: len(good) // 2]}[content]
    (tmp_path / "bad.jpg").write_bytes(bad)
    unchanged()
    for images in (tmp_path / "bad.jpg", [tmp_path / "good.jpg", str(tmp_path / "bad.jpg")]):
        with pytest.raises(ValueError) as caught:
            model.classify(images)
        assert str(caught.value).startswith(
            f"'{tmp_path / 'bad.jpg'}' is not a picture that PIL reads: "
        )


IMAGES = {
    "no image": ([], "There are no images to train on or predict. Received: 0 images"),
    "no image in an array": (np.zeros((0, 8, 8, 3)), "Received: 0 images"),
    "five channels": (
        np.zeros((2, 8, 8, 5)),
        "images of 3 channels, channels last. Received: shape (2, 8, 8, 5)",
    ),
    "two channels": (np.zeros((8, 8, 2)), "load it with from_preset(..., in_channels=)"),
    "a row": (np.zeros(8), "Received: float64 of shape (8,)"),
    "five axes": (np.zeros((1, 1, 8, 8, 3)), "Received: shape (1, 1, 8, 8, 3)"),
    "no pixels": (np.zeros((1, 0, 8, 3)), "An image has no pixels. Received: shape (1, 0, 8, 3)"),
    "nothing": (None, "An image is a path, a PIL image, or an array of numbers"),
    "bytes": ([b"\xff\xd8"], "Received: bytes"),
    "a number": ([np.zeros((8, 8, 3)), 5], "Received: int"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_what_is_no_image(model, case):
    images, message = IMAGES[case]
    with pytest.raises(ValueError) as caught:
        model.classify(images)
    assert message in str(caught.value) and len(str(caught.value)) < 300


def test_a_picture_that_is_not_there(model):
    with pytest.raises(FileNotFoundError, match="^There is no picture at 'nothing.jpg'.$"):
        model.classify("nothing.jpg")
