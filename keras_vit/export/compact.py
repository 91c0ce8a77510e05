"""The same TFLite file without repetitions."""

import flatbuffers
import numpy as np

IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # bytes, of a buffer's data; the schema asks for it, its Python code does not
LARGEST_SHARED = 2**16  # bytes; larger vectors are weights, of which no two are equal


def compact(content):
    """A TFLite file in which equal small vectors and texts are stored once.

    Of quantized weights each channel has a zero point of 8 bytes, all of them zero; and the name of
    a tensor lists all operations that were fused into it. For DeiT-Tiny in int8 that is 3 % of
    the file.

    Args:
        content: the file's bytes.

    Returns:
        bytes.
    """
    # TensorFlow's code for the tables of a TFLite file, from their schema
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # behind the flatbuffer, as the AI Edge Quantizer writes them
            buffer.data = np.frombuffer(content, "uint8", buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    for graph in model.subgraphs:
        taken = set()
        for tensor in graph.tensors:
            short = tensor.name.partition(b";")[0]
            tensor.name = tensor.name if short in taken else short  # tools want them to differ
            taken.add(short)
    builder = _Sharing(len(content))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


class _Sharing(flatbuffers.Builder):
    """A builder that points to what it has written already."""

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
