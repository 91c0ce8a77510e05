"""The demo: load, classify, fine-tune, save, export, compare and explain, on small data."""

import abc
import pathlib
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np

from keras_vit import explain, export, train
from keras_vit.hub import HubError
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Path
from keras_vit.zoo import from_preset

if TYPE_CHECKING:
    from rich.console import Console

PRESET = "vit_digits_patch4_32.sklearn"
# scripts/train_digits.py trains on the first 1000 digits; the other 797 are held out.
CHECKPOINT_DIGITS = 1000
TRAINING_DIGITS = 500  # of those 797; the last 297 are for validation
PATCHES = 6  # rows and columns of patches for a Hub checkpoint: enough for 8 x 8 pixels

Labelled: TypeAlias = tuple[np.ndarray, np.ndarray]  # images and labels


def digits() -> Labelled:
    """scikit-learn's handwritten digits.

    Returns:
        (images, labels): uint8 `(1797, 8, 8, 1)`, light on dark; ints `(1797,)`.
    """
    data = _datasets().load_digits()
    return np.round(data.images * (255 / 16)).astype("uint8")[..., None], data.target


def photographs() -> dict[str, np.ndarray]:
    """scikit-learn's two photographs: {name: uint8 (427, 640, 3)}."""
    data = _datasets().load_sample_images()
    return {pathlib.Path(n).name: i for n, i in zip(data.filenames, data.images, strict=True)}


def _datasets() -> ModuleType:
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError(
            'The demo uses the images of scikit-learn: pip install "scikit-learn>=1.9"'
        ) from None
    return datasets


def run(
    preset: str | None = None,
    output: Path = "keras_vit_demo",
    out: "Console | None" = None,
) -> None:
    """Run the demo.

    Args:
        preset: a checkpoint, as `from_preset` takes it; None: the small one in the package.
        output: the folder to write to; the files of an earlier demo in it are replaced.
        out: a rich `Console`, or None for the terminal.

    Raises:
        ImportError: scikit-learn or matplotlib is not installed; the message says how to install
            it.
        keras_vit.hub.HubError: the checkpoint could not be downloaded.
    """
    from rich.console import Console

    out, start = out or Console(highlight=False), time.monotonic()
    images, labels = digits()
    explain.matplotlib_figure()
    keras.utils.set_random_seed(0)
    folder = pathlib.Path(output)
    steps: Steps = Packaged(images, labels) if preset is None else FromHub(images, labels, preset)
    head(out, 1, "Load a checkpoint")
    model = steps.load(out)
    folder.mkdir(parents=True, exist_ok=True)
    head(out, 2, "Classify images it has not seen")
    steps.classify(model, out)
    head(out, 3, "Fine-tune it")
    tuned, validation = steps.finetune(model, out)
    tuned.save_to_preset(str(folder / "model"))
    head(out, 4, "Export it to TFLite, and compare the files with the model")
    exported(tuned, validation, folder, out)
    head(out, 5, "See what it looks at")
    picture = folder / "attention.png"
    explain.overlay(*steps.to_explain(model, tuned, validation)).savefig(picture, dpi=120)
    out.print(f"{picture}: {explain.shown(model)}, drawn over the images.", soft_wrap=True)
    out.print(f"\n[bold]Done in {time.monotonic() - start:.0f} seconds.[/] In {folder}/:")
    listing(folder, out)


def head(out: "Console", number: int, text: str) -> None:
    """Print the title of a step."""
    out.print(f"\n[bold]{number}. {text}[/]")


def code(out: "Console", text: str) -> None:
    """Print a line of code."""
    out.print(text, style="cyan", markup=False, soft_wrap=True)


