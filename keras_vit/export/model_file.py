"""TFLite files by the schema that ships with TensorFlow: named buffers, duplicates removed."""

import collections
import pathlib
from typing import Any

import flatbuffers
import numpy as np

IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # bytes, of a buffer's data; the schema demands it, its Python code ignores it
LARGEST_SHARED = 2**16  # bytes; larger vectors are weights, and no two of these are equal


def schema() -> Any:
    """TensorFlow's generated code for the tables of a TFLite file."""
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


def buffer(content: Any, name: str) -> bytes | None:
    """The bytes of the buffer of that name, or None.

    Args:
        content: the file's bytes, or a memory map of it.

    Raises:
        ValueError: not a TFLite file.
    """
    check(content)
    model = schema().Model.GetRootAs(content, 0)
    for entry in map(model.Metadata, range(model.MetadataLength())):
        if entry.Name() == name.encode():
            found = model.Buffers(entry.Buffer())
            if found.Offset() > 1:
                return bytes(content[found.Offset() : found.Offset() + found.Size()])
            return bytes(found.DataAsNumpy())
    return None


def check(content: Any) -> None:
    """Raise an error if it is not a TFLite file."""
    if content[4:8] != IDENTIFIER:
        raise ValueError(f"Not a TFLite file: it begins with {bytes(content[:8])!r}.")


def is_tflite(path: pathlib.Path) -> bool:
    """Whether a file begins as a TFLite file does."""
    with open(path, "rb") as file:
        return file.read(8)[4:] == IDENTIFIER


def with_buffer(content: bytes, name: str, data: bytes) -> bytes:
    """A TFLite file with one more named buffer; equal small vectors and strings are stored once.

    Quantized weights have a zero point of 8 bytes for each channel, all of them zero, and the name
    of a tensor lists all operations that were fused into it: 3 % of DeiT-Tiny's int8 file.

    Raises:
        ValueError: not a TFLite file.
    """
    model = unpacked(content)
    shorten_names(model)
    entry = schema().MetadataT()
    entry.name, entry.buffer = name, add_buffer(model, np.frombuffer(data, "uint8"))
    model.metadata = [*(model.metadata or ()), entry]
    return packed(model, len(content))


def unpacked(content: bytes) -> Any:
    """A TFLite file as a `ModelT`, TensorFlow's class of what can be changed.

    Raises:
        ValueError: not a TFLite file.
    """
    check(content)
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    for old in model.buffers:
        if old.offset > 1:  # after the flatbuffer, where AI Edge Quantizer writes them
            old.data = np.frombuffer(content, "uint8", old.size, old.offset)
            old.offset = old.size = 0
    return model


def packed(model: Any, size: int) -> bytes:
    """A `ModelT` as a file of about that size in bytes."""
    builder = _Sharing(size)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def shorten_names(model: Any) -> None:
    """Name each tensor after the first of the operations fused into it, without the scope that most
    have in common: it is the Keras model's name, which counts the models of the process. All names
    differ."""
    for graph in model.subgraphs:
        scopes = collections.Counter(t.name.partition(b"/")[0] for t in graph.tensors)
        common = max(scopes, key=scopes.__getitem__, default=b"") + b"/"
        taken: set[bytes] = set()
        for number, tensor in enumerate(graph.tensors):
            short = tensor.name.partition(b";")[0].removeprefix(common)
            names = (short, tensor.name, b"%s:%d" % (short, number))
            tensor.name = next(name for name in names if name not in taken)
            taken.add(tensor.name)


def add_buffer(model: Any, data: np.ndarray) -> int:
    """Append a buffer to a `ModelT`; its index."""
    new = schema().BufferT()
    new.data = data
    model.buffers.append(new)
    return len(model.buffers) - 1


class _Sharing(flatbuffers.Builder):
    """A builder that refers to equal data it has already written."""

    def __init__(self, size):
        super().__init__(size)
        self.seen = {}

    def CreateNumpyVector(self, x):
        if x.nbytes > LARGEST_SHARED:
            return self._vector(x)
        return self._once((x.dtype.str, x.tobytes()), self._vector, x)

    def _vector(self, x):
        if x.dtype == "uint8":
            self.Prep(ALIGNMENT, x.nbytes)
        return super().CreateNumpyVector(x)

    def CreateString(self, text, *options):
        return self._once(text, super().CreateString, text, *options)

    def _once(self, key, create, *arguments):
        if key not in self.seen:
            self.seen[key] = create(*arguments)
        return self.seen[key]
