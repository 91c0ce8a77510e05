"""A checkpoint in OpenVINO: accuracy on photographs by precision, and by way of int8.

    python benchmarks/openvino_int8.py MODEL PICTURES

MODEL: a directory in timm's layout, such as deit_tiny_patch16_224.fb_in1k. PICTURES: a folder of
photographs with labels.json, {file: class}; every fourth calibrates int8. The last row is
onnxruntime's own quantizer: dense layers and patch projection, weights per channel, signed
activations. Needs onnx, onnxruntime, openvino and nncf.
"""

import argparse
import pathlib
import tempfile

import common
import numpy as np

from keras_vit.export import onnx_graph, openvino, openvino_int8, openvino_packages


def predicted(graph, pixels, precision="float32"):
    """Probabilities `(B, K)`."""
    request = openvino.compiled(graph, 2, precision).create_infer_request()
    return np.concatenate([request.infer({"images": x[None]}).to_tuple()[0] for x in pixels])


def by_onnxruntime(content, calibration):
    """The graph of an ONNX file's bytes, quantized by onnxruntime."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.images = iter(calibration)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"images": image[None]}

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (pathlib.Path(folder) / f"{i}.onnx" for i in range(3))
        source.write_bytes(content)
        # It joins products and biases; OpenVINO cannot move int8 scales through what is between.
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        known = {x.name for x in graph.initializer}
        products = [x for x in graph.node if x.op_type in ("MatMul", "Gemm", "Conv")]
        names = [x.name for x in products if x.input[1] in known]
        quantization.quantize_static(
            prepared, target, Reader(), per_channel=True, nodes_to_quantize=names
        )
        return openvino_packages.openvino().Core().read_model(target.read_bytes(), b"")


def ways(content, pixels):
    """(name, graph, precision) of each row."""
    graph = openvino_packages.openvino().Core().read_model(content, b"")
    calibration = "images", [x[None] for x in pixels[::4]]
    yield "float32", graph, "float32"
    yield "bfloat16", graph, "bfloat16"
    rounded = graph.clone()
    openvino_int8.round_weights(rounded)
    yield '`"int8_dynamic"`', rounded, "float32"
    chosen = openvino_int8.SMOOTHING
    for name, smoothing, attention in (
        ('NNCF (`"int8"`)', chosen, False),
        ("NNCF, smoothing 0.7", 0.7, False),
        ("NNCF, smoothing 0.95", 0.95, False),
        ("NNCF, attention products, too", chosen, True),
    ):
        yield (
            name,
            openvino_int8.quantized(graph.clone(), calibration, smoothing, attention),
            "float32",
        )
    yield "onnxruntime's quantizer", by_onnxruntime(content, pixels[::4]), "float32"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("pictures", type=pathlib.Path)
    options = parser.parse_args()
    import keras_vit

    paths, classes = common.photographs(options.pictures)
    model = keras_vit.from_preset(options.model)
    pixels = model.preprocessor.image_converter.pixels(paths).astype("uint8")
    content = onnx_graph.source(model, True, "uint8", None, None).proto().SerializeToString()
    print("| OpenVINO | correct | same prediction | largest difference |\n|---|--:|--:|--:|")
    full = None
    for name, graph, precision in ways(content, pixels):
        found = predicted(graph, pixels, precision)
        full = found if full is None else full
        best = found.argmax(-1)
        correct, same = np.sum(best == classes), np.mean(best == full.argmax(-1))
        print(f"| {name} | {correct} | {same:.1%} | {np.abs(found - full).max():.2g} |", flush=True)


if __name__ == "__main__":
    main()
