"""A checkpoint's accuracy on photographs: compared with timm, and quantized.

    python benchmarks/accuracy.py MODEL PICTURES

MODEL: a directory in timm's layout, such as deit_tiny_patch16_224.fb_in1k. PICTURES: a folder of
photographs with labels.json, {file: class}; every fourth is used to calibrate int8. Needs timm,
torch, torchvision and ai-edge-quantizer.
"""

import argparse
import pathlib
import tempfile

import common
import numpy as np


def run_timm(model, paths):
    """Logits and pixels, `(B, H, W, C)` in 0..255, of timm and its own preprocessing."""
    import torch
    from PIL import Image

    timm = common.import_timm()
    model = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    cfg = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**cfg)
    with torch.no_grad():
        x = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        logits = torch.cat([model(part) for part in x.split(25)]).numpy()
    pixels = (x.permute(0, 2, 3, 1).numpy() * cfg["std"] + cfg["mean"]) * 255
    return logits, pixels


def compare_with_timm(model, directory, paths, classes):
    logits, pixels = run_timm(directory, paths)
    ours = model.predict(paths, batch_size=25, verbose=0)
    converter = model.preprocessor.image_converter
    our_pixels = np.stack([converter.pixels(path) for path in paths])
    print("| | keras_vit | timm |\n|---|--:|--:|")
    correct = [f"{(x.argmax(-1) == classes).sum()} of {len(paths)}" for x in (ours, logits)]
    print(f"| correct | {correct[0]} | {correct[1]} |")
    same = (ours.argmax(-1) == logits.argmax(-1)).sum()
    print(f"| same prediction | {same} of {len(paths)} | |")
    print(f"| largest difference in a logit | {np.abs(ours - logits).max():.3f} | |")
    error = np.abs(our_pixels - pixels).mean()
    print(f"| mean difference per pixel value (0..255) | {error:.5f} | |\n")


def files(model, paths, classes, folder):
    import keras_vit

    print("| file | MB | vs float32 | correct | same prediction | largest difference |")
    print("|---|--:|--:|--:|--:|--:|")
    full = None
    for quantize in (None, "float16", "int8_dynamic", "int8"):
        calibration = paths[::4] if quantize == "int8" else None
        path = keras_vit.export.to_tflite(
            model, folder / "m.tflite", quantize, calibration=calibration
        )
        result = keras_vit.export.compare(path, model, paths, labels=classes, threads=2, runs=1)
        size = path.stat().st_size
        full = full or size
        correct = round(result.accuracy * len(paths))
        print(
            f"| TFLite, {quantize or 'float32'} | {size / 1e6:.1f} | {size / full:.3f} "
            f"| {correct} | {result.agreement:.1%} | {result.largest_difference:.2g} |"
        )


def quantized(directory, paths, classes):
    import keras_vit

    print("\n| `model.quantize` | weights, MB | vs float32 | correct |\n|---|--:|--:|--:|")
    full = None
    for mode in (None, "int8", "int4"):
        model = keras_vit.from_preset(directory)
        if mode:
            model.quantize(mode)
        size = sum(weight.nbytes for weight in model.get_weights())
        full = full or size
        predicted = model.predict(paths, batch_size=25, verbose=0).argmax(-1)
        correct = (predicted == classes).sum()
        print(f"| {mode or 'none'} | {size / 1e6:.1f} | {size / full:.3f} | {correct} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("pictures", type=pathlib.Path)
    options = parser.parse_args()
    import keras_vit

    paths, classes = common.photographs(options.pictures)
    model = keras_vit.from_preset(options.model)
    compare_with_timm(model, options.model, paths, classes)
    with tempfile.TemporaryDirectory() as folder:
        files(model, paths, classes, pathlib.Path(folder))
    quantized(options.model, paths, classes)


if __name__ == "__main__":
    main()
