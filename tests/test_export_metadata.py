"""keras_vit.export.metadata: a TFLite file that says what it is, to us and to other programs."""

import io
import json
import struct
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest

import keras_vit_presets as presets
from keras_vit import ViT, __version__
from keras_vit.export import metadata, model_file
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.labels import imagenet_labels

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="files are made on the TensorFlow backend"
)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.4]
LABELS = ["great white\n shark", "Käse", "cat"]
INSIDE = {"mean": [0.0] * 3, "std": [1.0] * 3}
OUTSIDE = {"mean": [102.0, 127.5, 153.0], "std": [51.0, 63.75, 102.0]}


def classifier(num_classes=3, labels=None, preprocessed=True, channels=3):
    backbone = ViT.backbone_cls(
        image_size=(16, 24), patch_size=8, embed_dim=8, depth=1, num_heads=1, in_channels=channels
    )
    converter = ImageConverter((16, 24), MEAN[:channels], STD[:channels], crop_pct=0.8)
    preprocessor = ImagePreprocessor(converter) if preprocessed else None
    return ViT(backbone, num_classes, preprocessor=preprocessor, labels=labels)


@pytest.fixture(scope="module")
def model():
    return classifier(labels=LABELS)


def converted(module, **options):
    import tensorflow as tf

    function = module.call.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    for name, value in options.items():
        setattr(converter, name, value)
    return converter.convert()


def affine():
    """What is not a vision transformer but has weights, an input and an output."""
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.constant(np.random.default_rng(0).normal(size=(300, 40)).astype("float32"))
    signature = [tf.TensorSpec((1, 300), name="images")]
    module.call = tf.function(lambda x: {"probabilities": x @ module.w}, input_signature=signature)
    return module


@pytest.fixture(scope="module")
def content():
    return converted(affine())


@pytest.fixture(scope="module")
def written(content, model):
    return metadata.add_metadata(content, model, quantize="int8_dynamic")


def read(tmp_path, data):
    path = tmp_path / "m.tflite"
    path.write_bytes(data)
    return metadata.read_metadata(path)


def run(data):
    import tensorflow as tf

    with pytest.warns(UserWarning, match="tf.lite.Interpreter is deprecated"):
        interpreter = tf.lite.Interpreter(model_content=data)
    runner = interpreter.get_signature_runner()
    x = np.random.default_rng(1).normal(size=(1, 300)).astype("float32")
    return runner(images=x)["probabilities"]


# --- What it says ---


def test_labels_and_preset_come_back(written, tmp_path):
    found = read(tmp_path, written)
    assert found["labels"] == ["great white shark", "Käse", "cat"]  # one line each
    assert found["preset"] == {
        "name": "ViT",
        "source": None,
        "revision": None,
        "license": None,
        "class": "ViT",
        "num_classes": 3,
        "activation": "softmax",
        "image_size": [16, 24],
        "mean": MEAN,
        "std": STD,
        "crop_pct": 0.8,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "keras_vit": __version__,
        "preprocessing": True,
        "quantize": "int8_dynamic",
    }


@pytest.mark.parametrize(("preprocessing", "numbers"), [(True, INSIDE), (False, OUTSIDE)])
def test_the_input_says_what_is_still_to_be_done(content, model, tmp_path, preprocessing, numbers):
    found = read(tmp_path, metadata.add_metadata(content, model, preprocessing))["metadata"]
    (graph,) = found["subgraph_metadata"]
    (images,), (output,) = graph["input_tensor_metadata"], graph["output_tensor_metadata"]
    assert images["name"] == ("images" if preprocessing else "inputs")
    assert output["name"] == ("probabilities" if preprocessing else "logits")
    assert "cover 20 x 30 pixels" in images["description"]
    assert ("normalized" in images["description"]) != preprocessing
    assert images["content"]["content_properties"] == {"color_space": 1}  # RGB
    (unit,) = images["process_units"]
    assert unit["options_type"] == 1
    for name in ("mean", "std"):
        np.testing.assert_allclose(unit["options"][name], numbers[name], rtol=1e-6)
    mean, std = np.array(numbers["mean"]), np.array(numbers["std"])
    np.testing.assert_allclose(images["stats"]["min"], -mean / std, rtol=1e-6)
    np.testing.assert_allclose(images["stats"]["max"], (255 - mean) / std, rtol=1e-6)
    assert output["associated_files"][0]["name"] == "labels.txt"


