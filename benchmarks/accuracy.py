"""A checkpoint on photographs: beside timm, and in smaller numbers.

    python benchmarks/accuracy.py MODEL PICTURES

MODEL: a directory in timm's layout, such as deit_tiny_patch16_224.fb_in1k. PICTURES: a folder of
photographs with labels.json, {file: class}; every fourth calibrates int8. Needs timm and torch,
with a torchvision, and ai-edge-quantizer.
"""

import argparse
import pathlib
import tempfile

import common
import numpy as np


def timms(model, paths):
    """Logits and pixels, `(B, H, W, C)` in 0..255, of timm's own pipeline."""
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


def beside_timm(model, directory, paths, classes):
    logits, pixels = timms(directory, paths)
    ours = model.predict(paths, batch_size=25, verbose=0)
    converter = model.preprocessor.image_converter
    found = np.stack([converter.pixels(path) for path in paths])
    print("| | keras_vit | timm |\n|---|--:|--:|")
    right = [f"{(x.argmax(-1) == classes).sum()} of {len(paths)}" for x in (ours, logits)]
    print(f"| right | {right[0]} | {right[1]} |")
    same = (ours.argmax(-1) == logits.argmax(-1)).sum()
    print(f"| the same answer | {same} of {len(paths)} | |")
    print(f"| largest difference of a logit | {np.abs(ours - logits).max():.3f} | |")
    print(f"| mean difference of a pixel, of 255 | {np.abs(found - pixels).mean():.5f} | |\n")


def files(model, paths, classes, folder):
    import keras_vit

    print("| file | MB | of float32's | right | the model's answer | largest difference |")
    print("|---|--:|--:|--:|--:|--:|")
    full = None
    for quantize in (None, "float16", "int8_dynamic", "int8"):
        calibration = paths[::4] if quantize == "int8" else None
        path = keras_vit.export.to_tflite(
            model, folder / "m.tflite", quantize, calibration=calibration
        )
        found = keras_vit.export.compare(path, model, paths, labels=classes, threads=2, runs=1)
        size = path.stat().st_size
        full = full or size
        right = round(found.accuracy * len(paths))
        print(
            f"| TFLite, {quantize or 'float32'} | {size / 1e6:.1f} | {size / full:.3f} | {right} | "
            f"{found.agreement:.1%} | {found.largest_difference:.2g} |"
        )


def quantized(directory, paths, classes):
    import keras_vit

    print("\n| Keras' quantization | weights, MB | of float32's | right |\n|---|--:|--:|--:|")
    full = None
    for mode in (None, "int8", "int4"):
        model = keras_vit.from_preset(directory)
        if mode:
            model.quantize(mode)
        size = sum(weight.nbytes for weight in model.get_weights())
        full = full or size
        found = model.predict(paths, batch_size=25, verbose=0).argmax(-1)
        right = (found == classes).sum()
        print(f"| {mode or 'none'} | {size / 1e6:.1f} | {size / full:.3f} | {right} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("pictures", type=pathlib.Path)
    options = parser.parse_args()
    import keras_vit

    paths, classes = common.photographs(options.pictures)
    model = keras_vit.from_preset(options.model)
    beside_timm(model, options.model, paths, classes)
    with tempfile.TemporaryDirectory() as folder:
        files(model, paths, classes, pathlib.Path(folder))
    quantized(options.model, paths, classes)


if __name__ == "__main__":
    main()
