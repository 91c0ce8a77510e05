"""The whole way on small data: load, classify, fine-tune, save, export, compare, explain."""

import pathlib
import time

import keras
import numpy as np

from keras_vit import explain, export, train
from keras_vit.hub import HubError
from keras_vit.zoo import from_preset

PRESET = "vit_digits_patch4_32.sklearn"
TRAINED = (
    1000  # scripts/train_digits.py trains on the first 1000 digits; the other 797 are held out
)
TAUGHT = 500  # of these, the demo trains on 500 and judges by the last 297
PATCHES = 6  # rows and columns of patches for a Hub checkpoint: enough for 8 x 8 pixels


def digits():
    """scikit-learn's handwritten digits.

    Returns:
        (images, labels): uint8 `(1797, 8, 8, 1)`, light on dark; what they show, ints `(1797,)`.
    """
    data = _datasets().load_digits()
    return np.round(data.images * (255 / 16)).astype("uint8")[..., None], data.target


def photographs():
    """scikit-learn's two photographs: {name: uint8 (427, 640, 3)}."""
    data = _datasets().load_sample_images()
    return {pathlib.Path(n).name: i for n, i in zip(data.filenames, data.images, strict=True)}


def _datasets():
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError(
            'The demo takes its pictures from scikit-learn: pip install "scikit-learn>=1.9"'
        ) from None
    return datasets


def run(preset=None, output="keras_vit_demo", out=None):
    """Run the demo.

    Args:
        preset: a checkpoint, as `from_preset` takes it; None: the small one in the package.
        output: the folder to write into; files of an earlier demo in it are replaced.
        out: a rich `Console`, or None for the terminal.

    Raises:
        ImportError: scikit-learn or matplotlib is not installed; the message says how to.
        keras_vit.hub.HubError: the checkpoint could not be fetched.
    """
    from rich.console import Console

    out, start = out or Console(highlight=False), time.monotonic()
    images, labels = digits()
    explain.matplotlib_figure()
    keras.utils.set_random_seed(0)
    folder = pathlib.Path(output)
    steps = Packaged(images, labels) if preset is None else FromHub(images, labels, preset)
    head(out, 1, "Load a checkpoint")
    model = steps.load(out)
    folder.mkdir(parents=True, exist_ok=True)
    head(out, 2, "Classify pictures that it has not seen")
    steps.classify(model, out)
    head(out, 3, "Fine-tune it")
    tuned, judges = steps.finetune(model, out)
    tuned.save_to_preset(str(folder / "model"))
    head(out, 4, "Export it to TFLite, and compare the files with the model")
    exported(tuned, judges, folder, out)
    head(out, 5, "Look at what it looks at")
    picture = folder / "attention.png"
    explain.overlay(*steps.to_explain(model, tuned, judges)).savefig(picture, dpi=120)
    out.print(f"{picture}: {explain.shown(model)}, drawn over pictures.", soft_wrap=True)
    out.print(f"\n[bold]Done in {time.monotonic() - start:.0f} seconds.[/] In {folder}/:")
    listing(folder, out)


def head(out, number, text):
    out.print(f"\n[bold]{number}. {text}[/]")


def code(out, text):
    out.print(text, style="cyan", markup=False, soft_wrap=True)


def accuracy(model, images, labels):
    return float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


class Packaged:
    """The demo of the checkpoint in the package: it learns to read its digits dark on light."""

    def __init__(self, images, labels):
        self.images, self.labels = images[TRAINED:], labels[TRAINED:]

    def load(self, out):
        model = train.fast(from_preset(PRESET))
        code(out, f'model = keras_vit.from_preset("{PRESET}")')
        out.print(
            f"A ViT of {model.count_params():,} parameters, trained on {TRAINED} of scikit-learn's "
            "handwritten digits by scripts/train_digits.py. It lies in the package: no network is "
            "needed."
        )
        return model

    def classify(self, model, out):
        from rich.table import Table

        code(out, "model.classify(images)")
        rows = [int(np.flatnonzero(self.labels == digit)[0]) for digit in range(10)]
        found = [best for (best,) in model.classify(self.images[rows], top=1)]
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("it is", *(str(self.labels[row]) for row in rows))
        table.add_row("found", *(name for name, _ in found))
        table.add_row("probability", *(f"{probability:.0%}" for _, probability in found))
        out.print(table)
        right = accuracy(model, self.images, self.labels)
        out.print(
            f"It reads {right:.1%} of {len(self.labels)} digits by other writers, held out from "
            "its training."
        )

    def finetune(self, model, out):
        images = 255 - self.images
        out.print(
            "Now the digits are inverted: dark on light, as on paper. It has never seen that. It "
            f"learns it from {TAUGHT} of the digits held out; the others judge."
        )
        code(out, "keras_vit.train.finetune(model, (images, labels), validation, epochs)")
        judges = images[TAUGHT:], self.labels[TAUGHT:]
        before = accuracy(model, *judges)
        tuned = train.fast(from_preset(PRESET))
        taught = images[:TAUGHT], self.labels[:TAUGHT]
        return learn(tuned, taught, judges, before, out, epochs=20)

    def to_explain(self, model, tuned, judges):
        return tuned, judges[0][[int(np.flatnonzero(judges[1] == digit)[0]) for digit in (3, 5, 8)]]


