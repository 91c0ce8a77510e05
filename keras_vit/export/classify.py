"""Classification by an exported file, with the preprocessing that it describes."""

from typing import Any

import numpy as np

from keras_vit.export import feed, files
from keras_vit.images import ImageConverter, is_one, listed
from keras_vit.labels import top_labels
from keras_vit.models.activation import apply
from keras_vit.types import Images, Path


class FileClassifier:
    """An exported file, of whichever format, that classifies images of any size.

    Args:
        path: the file or directory.
        threads: of the interpreter; None: one per processor.
        precision: `"bfloat16"`, for OpenVINO alone, computes in it what is not int8.

    Raises:
        ValueError: the file does not say its preprocessing, or gives features.
        FileNotFoundError: there is no such file.
        ImportError: the package that runs it is missing.
    """

    def __init__(self, path: Path, threads: int | None = None, precision: str = "float32"):
        self.file = files.open_file(path, threads, precision)
        self.classifier = feed.Classifier(self.file)
        about = self.file.preset or {}
        if self.classifier.output == "features" or not about.get("mean"):
            raise ValueError(
                f"{str(path)!r} does not classify images: it has no preprocessing or no classes. "
                "Files that keras-vit export writes have both."
            )
        names = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
        given: dict[str, Any] = {name: about[name] for name in names if about.get(name) is not None}
        self.converter = ImageConverter(tuple(about["image_size"]), **given)
        self.activation = about.get("activation", "softmax")
        self.class_names = self.file.labels

    def predict(self, images: Images) -> np.ndarray:
        """Probabilities `(B, K)`, by the model's activation; its logits if that is None.

        Args:
            images: a path, a PIL image, an array `(H, W, C)` or `(B, H, W, C)`, or a list of them.

        Raises:
            ValueError: there is no image.
        """
        several, found = listed(images), []
        for start in range(0, len(several), 32):
            sample = feed.Sample(None, list(several[start : start + 32]), self.converter)
            for batch, count in self.classifier.feed(sample):
                found.append(self.classifier.run(batch)[:count])
        outputs = np.concatenate(found).astype("float32")
        return apply(outputs, self.activation) if self.classifier.output == "logits" else outputs

    def classify(self, images: Images, top: int = 5) -> Any:
        """As the model's own `classify`: `[(name, probability), ...]` for one image, a list of
        these for several."""
        results = top_labels(self.predict(images), self.class_names, top)
        return results[0] if is_one(images) else results