def accuracy(model: ImageClassifier, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that the model classifies correctly."""
    return float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


class Steps(abc.ABC):
    """The steps that depend on the checkpoint."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images[CHECKPOINT_DIGITS:], labels[CHECKPOINT_DIGITS:]

    @abc.abstractmethod
    def load(self, out: "Console") -> ImageClassifier:
        """The model."""

    @abc.abstractmethod
    def classify(self, model: ImageClassifier, out: "Console") -> None:
        """Print predictions."""

    @abc.abstractmethod
    def finetune(self, model: ImageClassifier, out: "Console") -> tuple[ImageClassifier, Labelled]:
        """The fine-tuned model and the validation data."""

    @abc.abstractmethod
    def to_explain(
        self, model: ImageClassifier, tuned: ImageClassifier, validation: Labelled
    ) -> tuple[ImageClassifier, Any]:
        """A model, and images to draw its attention over."""


class Packaged(Steps):
    """The demo of the checkpoint in the package: it learns to read digits dark on light."""

    def load(self, out: "Console") -> ImageClassifier:
        model = train.fast(from_preset(PRESET))
        code(out, f'model = keras_vit.from_preset("{PRESET}")')
        out.print(
            f"A ViT of {model.count_params():,} parameters, trained on {CHECKPOINT_DIGITS} of "
            "scikit-learn's handwritten digits by scripts/train_digits.py. It is part of the "
            "package, so no network is needed."
        )
        return model

    def classify(self, model: ImageClassifier, out: "Console") -> None:
        from rich.table import Table

        code(out, "model.classify(images)")
        rows = [int(np.flatnonzero(self.labels == digit)[0]) for digit in range(10)]
        best = [best for (best,) in model.classify(self.images[rows], top=1)]
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("label", *(str(self.labels[row]) for row in rows))
        table.add_row("prediction", *(name for name, _ in best))
        table.add_row("probability", *(f"{probability:.0%}" for _, probability in best))
        out.print(table)
        right = accuracy(model, self.images, self.labels)
        out.print(
            f"It classifies {right:.1%} of {len(self.labels)} digits correctly. They were held out "
            "from its training and are by other writers."
        )

    def finetune(self, model: ImageClassifier, out: "Console") -> tuple[ImageClassifier, Labelled]:
        images = 255 - self.images
        out.print(
            "Now the digits are inverted: dark on light, as on paper, which it has never seen. It "
            f"is trained on {TRAINING_DIGITS} of the digits held out; the others are for "
            "validation."
        )
        code(out, "keras_vit.train.finetune(model, (images, labels), validation, epochs)")
        validation = images[TRAINING_DIGITS:], self.labels[TRAINING_DIGITS:]
        before = accuracy(model, *validation)
        tuned = train.fast(from_preset(PRESET))
        training = images[:TRAINING_DIGITS], self.labels[:TRAINING_DIGITS]
        return learn(tuned, training, validation, before, out, epochs=20)

    def to_explain(
        self, model: ImageClassifier, tuned: ImageClassifier, validation: Labelled
    ) -> tuple[ImageClassifier, Any]:
        return tuned, validation[0][
            [int(np.flatnonzero(validation[1] == digit)[0]) for digit in (3, 5, 8)]
        ]


class FromHub(Steps):
    """The demo of any checkpoint: it classifies two photographs of scikit-learn's and learns to
    read digits."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, preset: str) -> None:
        super().__init__(images, labels)
        self.preset = preset
        self.photographs = photographs()

    def load(self, out: "Console") -> ImageClassifier:
        code(out, f'model = keras_vit.from_preset("{self.preset}")')
        try:
            model = train.fast(from_preset(self.preset))
        except HubError:
            out.print(
                "It could not be downloaded. `keras-vit demo` without --preset needs no network."
            )
            raise
        out.print(f"A {type(model).__name__} of {model.count_params():,} parameters.")
        return model

    def classify(self, model: ImageClassifier, out: "Console") -> None:
        if not model.num_classes:
            out.print("It has no classes: it returns features. Fine-tuning adds a head.")
            return
        code(out, "model.classify(images)")
        out.print("Two photographs that come with scikit-learn:")
        results = model.classify(list(self.photographs.values()), top=3)
        for name, result in zip(self.photographs, results, strict=True):
            out.print(f"  {name}: " + ", ".join(f"{label} {p:.0%}" for label, p in result))

    def finetune(self, model: ImageClassifier, out: "Console") -> tuple[ImageClassifier, Labelled]:
        size = PATCHES * (model.backbone.example_size[0] // model.backbone.grid_size[0])
        channels = model.backbone.options["in_channels"]
        out.print(
            f"A new head of 10 classes, and input of {size} x {size} pixels, for scikit-learn's "
            f"handwritten digits: {TRAINING_DIGITS} for training, "
            f"{len(self.labels) - TRAINING_DIGITS} for validation."
        )
        call = f'from_preset("{self.preset}", num_classes=10, image_size={size})'
        code(out, f"tuned = keras_vit.{call}")
        tuned = train.fast(from_preset(self.preset, num_classes=10, image_size=size))
        tuned.labels = [str(digit) for digit in range(10)]
        images = np.repeat(self.images, channels, axis=-1)
        validation = images[TRAINING_DIGITS:], self.labels[TRAINING_DIGITS:]
        before = accuracy(tuned, *validation)
        training = images[:TRAINING_DIGITS], self.labels[:TRAINING_DIGITS]
        return learn(tuned, training, validation, before, out, epochs=3)

    def to_explain(
        self, model: ImageClassifier, tuned: ImageClassifier, validation: Labelled
    ) -> tuple[ImageClassifier, Any]:
        return model, list(self.photographs.values())


def learn(
    model: ImageClassifier,
    training: Labelled,
    validation: Labelled,
    before: float,
    out: "Console",
    epochs: int,
) -> tuple[ImageClassifier, Labelled]:
    """Fine-tune, and print the accuracy before and after: (model, validation)."""
    train.finetune(
        model,
        training,
        validation,
        epochs,
        batch_size=25,
        flip=False,  # a mirrored 2 is not a 2
        verbose=1 if out.is_terminal else 2,
    )
    after = accuracy(model, *validation)
    out.print(
        f"Accuracy on {len(validation[1])} digits that it was not trained on: "
        f"[bold]{before:.1%} before, {after:.1%} after.[/]"
    )
    return model, validation


def exported(
    model: ImageClassifier, validation: Labelled, folder: pathlib.Path, out: "Console"
) -> None:
    """Write a float32 and an int8 file, and print a table of their size, accuracy and speed."""
    from rich.table import Table

    code(out, 'keras_vit.export.to_tflite(model, path, quantize="int8_dynamic")')
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "size", "accuracy", "same prediction as the model", "time per image"):
        table.add_column(name, justify="left" if name == "file" else "right")
    for name, quantize in (("float32.tflite", None), ("int8.tflite", "int8_dynamic")):
        path = export.to_tflite(model, folder / name, quantize)
        result = export.compare(path, model, *validation)
        table.add_row(
            name,
            f"{result.size / 1e6:.2f} MB",
            f"{result.accuracy:.1%}",
            f"{result.agreement:.1%}",
            f"{result.latency * 1e3:.2f} ms",
        )
    out.print(table)
    out.print("The files take uint8 pixels and return probabilities; normalisation is inside.")


def listing(folder: pathlib.Path, out: "Console") -> None:
    """Print what the folder contains, and what to type next."""
    rows = {
        "model/": "the fine-tuned model: keras_vit.from_preset",
        "float32.tflite": "for a phone or a small computer",
        "int8.tflite": "with int8 weights, a quarter of the size",
        "attention.png": "what the model looks at",
    }
    for name, text in rows.items():
        out.print(f"  {name:<16} {text}")
    out.print("\nNext:")
    start = "keras-vit finetune FOLDER --preset deit_tiny_patch16_224.fb_in1k --output my_model"
    for line in (f"keras-vit show {folder / 'model'}", "keras-vit list tiny", start):
        out.print(f"  {line}", soft_wrap=True)