class FromHub:
    """The same on any checkpoint: it names scikit-learn's two photographs, then learns digits."""

    def __init__(self, images, labels, preset):
        self.images, self.labels, self.preset = images[TRAINED:], labels[TRAINED:], preset
        self.photographs = photographs()

    def load(self, out):
        code(out, f'model = keras_vit.from_preset("{self.preset}")')
        try:
            model = train.fast(from_preset(self.preset))
        except HubError:
            out.print(
                "It could not be fetched. `keras-vit demo` without --preset needs no network."
            )
            raise
        out.print(f"A {type(model).__name__} of {model.count_params():,} parameters.")
        return model

    def classify(self, model, out):
        if not model.num_classes:
            out.print("It has no classes: it gives features. The fine-tuning adds a head.")
            return
        code(out, "model.classify(images)")
        out.print("Two photographs that come with scikit-learn:")
        results = model.classify(list(self.photographs.values()), top=3)
        for name, result in zip(self.photographs, results, strict=True):
            out.print(f"  {name}: " + ", ".join(f"{label} {p:.0%}" for label, p in result))

    def finetune(self, model, out):
        size = PATCHES * (model.image_size[0] // model.backbone.grid_size[0])
        channels = model.backbone.options["in_channels"]
        out.print(
            f"A new head of 10 classes, and input of {size} x {size} pixels, for scikit-learn's "
            f"handwritten digits: {TAUGHT} to learn from, {len(self.labels) - TAUGHT} to judge by."
        )
        call = f'from_preset("{self.preset}", num_classes=10, image_size={size})'
        code(out, f"tuned = keras_vit.{call}")
        tuned = train.fast(from_preset(self.preset, num_classes=10, image_size=size))
        tuned.labels = [str(digit) for digit in range(10)]
        images = np.repeat(self.images, channels, axis=-1)
        judges = images[TAUGHT:], self.labels[TAUGHT:]
        before = accuracy(tuned, *judges)
        taught = images[:TAUGHT], self.labels[:TAUGHT]
        return learn(tuned, taught, judges, before, out, epochs=3)

    def to_explain(self, model, tuned, judges):
        return model, list(self.photographs.values())


def learn(model, taught, judges, before, out, epochs):
    """Fine-tune and tell the accuracy before and after: (model, judges)."""
    train.finetune(
        model,
        taught,
        judges,
        epochs,
        batch_size=25,
        flip=False,  # a mirrored 2 is no 2
        verbose=1 if out.is_terminal else 2,
    )
    after = accuracy(model, *judges)
    out.print(
        f"Accuracy on {len(judges[1])} digits that it has not learned from: "
        f"[bold]{before:.1%} before, {after:.1%} after.[/]"
    )
    return model, judges


def exported(model, judges, folder, out):
    """float32 and int8 files, and a table of what they cost and give."""
    from rich.table import Table

    code(out, 'keras_vit.export.to_tflite(model, path, quantize="int8_dynamic")')
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "size", "accuracy", "same answer as the model", "time per picture"):
        table.add_column(name, justify="left" if name == "file" else "right")
    for name, quantize in (("float32.tflite", None), ("int8.tflite", "int8_dynamic")):
        path = export.to_tflite(model, folder / name, quantize)
        found = export.compare(path, model, *judges)
        table.add_row(
            name,
            f"{found.size / 1e6:.2f} MB",
            f"{found.accuracy:.1%}",
            f"{found.agreement:.1%}",
            f"{found.latency * 1e3:.2f} ms",
        )
    out.print(table)
    out.print("The files take uint8 pixels and give probabilities; the preprocessing is inside.")


def listing(folder, out):
    """Where everything lies, and what to type next."""
    rows = {
        "model/": "the fine-tuned model: keras_vit.from_preset",
        "float32.tflite": "for a phone or a small computer",
        "int8.tflite": "a quarter of the weights' size",
        "attention.png": "what the model looks at",
    }
    for name, text in rows.items():
        out.print(f"  {name:<16} {text}")
    out.print("\nNext:")
    start = "keras-vit finetune FOLDER --preset deit_tiny_patch16_224.fb_in1k --output my_model"
    for line in (f"keras-vit show {folder / 'model'}", "keras-vit list tiny", start):
        out.print(f"  {line}", soft_wrap=True)
