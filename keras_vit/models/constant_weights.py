"""`predict` with the weights as constants of TensorFlow's graph."""

import contextlib
import contextvars
import gc
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_vit.types import Tensor

LIMIT = 2**31 - 2**24  # bytes: TensorFlow keeps a graph in a protocol buffer


class ConstantWeights:
    """A `predict_function` of Keras with a model's present weights as constants.

    oneDNN brings a constant matrix into the layout of its kernels once, a variable in each call;
    casts of constants to bfloat16 are made once, too.
    """

    def __init__(self, model: Any):
        import tensorflow as tf

        self.weights = list(model.weights)
        self.values = [buffer(v) for v in self.weights]
        self.dtype = model.inputs[0].dtype
        image = tf.TensorSpec(model.inputs[0].shape, self.dtype)

        def step(images):
            constants = zip(self.weights, map(tf.constant, self.values), strict=True)
            with keras.StatelessScope(constants):
                return model.predict_step(images)

        self.step = tf.function(step, input_signature=[image], autograph=False)

    def current(self, model: Any) -> bool:
        """Whether the model still has these weights."""
        if list(map(id, model.weights)) != list(map(id, self.weights)):
            return False
        values = [buffer(v) for v in self.weights]
        same = all(map(equal, values, self.values))
        if same:  # compared by their addresses alone the next time
            self.values = values
        return same

    def __call__(self, batches: list[Any]) -> Tensor:
        """Outputs for a list of batches, joined."""
        import tensorflow as tf

        images = [keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in batches]
        outputs = [self.step(tf.cast(x, self.dtype)) for x in images]
        return outputs[0] if len(outputs) == 1 else tf.concat(outputs, 0)


def buffer(variable: keras.Variable) -> np.ndarray:
    """The memory of a variable, without a copy.

    As long as it is held, TensorFlow writes new values to other memory, in every kind of update.
    """
    import tensorflow as tf

    value = tf.convert_to_tensor(variable.value)
    if value.dtype == tf.bfloat16:  # the buffer protocol of Python does not know it
        bits = np.asarray(memoryview(tf.bitcast(value, tf.uint16)))
        return bits.view(tf.bfloat16.as_numpy_dtype)
    return np.asarray(memoryview(value))


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two buffers are the same, or have equal values."""
    return a.ctypes.data == b.ctypes.data or np.array_equal(a, b)


# What the `predict` that runs computes with: a model and its constants. A callback, a generator or
# another thread that predicts meanwhile is asked for its own.
_used: contextvars.ContextVar[tuple[Any, ConstantWeights] | None]
_used = contextvars.ContextVar("constant_weights", default=None)


@contextlib.contextmanager
def weights_in_graph(model: Any, wanted: bool) -> Iterator[None]:
    """Let the `predict` of a model that runs here use constants, which are made anew if the weights
    have changed; or, in the midst of one that does, the variables.

    Raises:
        RuntimeError: another backend, several replicas or `run_eagerly`.
        ValueError: more than 2 GB of weights.
    """
    token = _used.set((model, _constants(model)) if wanted else None)
    try:
        yield
    finally:
        _used.reset(token)


def in_use(model: Any) -> ConstantWeights | None:
    """The constants that a `predict` of this model is to use here."""
    used = _used.get()
    return used[1] if used is not None and used[0] is model else None


def _constants(model: Any) -> ConstantWeights:
    check(model)
    model.make_predict_function()  # `compile` takes it away, and the constants with it
    constants = model.constant_weights
    if constants is None or not constants.current(model):
        constants = model.constant_weights = None
        gc.collect()  # the graph of the former weights refers to itself
        constants = model.constant_weights = ConstantWeights(model)
    return constants


def check(model: Any) -> None:
    """Raise an error unless a model's weights can be constants."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "constant_weights=True needs the TensorFlow backend: KERAS_BACKEND=tensorflow. "
            f"This is {keras.backend.backend()}."
        )
    if model.run_eagerly or model.distribute_strategy.num_replicas_in_sync > 1:
        raise RuntimeError(
            "constant_weights=True needs a graph on one device: no run_eagerly, no strategy of "
            "several replicas."
        )
    size = sum(buffer(v).nbytes for v in model.weights)
    if size > LIMIT:
        raise ValueError(
            f"constant_weights=True takes at most 2 GB of weights. The model has {size / 1e9:.1f} "
            "GB. Export it with keras_vit.export.to_openvino, or predict without."
        )