def test_the_numbers_are_those_of_the_models_own_preprocessing(content, model, tmp_path):
    found = read(tmp_path, metadata.add_metadata(content, model, False))["metadata"]
    unit = found["subgraph_metadata"][0]["input_tensor_metadata"][0]["process_units"][0]
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype("float32")
    wanted = model.preprocessor.image_converter.normalize(pixels)
    np.testing.assert_allclose(
        (pixels - unit["options"]["mean"]) / unit["options"]["std"], wanted, atol=1e-5
    )


def test_a_preset_has_its_name_license_and_revision(content, tmp_path):
    model = classifier()
    name = "deit_tiny_patch16_224.fb_in1k"
    model.preset, model.source = name, f"hf://timm/{name}@{'0' * 40}"
    found = read(tmp_path, metadata.add_metadata(content, model))
    assert found["metadata"]["name"] == found["preset"]["name"] == name
    assert found["preset"]["source"] == f"hf://timm/{name}"
    assert found["metadata"]["author"] == f"the authors of hf://timm/{name}"
    assert found["metadata"]["version"] == found["preset"]["revision"] == "0" * 40
    licence = presets.checkpoints()[name].license
    assert licence and found["metadata"]["license"] == found["preset"]["license"] == licence


def test_a_place_on_this_machine_is_not_told(content, tmp_path):
    model = classifier()
    model.preset = model.source = "/home/someone/my_flowers"
    data = metadata.add_metadata(content, model)
    assert b"someone" not in data
    assert read(tmp_path, data)["preset"]["source"] == "my_flowers"


def test_thousand_classes_are_those_of_imagenet(content, tmp_path):
    assert (
        read(tmp_path, metadata.add_metadata(content, classifier(1000)))["labels"]
        == imagenet_labels()
    )


@pytest.mark.parametrize(
    ("options", "output"),
    [({"num_classes": 3}, "probabilities"), ({"num_classes": 0}, "features")],
)
def test_without_names_there_is_no_label_file(content, tmp_path, options, output):
    found = read(tmp_path, metadata.add_metadata(content, classifier(**options)))
    assert "labels" not in found
    (tensor,) = found["metadata"]["subgraph_metadata"][0]["output_tensor_metadata"]
    assert tensor["name"] == output and "associated_files" not in tensor
    assert ("stats" in tensor) == (output == "probabilities")


def test_a_model_without_preprocessor_tells_no_numbers(content, tmp_path):
    found = read(tmp_path, metadata.add_metadata(content, classifier(preprocessed=False), False))
    (tensor,) = found["metadata"]["subgraph_metadata"][0]["input_tensor_metadata"]
    assert "process_units" not in tensor and found["preset"]["mean"] is None


@pytest.mark.parametrize(("channels", "space"), [(1, {"color_space": 2}), (2, {})])
def test_grey_is_said_to_be_grey(content, tmp_path, channels, space):
    found = read(tmp_path, metadata.add_metadata(content, classifier(channels=channels)))[
        "metadata"
    ]
    (tensor,) = found["subgraph_metadata"][0]["input_tensor_metadata"]
    assert tensor["content"]["content_properties"] == space
    assert tensor["process_units"][0]["options"]["std"] == [1.0] * channels


# --- To other programs ---


def test_the_interpreter_computes_the_same(content, written):
    np.testing.assert_array_equal(run(written), run(content))


def test_weights_stay_where_memory_can_be_mapped(content, written):
    from tensorflow.lite.python.schema_py_generated import Model

    old, new = Model.GetRootAs(content), Model.GetRootAs(written)
    assert new.BuffersLength() == old.BuffersLength() + 1
    for i in range(old.BuffersLength()):
        a, b = old.Buffers(i), new.Buffers(i)
        np.testing.assert_array_equal(b.DataAsNumpy(), a.DataAsNumpy())
        if a.DataLength():
            assert b._tab.Vector(b._tab.Offset(4)) % 16 == 0
    assert new.SignatureDefs(0).SignatureKey() == b"serving_default"
    assert new.Description() == old.Description() and new.Version() == old.Version()


