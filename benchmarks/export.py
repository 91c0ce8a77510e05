"""TFLite files of ViT-B/16 at 224, compared with KerasHub's and onnxruntime's.

    python benchmarks/export.py [--rounds N] [--folder DIR]

Two threads, batch 1, the same random weights for all. KerasHub's files come from
`export(format="litert")`, quantized like ours by TensorFlow's dynamic range; onnxruntime runs
timm's model, exported by PyTorch and quantized by its own `quantize_dynamic`. Needs torch, timm,
onnx, onnxruntime and ai-edge-quantizer; files that already exist in `--folder` are kept.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import alternation
import common

NAME = "vit_base_patch16_224"
COMPARED_WITH = {
    "keras_vit float32": "KerasHub float32",
    "keras_vit float16": "KerasHub float32",
    "keras_vit int8_dynamic": "KerasHub int8_dynamic",
    "keras_vit int8": "KerasHub int8_dynamic",
}


def files(folder):
    """{program: its file}"""
    modes = ("float32", "float16", "int8_dynamic", "int8")
    paths = {f"keras_vit {mode}": folder / f"ours_{mode}.tflite" for mode in modes}
    for mode in ("float32", "int8_dynamic"):
        paths[f"KerasHub {mode}"] = folder / f"hub_{mode}.tflite"
    paths["onnxruntime int8_dynamic"] = folder / "timm_int8.onnx"
    return paths


# --- each in its own process, because torch and TensorFlow interfere in one ---


def weights(folder):
    import keras
    import numpy as np

    import keras_vit

    keras.utils.set_random_seed(0)
    model = keras_vit.from_preset(f"{NAME}.augreg_in21k_ft_in1k", load_weights=False)
    noise = np.random.default_rng(0).normal
    model.set_weights([w + noise(0, 0.02, w.shape).astype(w.dtype) for w in model.get_weights()])
    model.save_to_transformers(folder / "weights")
    model.save_to_timm(folder / "timm")


def ours(folder):
    import numpy as np

    import keras_vit

    model = keras_vit.from_preset(folder / "weights")
    calibration = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), "uint8")
    for mode in ("float32", "float16", "int8_dynamic", "int8"):
        keras_vit.export.to_tflite(
            model,
            folder / f"ours_{mode}.tflite",
            quantize=None if mode == "float32" else mode,
            calibration=calibration if mode == "int8" else None,
        )


def hub(folder):
    import keras_hub
    import tensorflow as tf

    model = keras_hub.models.ViTImageClassifier.from_preset(str(folder / "weights"))
    for mode, options in (("float32", []), ("int8_dynamic", [tf.lite.Optimize.DEFAULT])):
        path = str(folder / f"hub_{mode}.tflite")
        model.export(path, format="litert", optimizations=options)


def onnx(folder):
    import torch
    from onnxruntime import quantization
    from safetensors.torch import load_file

    timm = common.import_timm()
    model = timm.create_model(NAME)
    model.load_state_dict(load_file(folder / "timm" / "model.safetensors"))
    x = torch.zeros(1, 3, 224, 224)
    torch.onnx.export(model.eval(), (x,), folder / "timm.onnx", dynamo=False)
    quantization.quantize_dynamic(folder / "timm.onnx", folder / "timm_int8.onnx")


# --- workers ---


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


def run_onnx(path):
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = alternation.THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    x = {name: np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype("float32")}
    for _ in range(3):
        session.run(None, x)
    alternation.serve(lambda: session.run(None, x))


def measure(folder, rounds):
    programs = files(folder)
    for step in (weights, ours, hub, onnx):
        made = {weights: folder / "weights", ours: programs["keras_vit int8"]}
        made |= {hub: programs["KerasHub int8_dynamic"], onnx: folder / "timm_int8.onnx"}
        if not made[step].exists():
            subprocess.run([sys.executable, __file__, "--make", step.__name__, folder], check=True)
    commands = {name: (__file__, "--worker", path) for name, path in programs.items()}
    times = alternation.alternate(commands, rounds)
    sizes = {name: f"{path.stat().st_size / 1e6:.1f}" for name, path in programs.items()}
    print("\n".join(alternation.table(times, COMPARED_WITH.get, [("MB", sizes)])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        step, folder = options.make
        globals()[step](pathlib.Path(folder))
    elif options.worker:
        (run_onnx if options.worker.suffix == ".onnx" else run_tflite)(options.worker)
    elif options.folder:
        options.folder.mkdir(exist_ok=True)
        measure(options.folder, options.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(pathlib.Path(folder), options.rounds)


if __name__ == "__main__":
    main()
