"""The head of a transformers model: which one a file has, and the names of its classes."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from keras_vit import checks
from keras_vit.weights import Tensor

CLASSIFIER = "classifier"  # transformers' name for the dense layer of most heads
SUFFIX = "ForImageClassification"  # of the classes that have one


@dataclasses.dataclass(frozen=True)
class Head:
    """A head, as a class of transformers has it.

    Attributes:
        options: hyper-parameters of our classifier and backbone, such as the pooling.
        key: the name of its dense layer in the file.
        width: the field of the config with the number of outputs, for heads without class names.
    """

    options: dict[str, Any]
    key: str = CLASSIFIER
    width: str | None = None

    def rows(self, tensors: Mapping[str, Tensor]) -> int:
        """The number of its outputs in a file; 0: the file does not have this head."""
        weight = tensors.get(f"{self.key}.weight")
        return weight.shape[0] if weight is not None and weight.shape else 0


def heads(table: dict[str, Any]) -> dict[str, Head]:
    """The heads of a model type, by the class of transformers; those with class names come last
    under their common suffix."""
    found = {}
    for name, task in table.get("tasks", {}).items():
        options = {k: v for k, v in task.items() if k not in ("classes", "head")}
        found[name] = Head(options, task.get("head", CLASSIFIER), task.get("classes"))
    return {**found, SUFFIX: Head({})}


def named(table: dict[str, Any], architecture: str) -> Head | None:
    """The head of a class of transformers; None: it has none."""
    known = heads(table)
    if architecture in known:
        return known[architecture]
    return known[SUFFIX] if SUFFIX in architecture else None


def in_file(
    table: dict[str, Any], architecture: str, tensors: Mapping[str, Tensor]
) -> tuple[str, Head | None]:
    """The head that a file has, whatever class its config names, and the class that has it.

    A projection (CLIP) is a head only of the classes that use it.
    """
    wanted = named(table, architecture)
    if wanted is not None and wanted.width is None and wanted.rows(tensors):
        return architecture, wanted
    for name, head in heads(table).items():
        if head.width is None and head.rows(tensors):
            return name, head
    return architecture, wanted


def names_of_ids(config: dict[str, Any]) -> dict[int, str] | None:
    """`id2label`: the names of the classes by number; None: the config has none.

    Raises:
        WrongValue: the keys are not numbers.
    """
    names = config.get("id2label")
    if names is None:
        return None
    if not isinstance(names, dict) or not all(re.fullmatch(r"\d{1,7}", key) for key in names):
        raise checks.WrongValue(
            f"id2label must name the classes 0, 1, 2 ... Received: {names!r:.80}"
        )
    return {int(key): str(name) for key, name in names.items()}


def labels(names: dict[int, str] | None, classes: int) -> list[str] | None:
    """The name of each class; a class without one has its number.

    None where there are no names, or where they are those of another head: as many as that has
    classes, with numbers that this one does not have.
    """
    if not names or (len(names) != classes and max(names) >= classes):
        return None
    return [names.get(i, str(i)) for i in range(classes)]
