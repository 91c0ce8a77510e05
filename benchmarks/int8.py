"""Which operations of a ViT tolerate int8: DeiT-Tiny with different groups of them quantized.

    python benchmarks/int8.py MODEL PICTURES

MODEL: a directory of deit_tiny_patch16_224.fb_in1k; PICTURES: a folder of photographs with
labels.json, {file: class}. Every fourth image is used for calibration. Times: medians of an image
on two threads, the files in alternation. Needs ai-edge-quantizer.

A quantized tensor has one scale. "Heads apart": each head's products are operations of their own,
so that each head has its own scales. "Rows, too": besides, e^(score - the row's maximum) is what
multiplies the values, and the sum of the row divides the result: each row has its own scale.
"""

import argparse
import contextlib
import io
import itertools
import pathlib
import statistics
import tempfile
import time

import common
import numpy as np

DENSE = [(".*", "FULLY_CONNECTED"), (".*", "CONV_2D")]
SCORES, VALUES = (".*scores_int8.*", "BATCH_MATMUL"), (".*values_int8.*", "BATCH_MATMUL")
BOTH = (".*", "BATCH_MATMUL")
GROUPS = {  # name: (how attention is written, what is int8)
    "nothing": ("together", []),
    "dense layers and patch projection": ("together", DENSE),
    "plus GELU": ("together", [*DENSE, (".*", "GELU")]),
    "plus scores (query times key)": ("together", [*DENSE, SCORES]),
    "plus attention times value": ("together", [*DENSE, VALUES]),
    "plus both": ("together", [*DENSE, BOTH]),
    "plus scores, heads apart": ("apart", [*DENSE, SCORES]),
    "plus attention times value, heads apart": ("apart", [*DENSE, VALUES]),
    "plus both, heads apart": ("apart", [*DENSE, BOTH]),
    "plus attention times value, rows, too": ("rows", [*DENSE, VALUES]),
    "plus both, rows, too": ("rows", [*DENSE, BOTH]),
    "everything possible": ("together", [(".*", "*")]),
}
ROUNDS = 30


def attention(way):
    """Instead of `keras_vit.layers.attention.attend`: the same numbers."""
    import tensorflow as tf

    def product(q, k, v):
        with tf.name_scope("scores_int8"):
            scores = tf.matmul(q, k, transpose_b=True)
        if way == "rows":
            weights = tf.exp(scores - tf.reduce_max(scores, -1, keepdims=True))
            total = tf.reduce_sum(weights, -1, keepdims=True)
        else:
            weights, total = tf.nn.softmax(scores), None
        with tf.name_scope("values_int8"):
            x = tf.matmul(weights, v)
        return x if total is None else x / total

    def attend(q, k, v, bias=None, attention_mask=None):
        if way == "together":
            return product(q, k, v)
        heads = zip(*(tf.split(x, x.shape[1], axis=1) for x in (q, k, v)), strict=True)
        return tf.concat([product(*head) for head in heads], axis=1)

    return attend


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


def probabilities(run, pixels):
    return np.concatenate([run(images=x[None])["probabilities"] for x in pixels])


def exported(model, way, path):
    """The float32 file of a model whose attention is written in that way."""
    from unittest import mock

    import keras_vit

    with mock.patch("keras_vit.layers.attention.attend", attention(way)):
        return keras_vit.export.to_tflite(model, path)


def milliseconds(runs, pixels):
    """{name: median}, in alternation."""
    times = {name: [] for name in runs}
    for x in itertools.islice(itertools.cycle(pixels), ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run(images=x[None])
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("pictures", type=pathlib.Path)
    options = parser.parse_args()
    import keras_vit
    from keras_vit.export import runtime

    paths, classes = common.photographs(options.pictures)
    model = keras_vit.from_preset(options.model)
    pixels = model.preprocessor.image_converter.pixels(paths).astype("uint8")
    runs, predicted = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for way in dict.fromkeys(way for way, _ in GROUPS.values()):
            files[way] = exported(model, way, pathlib.Path(folder) / f"{way}.tflite")
        for group, (way, operations) in GROUPS.items():
            path = files[way]
            if operations:
                path = pathlib.Path(folder) / f"{group}.tflite"
                path.write_bytes(quantized(files[way], operations, pixels[::4]))
            runs[group] = runtime.interpreter(path, 2).get_signature_runner()
            predicted[group] = probabilities(runs[group], pixels).argmax(-1)
    times = milliseconds(runs, pixels)
    known = predicted["nothing"]
    print(f"| in int8 | correct, of {len(paths)} | same prediction | ms |\n|---|--:|--:|--:|")
    for group, found in predicted.items():
        correct, same = np.sum(found == classes), np.mean(found == known)
        print(f"| {group} | {correct} | {same:.1%} | {times[group]:.1f} |")


if __name__ == "__main__":
    main()
