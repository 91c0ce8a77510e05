"""What the tests share: the real checkpoint and pictures, where they are present."""

import gc
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.pop("COLUMNS", None)  # pytest-xdist's workers have it: tables would be cut to 80

import pytest

SHARED = pathlib.Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def keras_collects_no_garbage(monkeypatch):
    """Keras collects garbage after each layer that it quantizes; among all that a session of tests
    has made, that takes seconds, and a minute for a tiny model."""
    collect = gc.collect

    def unless_keras_asks(*args):
        asks = sys._getframe(1).f_globals.get("__name__", "")
        return 0 if asks.startswith("keras.src.layers") else collect(*args)

    monkeypatch.setattr(gc, "collect", unless_keras_asks)


@pytest.fixture(autouse=True, scope="module")
def garbage_is_collected_once_a_file():
    """Among all that a session has made, a collection takes seconds. What is alive after a file of
    tests is left out of later ones."""
    first, second, _ = gc.get_threshold()
    gc.set_threshold(first, second, 1_000_000)
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared():
    """The folder of real weights and pictures beside the project; without it tests skip."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real weights and pictures in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def deit_tiny(shared):
    """The directory of a real ImageNet-1k DeiT-Tiny, in timm's layout."""
    return shared / "hub/timm/deit_tiny_patch16_224.fb_in1k"


@pytest.fixture(scope="session")
def photographs(shared):
    """125 ImageNet photographs: (paths, class numbers)."""
    import json

    folder = shared / "images/imagenet"
    labels = json.loads((folder / "labels.json").read_text())
    return [folder / name for name in labels], list(labels.values())


@pytest.fixture(scope="session")
def timm():
    """The module. A torchvision without compiled operators stops its import unless two exist."""
    torch = pytest.importorskip("torch")
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        try:
            operators.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        except RuntimeError:  # it is there
            pass
    yield pytest.importorskip("timm")
    del operators  # what it declares lives as long as it does


@pytest.fixture(scope="session")
def transformers(timm):
    """The module, after timm: it imports torchvision, too, where that is installed."""
    return pytest.importorskip("transformers")
