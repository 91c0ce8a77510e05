"""Which operations of a ViT tolerate int8: DeiT-Tiny with different groups of them quantized.

    python benchmarks/int8.py MODEL PICTURES

MODEL: a directory of deit_tiny_patch16_224.fb_in1k; PICTURES: a folder of photographs with
labels.json, {file: class}. Every fourth image is used for calibration. Needs ai-edge-quantizer.
"""

import argparse
import contextlib
import io
import pathlib
import tempfile

import common
import numpy as np

DENSE = [(".*", "FULLY_CONNECTED"), (".*", "CONV_2D")]
SCORES, VALUES = (".*attn_1/MatMul;.*", "BATCH_MATMUL"), (".*attn_1/MatMul_1.*", "BATCH_MATMUL")
GROUPS = {
    "dense layers and patch projection": DENSE,
    "plus GELU": [*DENSE, (".*", "GELU")],
    "plus scores (query times key)": [*DENSE, SCORES],
    "plus attention times value": [*DENSE, VALUES],
    "plus both": [*DENSE, (".*", "BATCH_MATMUL")],
    "everything possible": [(".*", "*")],
}


def quantized(path, operations, pixels):
    """The bytes of the float32 file with those operations in int8."""
    from ai_edge_quantizer import qtyping, quantizer

    work = quantizer.Quantizer(str(path))
    for regex, name in operations:
        work.add_static_config(
            regex=regex,
            operation_name=qtyping.TFLOperationName(name),
            activation_num_bits=8,
            weight_num_bits=8,
        )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ranges = work.calibrate({"serving_default": [{"images": x[None]} for x in pixels]})
        return work.quantize(ranges).quantized_model


def probabilities(path, pixels):
    from keras_vit.export import runtime

    run = runtime.interpreter(path, 2).get_signature_runner()
    return np.concatenate([run(images=x[None])["probabilities"] for x in pixels])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("pictures", type=pathlib.Path)
    options = parser.parse_args()
    import keras_vit

    paths, classes = common.photographs(options.pictures)
    model = keras_vit.from_preset(options.model)
    pixels = model.preprocessor.image_converter.pixels(paths).astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "float32.tflite"
        keras_vit.export.to_tflite(model, path)
        known = probabilities(path, pixels).argmax(-1)
        print(f"| in int8 | correct, of {len(paths)} | same prediction |\n|---|--:|--:|")
        print(f"| nothing | {np.sum(known == classes)} | 100.0% |")
        for group, operations in GROUPS.items():
            other = pathlib.Path(folder) / "int8.tflite"
            other.write_bytes(quantized(path, operations, pixels[::4]))
            predicted = probabilities(other, pixels).argmax(-1)
            correct = np.sum(predicted == classes)
            print(f"| {group} | {correct} | {np.mean(predicted == known):.1%} |")


if __name__ == "__main__":
    main()
