"""One model of each hierarchical family, compared with timm, KerasHub and Keras, on the CPU.

    python benchmarks/families.py [--models NAME ...] [--tasks predict-1 predict-8 train tflite]

Inference (`predict-B`: batch size B) and a training step (`train`: batch size 8, SGD) at the
model's own size, in float32 with random weights and preprocessed inputs, two threads, each program
in its own process and in alternation. Keras models run on TensorFlow, through `tf.function` or
`train_on_batch`; timm's in eager PyTorch. `tflite`: latency and size of the exported files, batch
size 1, with the XNNPACK partitions and the operations that are not built in, and the error of their
features on cuts from two photographs: root mean square, divided by the features' deviation from
picture to picture. Needs torch and timm.
"""

import argparse
import pathlib
import tempfile

import alternation
import common

MODELS = {  # preset: (a model in KerasHub or Keras, or None)
    "swin_tiny_patch4_window7_224.ms_in1k": "KerasHub",
    "pvt_v2_b2.in1k": None,
    "coatnet_0_rw_224.sw_in1k": None,
    "maxvit_tiny_tf_224.in1k": None,
    "convnext_tiny.fb_in1k": "Keras",
}
TASKS = ("predict-1", "predict-8", "train", "tflite")
TRAIN_BATCH = 8


def keras_vit(name):
    import keras_vit

    return keras_vit.from_preset(name, load_weights=False)


def kerashub(name):
    """Swin-T, as its class is called without arguments of another size."""
    import keras_hub

    backbone = keras_hub.models.SwinTransformerBackbone(
        image_shape=(224, 224, 3),
        patch_size=4,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
    )
    return keras_hub.models.SwinTransformerImageClassifier(backbone, 1000)


def keras(name):
    import keras

    return keras.applications.ConvNeXtTiny(
        weights=None, include_preprocessing=False, classifier_activation=None
    )


KERAS = {"keras_vit": keras_vit, "KerasHub": kerashub, "Keras": keras}


def run_keras(make, name, task):
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(alternation.THREADS)
    model = make(name)
    size = model.input.shape[1:3] if None not in model.input.shape[1:3] else (224, 224)
    random = np.random.default_rng(0)
    if task == "train":
        x = random.normal(size=(TRAIN_BATCH, *size, 3)).astype("float32")
        y = random.integers(0, 1000, TRAIN_BATCH)
        model.preprocessor = None
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=False)
        run = lambda: model.train_on_batch(x, y)  # noqa: E731
    else:
        shape = (int(task.partition("-")[2]), *size, 3)
        x = tf.constant(random.normal(size=shape).astype("float32"))
        compiled = tf.function(lambda x: model(x, training=False), jit_compile=False)
        run = lambda: compiled(x).numpy()  # noqa: E731
    for _ in range(3):
        run()
    alternation.serve(run)


def run_timm(name, task):
    import torch

    torch.set_num_threads(alternation.THREADS)
    model = common.import_timm().create_model(name)
    size = model.pretrained_cfg["input_size"]
    if task == "train":
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        x, y = torch.randn(TRAIN_BATCH, *size), torch.randint(0, 1000, (TRAIN_BATCH,))

        def run():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    else:
        model.eval()
        x = torch.randn(int(task.partition("-")[2]), *size)

        def run():
            with torch.inference_mode():
                model(x).numpy()

    for _ in range(3):
        run()
    alternation.serve(run)


def run_tflite(path):
    import numpy as np

    from keras_vit.export import runtime

    loaded = runtime.interpreter(path, alternation.THREADS)
    (details,) = loaded.get_input_details()
    images = np.random.default_rng(0).integers(0, 256, details["shape"])
    loaded.set_tensor(details["index"], images.astype(details["dtype"]))
    for _ in range(3):
        loaded.invoke()
    alternation.serve(loaded.invoke)


def worker(program, name, task):
    if program == "timm":
        run_timm(name, task)
    elif program == "tflite":
        run_tflite(pathlib.Path(task))
    else:
        run_keras(KERAS[program], name, task)


def measure(name, task, rounds):
    programs = ["keras_vit", "timm", *filter(None, [MODELS[name]])]
    commands = {p: (__file__, "--worker", p, name, task) for p in programs}
    median = alternation.medians(alternation.alternate(commands, rounds))
    fastest = min(seconds for program, seconds in median.items() if program != "keras_vit")
    for program, seconds in median.items():
        cells = (name, task, program, f"{seconds * 1e3:.1f}", f"{seconds / fastest:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)


def photographs(count=24):
    """Random cuts from scikit-learn's two photographs."""
    import numpy as np

    from keras_vit import demo

    random, whole = np.random.default_rng(0), [*demo.photographs().values()]
    for i in range(count):
        picture = np.asarray(whole[i % len(whole)])
        edge = random.integers(100, min(picture.shape[:2]))
        top, left = (random.integers(0, length - edge) for length in picture.shape[:2])
        yield picture[top : top + edge, left : left + edge]


def measure_files(name, rounds):
    """Latency, size and parts of TFLite files, and how far their features are from the model's."""
    import keras
    import numpy as np

    import keras_vit
    from keras_vit.export import runtime

    keras.utils.set_random_seed(0)
    model = keras_vit.from_preset(name, load_weights=False, num_classes=0)
    noise = np.random.default_rng(0)
    model.set_weights(
        [w + noise.normal(0, 0.02, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    converter = model.preprocessor.image_converter
    images = np.stack([np.round(converter.pixels(x)) for x in photographs()]).astype("uint8")
    expected = keras.Model.predict(model, np.stack([*map(converter.normalize, images)]), verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        commands, rows = {}, {}
        for mode in ("float32", "int8_dynamic"):
            path = pathlib.Path(folder) / f"{mode}.tflite"
            quantize = None if mode == "float32" else mode
            keras_vit.export.to_tflite(model, path, quantize=quantize)
            report = keras_vit.export.compare(path, model, images[:1])
            run = runtime.interpreter(path, alternation.THREADS).get_signature_runner()
            found = [run(images=x[None])["features"][0] for x in images]
            error = np.std(found - expected) / np.std(expected - expected.mean(0))
            rows[mode] = f"{path.stat().st_size / 1e6:.1f} MB", report, f"{error:.1e}"
            commands[mode] = (__file__, "--worker", "tflite", name, path)
        del model
        median = alternation.medians(alternation.alternate(commands, rounds))
        for mode, (size, report, error) in rows.items():
            foreign = [op for op in report.operations if op.startswith(("Flex", "CUSTOM"))]
            cells = (
                name,
                f"tflite {mode}",
                size,
                f"{median[mode] * 1e3:.1f} ms",
                f"error {error}",
                f"{report.partitions} partitions",
                f"{sum(report.operations.values())} operations, not built in: {foreign or 'none'}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    print("| model | task | program | ms | vs fastest peer |\n|---|---|---|--:|--:|")
    for name in options.models:
        for task in options.tasks:
            if task == "tflite":
                measure_files(name, options.rounds)
            else:
                measure(name, task, options.rounds)


if __name__ == "__main__":
    main()
