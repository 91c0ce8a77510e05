"""Exported files of ViT-B/16 at 224, compared with KerasHub's, onnxruntime's and live models.

    python benchmarks/export.py [--model NAME] [--programs WORD ...] [--rounds N] [--folder DIR]

Two threads, batch 1, the same random weights for all. KerasHub's files come from
`export(format="litert")`, quantized like ours by TensorFlow's dynamic range; onnxruntime runs
timm's model, exported by PyTorch and quantized by its own `quantize_dynamic`. `--programs` selects
those whose name contains one of the words, for example OpenVINO. `keras_vit predict` is
`model.predict`, which also resizes; timm runs in `torch.inference_mode`, its weights in the dtype
that the row says. Needs torch, timm, onnx, onnxruntime, openvino, nncf and ai-edge-quantizer; files
that already exist in `--folder` are kept.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import alternation
import common

NAME = "vit_base_patch16_224"
OPENVINO = {  # program: (the file's quantize, the precision it runs in)
    "OpenVINO float32": (None, "float32"),
    "OpenVINO bfloat16": (None, "bfloat16"),
    "OpenVINO int8_dynamic": ("int8_dynamic", "float32"),
    "OpenVINO int8": ("int8", "float32"),
}
COMPARED_WITH = {
    **dict.fromkeys(("keras_vit predict", "onnxruntime float32"), "timm float32"),
    **dict.fromkeys(OPENVINO, "timm bfloat16"),
    "keras_vit float32": "KerasHub float32",
    "keras_vit float16": "KerasHub float32",
    "keras_vit int8_dynamic": "KerasHub int8_dynamic",
    "keras_vit int8": "KerasHub int8_dynamic",
}


def workers(folder):
    """{program: (its worker, the file or folder it runs, the precision of OpenVINO or timm)}"""
    modes = ("float32", "float16", "int8_dynamic", "int8")
    paths = {f"keras_vit {mode}": folder / f"ours_{mode}.tflite" for mode in modes}
    for mode in ("float32", "int8_dynamic"):
        paths[f"KerasHub {mode}"] = folder / f"hub_{mode}.tflite"
    found = {name: ("tflite", path, "float32") for name, path in paths.items()}
    found["onnxruntime int8_dynamic"] = ("onnx", folder / "timm_int8.onnx", "float32")
    found["onnxruntime float32"] = ("onnx", folder / "ours.onnx", "float32")
    for name, (quantize, precision) in OPENVINO.items():
        found[name] = ("openvino", folder / f"ours_{quantize}.xml", precision)
    found["keras_vit predict"] = ("predict", folder / "weights", "float32")
    for dtype in ("float32", "bfloat16"):
        found[f"timm {dtype}"] = ("timm", folder / "timm", dtype)
    return found


# --- each in its own process, because torch and TensorFlow interfere in one ---


def weights(folder, name):
    import keras
    import numpy as np

    import keras_vit

    keras.utils.set_random_seed(0)
    model = keras_vit.from_preset(name, load_weights=False)
    noise = np.random.default_rng(0).normal
    model.set_weights([w + noise(0, 0.02, w.shape).astype(w.dtype) for w in model.get_weights()])
    model.save_to_transformers(folder / "weights")
    model.save_to_timm(folder / "timm")


def ours(folder, name):
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


def ours_openvino(folder, name):
    import numpy as np

    import keras_vit

    model = keras_vit.from_preset(folder / "weights")
    calibration = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), "uint8")
    keras_vit.export.to_onnx(model, folder / "ours.onnx")
    for mode in (None, "int8_dynamic", "int8"):
        keras_vit.export.to_openvino(
            model,
            folder / f"ours_{mode}.xml",
            quantize=mode,
            calibration=calibration if mode == "int8" else None,
        )


def hub(folder, name):
    import keras_hub
    import tensorflow as tf

    model = keras_hub.models.ViTImageClassifier.from_preset(str(folder / "weights"))
    for mode, options in (("float32", []), ("int8_dynamic", [tf.lite.Optimize.DEFAULT])):
        path = str(folder / f"hub_{mode}.tflite")
        model.export(path, format="litert", optimizations=options)


def onnx(folder, name):
    import torch
    from onnxruntime import quantization
    from safetensors.torch import load_file

    timm = common.import_timm()
    model = timm.create_model(name.partition(".")[0])
    model.load_state_dict(load_file(folder / "timm" / "model.safetensors"))
    x = torch.zeros(1, 3, 224, 224)
    torch.onnx.export(model.eval(), (x,), folder / "timm.onnx", dynamo=False)
    quantization.quantize_dynamic(folder / "timm.onnx", folder / "timm_int8.onnx")


# --- workers ---


def serve(run):
    for _ in range(3):
        run()
    alternation.serve(run)


def run_tflite(path, name, precision):
    import numpy as np

    from keras_vit.export import runtime

    loaded = runtime.interpreter(path, alternation.THREADS)
    (details,) = loaded.get_input_details()
    images = np.random.default_rng(0).integers(0, 256, details["shape"])
    loaded.set_tensor(details["index"], images.astype(details["dtype"]))
    serve(loaded.invoke)


def run_onnx(path, name, precision):
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = alternation.THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in images.shape]
    kind = "uint8" if images.type == "tensor(uint8)" else "float32"
    x = {images.name: np.random.default_rng(0).integers(0, 256, shape).astype(kind)}
    serve(lambda: session.run(None, x))


def run_openvino(path, name, precision):
    import numpy as np

    from keras_vit.export import files

    file = files.open_file(path, alternation.THREADS, precision)
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), "uint8")
    serve(lambda: file.run(images=images))


def run_predict(path, name, precision):
    import numpy as np
    import tensorflow as tf

    import keras_vit

    tf.config.threading.set_intra_op_parallelism_threads(alternation.THREADS)
    model = keras_vit.from_preset(path)
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), "uint8")
    serve(lambda: model.predict(images, verbose=0))


def run_timm(path, name, precision):
    import torch

    torch.set_num_threads(alternation.THREADS)
    dtype = getattr(torch, precision)
    model = common.import_timm().create_model(name.partition(".")[0]).eval().to(dtype)
    with torch.inference_mode():
        x = torch.randn(1, 3, 224, 224).to(dtype)
        serve(lambda: model(x).float().numpy())


# ---


def size(path):
    """In MB."""
    parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    whole = path.is_file()
    return f"{sum(part.stat().st_size for part in parts) / 1e6:.1f}" if whole else ""


def measure(folder, rounds, name, words):
    programs = workers(folder)
    if words:
        programs = {n: p for n, p in programs.items() if any(word in n for word in words)}
    paths = {path for _, path, _ in programs.values()}
    made = {
        "weights": {folder / "weights", folder / "timm"},
        "ours": {path for path in paths if path.name.startswith("ours_") and path.suffix != ".xml"},
        "ours_openvino": {path for path in paths if path.suffix == ".xml"} | {folder / "ours.onnx"},
        "hub": {path for path in paths if path.name.startswith("hub")},
        "onnx": {folder / "timm_int8.onnx"},
    }
    for step, results in made.items():
        wanted = step == "weights" or results & paths
        if wanted and not all(path.exists() for path in results):
            command = [sys.executable, __file__, "--model", name, "--make", step, folder]
            subprocess.run(command, check=True)
    commands = {
        program: (__file__, "--model", name, "--worker", kind, path, precision)
        for program, (kind, path, precision) in programs.items()
    }
    times = alternation.alternate(commands, rounds)
    sizes = {program: size(path) for program, (_, path, _) in programs.items()}
    other = {program: base for program, base in COMPARED_WITH.items() if base in programs}
    print("\n".join(alternation.table(times, other.get, [("MB", sizes)])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=f"{NAME}.augreg_in21k_ft_in1k")
    parser.add_argument("--programs", nargs="+", default=[])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        step, folder = options.make
        globals()[step](pathlib.Path(folder), options.model)
    elif options.worker:
        kind, path, precision = options.worker
        globals()[f"run_{kind}"](pathlib.Path(path), options.model, precision)
    elif options.folder:
        options.folder.mkdir(exist_ok=True)
        measure(options.folder, options.rounds, options.model, options.programs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(pathlib.Path(folder), options.rounds, options.model, options.programs)


if __name__ == "__main__":
    main()
