"""Variables <-> checkpoint tensors, by name, both ways."""

import contextlib
import dataclasses
import fnmatch
import functools
import math
import mmap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from keras_vit.keys import key_of, spellings
from keras_vit.layers.lora import kernels_with_lora, low_rank_variables, value
from keras_vit.text import printable

CHUNK = 1 << 20  # bytes


class WeightsError(ValueError):
    """Tensors that do not fit the model: all that are missing, unused and mis-shaped, and the
    file's name."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint: its shape, how to read it, and, for a file, how to read some rows
    of it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    read_rows: Callable[[slice], np.ndarray] | None = None

    def into(self, out: np.ndarray) -> None:
        """Fill an array of that shape, about a megabyte at a time."""
        if self.read_rows is None or out.nbytes <= CHUNK:
            out[...] = self.read()
            return
        step = max(1, CHUNK * self.shape[0] // out.nbytes)
        for start in range(0, self.shape[0], step):
            part = slice(start, min(start + step, self.shape[0]))
            out[part] = self.read_rows(part)


# Axes of a checkpoint's array that go to the end in Keras, by the variable's leaf:
AXES = {
    "kernel": (1, 0),  # (out, in, *space) -> (*space, in, out)
    "depthwise_kernel": (0, 1),  # (C, 1, *space) -> (*space, C, 1)
    "bias_table": (2, 0),  # (heads, *distances) -> (*distances, heads)
}


def to_keras(array: np.ndarray, path: str) -> np.ndarray:
    """A checkpoint's array in Keras' order of axes, for the variable of that path."""
    axes = AXES.get(path.rpartition("/")[2])
    return np.moveaxis(array, axes, (-2, -1)) if axes else array


def to_torch(array: np.ndarray, path: str) -> np.ndarray:
    """The inverse of `to_keras`."""
    axes = AXES.get(path.rpartition("/")[2])
    return np.moveaxis(array, (-2, -1), axes) if axes else array


def variables(model: keras.Model) -> list[Any]:
    """The variables that a checkpoint holds: all but LoRA's and the states of random generators."""
    low_rank = low_rank_variables(model)
    return [
        v
        for v in model.weights
        if id(v) not in low_rank and not v.path.endswith("seed_generator_state")
    ]


def load_tensors(
    model: keras.Model,
    tensors: dict[str, Tensor],
    rename: dict[str, str],
    names: dict | None = None,
    fresh: Iterable[str] = (),
    ignore: Iterable[str] = (),
    optional: Iterable[str] = (),
    resizers: dict[str, Callable] | None = None,
    where: str = "the checkpoint",
) -> None:
    """Assign a checkpoint's tensors to a model's variables.

    Args:
        model: a classifier or backbone.
        tensors: dict of `Tensor`.
        rename: rows `our key = timm's key`.
        names: rows `timm's key = the file's`, for another layout.
        fresh: paths of variables, or `layer/*` for all of a layer: these keep their initial values,
            and tensors for them may be left over.
        ignore: patterns of the file's keys that may be left over.
        optional: layers that keep their initial values if the file does not have them.
        resizers: as `Backbone.resizers` gives them.
        where: what to call the file in errors.

    Raises:
        WeightsError: one report of all that does not fit, and nothing has been assigned; or a
            tensor with NaN or infinity.
    """
    plan, missing, misshaped, used = [], [], [], set()
    tensors = dict(tensors)
    for variable in variables(model):
        if any(fnmatch.fnmatch(variable.path, pattern) for pattern in fresh):
            continue
        options = spellings(key_of(variable.path, rename), names or {})
        sources = next((keys for keys in options if all(k in tensors for k in keys)), None)
        if sources is None:
            if variable.path.partition("/")[0] not in optional:
                missing.append(" + ".join(options[0]))
            continue
        used.update(sources)
        tensors |= {k: _as_dense(tensors[k], variable) for k in sources}
        shapes = [tensors[k].shape for k in sources]
        resizer = _resizer(variable, resizers or {})
        if not _fits(_joined(shapes), variable, resizer is not None):
            found = " + ".join(map(str, shapes))
            wanted = _turned(tuple(variable.shape), variable.path, to_torch)
            misshaped.append(f"{' + '.join(sources)}: {found} in the file, {wanted} in the model")
        plan.append((variable, sources, resizer))
    left = [(key, path.endswith("/*")) for path in fresh for key in _keys(path, rename, names)]
    unused = [
        k
        for k in tensors
        if k not in used
        and not any(k == key or (whole and k.startswith(f"{key}.")) for key, whole in left)
        and not any(fnmatch.fnmatch(k, pattern) for pattern in ignore)
    ]
    _report(where, missing, unused, misshaped)
    for variable, sources, resizer in plan:
        fill(variable, functools.partial(_value, variable, sources, tensors, resizer, where))