def test_tensorflow_finds_the_buffer_beside_its_own(content, written):
    from tensorflow.lite.python.schema_py_generated import Model

    def entries(data):
        model = Model.GetRootAs(data)
        names = [model.Metadata(i).Name().decode() for i in range(model.MetadataLength())]
        buffers = [model.Metadata(i).Buffer() for i in range(model.MetadataLength())]
        return {
            n: bytes(model.Buffers(b).DataAsNumpy()) for n, b in zip(names, buffers, strict=True)
        }

    old, new = entries(content), entries(written)
    data = new.pop("TFLITE_METADATA")
    assert new == old and "CONVERSION_METADATA" in old
    assert flatbuffers.util.BufferHasIdentifier(data, 0, b"M001")
    # by the slots of metadata_schema.fbs, with flatbuffers' own reader
    root = flatbuffers.table.Table(data, struct.unpack_from("<I", data)[0])

    def field(table, slot):
        return table.Pos + table.Offset(4 + 2 * slot)

    def first(table, slot):
        start = table.Vector(table.Offset(4 + 2 * slot))
        return flatbuffers.table.Table(data, table.Indirect(start))

    assert root.String(field(root, 0)) == b"ViT" and root.String(field(root, 7)) == b"1.0.0"
    graph = first(root, 3)
    images, output = first(graph, 2), first(graph, 3)
    assert images.String(field(images, 0)) == b"images"
    assert output.String(field(output, 0)) == b"probabilities"
    labels = first(output, 6)
    assert labels.String(field(labels, 0)) == b"labels.txt"
    assert labels.Get(flatbuffers.number_types.Int8Flags, field(labels, 2)) == 2
    options = first(images, 4)
    assert options.Get(flatbuffers.number_types.Uint8Flags, field(options, 0)) == 1
    options = flatbuffers.table.Table(data, options.Indirect(field(options, 1)))
    floats = flatbuffers.number_types.Float32Flags
    np.testing.assert_array_equal(options.GetVectorAsNumpy(floats, options.Offset(6)), [1, 1, 1])


def test_the_schemas_own_reader_understands_it(written):
    name = "tensorflow_lite_support.metadata.metadata_schema_py_generated"
    schema = pytest.importorskip(name)
    data = model_file.buffer(written, "TFLITE_METADATA")
    found = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(data, 0))
    (graph,) = found.subgraphMetadata
    (images,), (output,) = graph.inputTensorMetadata, graph.outputTensorMetadata
    assert images.content.contentPropertiesType == schema.ContentProperties.ImageProperties
    assert images.content.contentProperties.colorSpace == schema.ColorSpaceType.RGB
    assert list(images.processUnits[0].options.mean) == [0, 0, 0]
    assert list(images.stats.max) == [255, 255, 255]
    kind = schema.AssociatedFileType.TENSOR_AXIS_LABELS
    assert output.associatedFiles[0].type == kind
    assert found.associatedFiles[0].name == b"preset.json"


def test_any_unzip_opens_it(written):
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["preset.json", "labels.txt"]
        assert archive.read("labels.txt").decode("utf-8") == "great white shark\nKäse\ncat\n"
        assert json.loads(archive.read("preset.json"))["num_classes"] == 3
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED  # MediaPipe reads no other
            assert written[info.header_offset :].startswith(b"PK\3\4")  # counted from the start


def test_equal_models_make_equal_files(content, model):
    assert metadata.add_metadata(content, model) == metadata.add_metadata(content, model)


def test_data_behind_the_flatbuffer_is_found_again():
    """Where a file grows above 2 GB the converter counts its weights from the file's start."""
    content = converted(affine(), _experimental_use_buffer_offset=True)
    model = model_file.schema().Model.GetRootAs(content, 0)
    assert any(model.Buffers(i).Offset() > 1 for i in range(model.BuffersLength()))
    with_one_more = model_file.with_buffer(content, "ONE", b"more")
    assert model_file.buffer(with_one_more, "ONE") == b"more"
    np.testing.assert_array_equal(run(with_one_more), run(content))


# --- What is none, or broken ---


def test_a_file_without_metadata_says_nothing(content, tmp_path):
    assert read(tmp_path, content) == {}


def test_metadata_is_written_once(written, model):
    with pytest.raises(ValueError, match="already has metadata"):
        metadata.add_metadata(written, model)


@pytest.mark.parametrize("data", [b"", b"TFL3", b"not a model, but text"])
def test_what_is_no_tflite_file_is_said(data, model, tmp_path):
    with pytest.raises(ValueError, match="m.tflite' is not a readable TFLite file"):
        read(tmp_path, data)
    with pytest.raises(ValueError, match="Not a TFLite file"):
        metadata.add_metadata(data, model)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        metadata.read_metadata(tmp_path / "none.tflite")


def test_a_damaged_file_is_an_error_or_is_read(written, tmp_path):
    random = np.random.default_rng(0)
    new = len(written) - len(converted(affine()))  # most of it stands before the old file
    for _ in range(100):
        length = random.integers(8, len(written)) if random.random() < 0.3 else len(written)
        data = bytearray(written[:length])
        for at in random.integers(0, min(new, length), 3):
            data[at] = random.integers(256)
        try:
            assert isinstance(read(tmp_path, bytes(data)), dict)
        except ValueError as error:
            assert "is not a readable TFLite file" in str(error)
