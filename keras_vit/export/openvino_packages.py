"""OpenVINO and NNCF without their telemetry, which forks the process to report an import."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from keras_vit.export.int8 import silence

TELEMETRY = "openvino_telemetry"  # the package that reports to Google Analytics; both work without


def openvino() -> Any:
    """The module openvino."""
    try:
        with _unreported():
            import openvino
    except ImportError as error:
        raise ImportError(
            'OpenVINO files need openvino: pip install "keras-vit-zoo[openvino]"'
        ) from error
    return openvino


def nncf() -> Any:
    """The module nncf."""
    try:
        with silence(), _unreported():
            import nncf
    except ImportError as error:
        raise ImportError('quantize="int8" for OpenVINO needs NNCF: pip install nncf') from error
    return nncf


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """An import of the telemetry fails, as if it were not installed."""
    before = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
        if before is not None:
            sys.modules[TELEMETRY] = before