def _keys(path, rename, names):
    """The keys that a file may have for a path."""
    key = key_of(path.removesuffix("/*"), rename)
    return [k for keys in spellings(key, names or {}) for k in keys]


def _resizer(variable, resizers):
    matching = (r for pattern, r in resizers.items() if fnmatch.fnmatch(variable.path, pattern))
    return next(matching, None)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Variables built inside get their values as it ends; where it fails, none of them is made.

    Keras would make them all the same, a model's worth of memory for an error, and after an error
    amid that it would begin again, in vain, with whatever is built next.
    """
    try:
        with keras.StatelessScope():
            try:
                yield
            except BaseException:
                _forget()
                raise
    except BaseException:
        _forget()
        raise


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Variables built inside have a shape, but never a value, and so no memory."""
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        _forget()


def _forget():
    """Keras keeps a list of variables that still need a value."""
    global_state.set_global_attribute("uninitialized_variables", [])


def fill(variable: Any, read: Callable[[], np.ndarray]) -> None:
    """Give a variable the array that `read` returns: at once, or when Keras initialises it.

    Inside a `keras.StatelessScope` variables have a shape and an initializer, which Keras calls as
    the scope ends. With `read` in its place no memory and no time go into values that a checkpoint
    overwrites: a third of the time and of the memory that loading takes.
    """
    if variable._value is not None:
        variable.assign(read())
    else:
        lend = _Lent if keras.backend.backend() == "tensorflow" else np.asarray
        variable._initializer = lambda shape, dtype: keras.ops.convert_to_tensor(
            lend(read()), dtype
        )


class _Lent:
    """An array for TensorFlow to take over: of a plain ndarray it would make a copy first."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def _turned(shape, path, turn):
    """The shape of what `to_keras` or `to_torch` makes of an array of that shape."""
    return turn(np.broadcast_to(np.empty((), "b"), shape), path).shape


def _joined(shapes):
    """The shape of arrays joined on the first axis, or None if they cannot be."""
    if len(shapes) == 1:
        return tuple(shapes[0])
    if any(len(s) == 0 or s[1:] != shapes[0][1:] for s in shapes):
        return None
    return (sum(s[0] for s in shapes), *shapes[0][1:])


def _fits(shape, variable, resizable):
    wanted = tuple(variable.shape)
    if shape is None or len(shape) != len(wanted):
        return False
    shape = _turned(shape, variable.path, to_keras)
    return shape[-1] == wanted[-1] if resizable else shape == wanted


def _as_dense(tensor, variable):
    """The weight of a 1x1 convolution, (out, in, 1, 1), as that of a dense layer, (out, in)."""
    if len(variable.shape) != 2 or tuple(tensor.shape[2:]) != (1, 1):
        return tensor
    rows = tensor.read_rows
    return Tensor(
        tensor.shape[:2],
        lambda: tensor.read()[:, :, 0, 0],
        None if rows is None else lambda part: rows(part)[:, :, 0, 0],
    )


def _value(variable, sources, tensors, resizer, where):
    """The array that a variable takes: joined, in Keras' axis order, resized where it must be."""
    shape = tuple(variable.shape)
    found = [tensors[k] for k in sources]
    if resizer is not None:
        # Also where the shape fits: grids of 2 x 3 and of 3 x 2 patches have equal tables.
        array = np.ascontiguousarray(resizer(to_keras(found[0].read(), variable.path), shape))
        return finite(array, " + ".join(sources), where)
    array = _room(shape)
    view = to_torch(array, variable.path)
    if len(found) == 1:
        found[0].into(view)
    else:
        ends = np.cumsum([tensor.shape[0] for tensor in found])
        for tensor, end in zip(found, ends, strict=True):
            tensor.into(view[end - tensor.shape[0] : end])
    return finite(array, " + ".join(sources), where)


def finite(array: np.ndarray, name: str, where: str) -> np.ndarray:
    """The array itself.

    Raises:
        WeightsError: it holds NaN or infinity.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum()  # one fast pass; a sum of finite numbers may still overflow
    if not np.isfinite(total):
        wrong = array.size - np.count_nonzero(np.isfinite(array))
        if wrong:
            raise WeightsError(
                f"The tensor {name} of {where} holds NaN or infinity in {wrong:,} of "
                f"{array.size:,} values: the training diverged, or the file is damaged."
            )
    return array


def check_finite(model: keras.Model, where: str) -> None:
    """Raises a WeightsError where a variable of a model holds NaN or infinity."""
    for variable in variables(model):
        finite(keras.ops.convert_to_numpy(variable), variable.path, where)


def _room(shape):
    """An empty float32 array. A large one gets pages of its own, which go back to the system with
    it: kept by the heap, such passing arrays would add a tenth to the peak of memory."""
    count = math.prod(shape)
    if 4 * count <= CHUNK:
        return np.empty(shape, "float32")
    return np.frombuffer(mmap.mmap(-1, 4 * count), "float32").reshape(shape)


def _report(where, missing, unused, misshaped):
    titles = {
        "missing from the file": missing,
        "not used by the model": unused,
        "of the wrong shape": misshaped,
    }
    if any(titles.values()):
        lines = [f"The weights of {where} do not fit the model:"]
        for title, keys in titles.items():
            lines += [f"  {len(keys)} {title}:"] * bool(keys) + [
                f"    {printable(key)}" for key in keys
            ]
        raise WeightsError("\n".join(lines))


def export(model: keras.Model, rename: dict[str, str]) -> dict[str, Tensor]:
    """A model's variables under timm's keys and axis order, as a dict of `Tensor`; LoRA is merged.

    Raises:
        ValueError: the model is quantized.
    """
    check_float(model, "Another layout or architecture")
    adapted = kernels_with_lora(model)
    found = {}
    for variable in variables(model):
        shape = _turned(tuple(variable.shape), variable.path, to_torch)

        def read(variable=variable):
            array = value(variable, adapted)
            return np.ascontiguousarray(to_torch(array, variable.path))

        found[key_of(variable.path, rename)] = Tensor(shape, read)
    return found


def check_float(model: keras.Model, what: str) -> None:
    """Raises where dense layers are quantized; `what` needs the weights themselves."""
    layers = (layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense))
    modes = {layer.quantization_mode for layer in layers} - {None}
    if modes:
        raise ValueError(
            f"{what} needs float weights. Received: a model of quantize({min(modes)!r}). "
            "Do it with the float model, and quantize afterwards."
        )


def as_convolution(tensor: Tensor) -> Tensor:
    """The weight of a dense layer, (out, in), as that of a 1x1 convolution, (out, in, 1, 1)."""
    return Tensor((*tensor.shape, 1, 1), lambda: tensor.read()[:, :, None, None])


def parts(tensor: Tensor, keys: list[str]) -> dict[str, Tensor]:
    """A tensor under one key, or cut on its first axis into equal parts under several."""
    if len(keys) == 1:
        return {keys[0]: tensor}
    rows = tensor.shape[0] // len(keys)

    def read(i):
        return tensor.read()[i * rows : (i + 1) * rows]

    shape = (rows, *tensor.shape[1:])
    return {key: Tensor(shape, functools.partial(read, i)) for i, key in enumerate(keys)}
