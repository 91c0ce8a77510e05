"""Variables <-> checkpoint tensors, by name, both ways."""

import contextlib
import dataclasses
import fnmatch
import functools
import math
import mmap
from collections.abc import Callable

import keras
import numpy as np
from keras.src.backend.common import global_state

from keras_vit.keys import key_of, spellings

CHUNK = 1 << 20  # bytes


class WeightsError(ValueError):
    """Tensors that do not fit the model: all that are missing, unused and mis-shaped, and the
    file's name."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint: its shape, how to read it, and, for a file, how to read some rows
    of it."""

    shape: tuple
    read: Callable[[], np.ndarray]
    rows: Callable[[slice], np.ndarray] | None = None

    def into(self, out):
        """Fill an array of that shape, about a megabyte at a time."""
        if self.rows is None or out.nbytes <= CHUNK:
            out[...] = self.read()
            return
        step = max(1, CHUNK * self.shape[0] // out.nbytes)
        for start in range(0, self.shape[0], step):
            part = slice(start, min(start + step, self.shape[0]))
            out[part] = self.rows(part)


def to_keras(array, path):
    """A checkpoint's array in Keras' order: kernels `(out, in, *space)` -> `(*space, in, out)`."""
    return np.moveaxis(array, (1, 0), (-2, -1)) if path.endswith("/kernel") else array


def to_torch(array, path):
    """The inverse of `to_keras`."""
    return np.moveaxis(array, (-2, -1), (1, 0)) if path.endswith("/kernel") else array


def variables(model):
    """The variables that a checkpoint holds: all but the states of random generators."""
    return [v for v in model.weights if not v.path.endswith("seed_generator_state")]


def load(
    model, tensors, rename, names=None, optional=(), ignore=(), adapt=None, where="the checkpoint"
):
    """Assign a checkpoint's tensors to a model's variables.

    Args:
        model: a classifier or backbone.
        tensors: dict of `Tensor`.
        rename: rows `our key = timm's key`.
        names: rows `timm's key = the file's`, for another layout.
        optional: beginnings of keys that are not read: such variables keep their initial values,
            such tensors may be left over.
        ignore: patterns of the file's keys that may be left over.
        adapt: a `Resize`, or None.
        where: what to call the file in errors.

    Raises:
        WeightsError: one report of all that does not fit; nothing has been assigned.
    """
    plan, missing, misshaped, used = [], [], [], set()
    for variable in variables(model):
        key = key_of(variable.path, rename)
        if _leads(key, optional):
            continue
        options = spellings(key, names or {})
        sources = next((keys for keys in options if all(k in tensors for k in keys)), None)
        if sources is None:
            missing.append(" + ".join(options[0]))
            continue
        used.update(sources)
        shapes = [tensors[k].shape for k in sources]
        if not _fits(_joined(shapes), variable, adapt is not None and adapt.handles(key)):
            found = " + ".join(map(str, shapes))
            wanted = _shape_in_file(variable)
            misshaped.append(f"{' + '.join(sources)}: {found} in the file, {wanted} in the model")
        plan.append((variable, key, sources))
    left = tuple(k for o in optional for keys in spellings(o, names or {}) for k in keys)
    unused = [
        k
        for k in tensors
        if k not in used and not _leads(k, left) and not any(fnmatch.fnmatch(k, p) for p in ignore)
    ]
    _report(where, missing, unused, misshaped)
    for variable, key, sources in plan:
        fill(variable, functools.partial(_value, variable, key, sources, tensors, adapt))


@contextlib.contextmanager
def deferred():
    """Variables built inside get their values as it ends; where it fails, none of them is made.

    Keras would make them all the same, a model's worth of memory for an error, and after an error
    amid that it would begin again, in vain, with whatever is built next.
    """
    try:
        with keras.StatelessScope():
            try:
                yield
            except BaseException:
                global_state.set_global_attribute("uninitialized_variables", [])
                raise
    except BaseException:
        global_state.set_global_attribute("uninitialized_variables", [])
        raise


def fill(variable, read):
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


def _shape_in_file(variable):
    shape = tuple(variable.shape)
    return (shape[-1], shape[-2], *shape[:-2]) if variable.path.endswith("/kernel") else shape


def _leads(key, beginnings):
    return any(key == b or key.startswith(b + ".") for b in beginnings)


def _joined(shapes):
    """The shape of arrays joined on the first axis, or None if they cannot be."""
    if len(shapes) == 1:
        return tuple(shapes[0])
    if any(len(s) == 0 or s[1:] != shapes[0][1:] for s in shapes):
        return None
    return (sum(s[0] for s in shapes), *shapes[0][1:])


def _fits(shape, variable, adaptable):
    wanted = tuple(variable.shape)
    if shape is None or len(shape) != len(wanted):
        return False
    if variable.path.endswith("/kernel"):
        shape = (*shape[2:], shape[1], shape[0])
    return shape[-1] == wanted[-1] if adaptable else shape == wanted


def _value(variable, key, sources, tensors, adapt):
    """The array that a variable takes: joined, in Keras' axis order, resized where it must be."""
    shape = tuple(variable.shape)
    found = [tensors[k] for k in sources]
    if adapt is not None and adapt.handles(key):
        # Also where the shape fits: grids of 2 x 3 and of 3 x 2 patches have equal tables.
        return np.ascontiguousarray(adapt(key, to_keras(found[0].read(), variable.path), shape))
    array = _room(shape)
    view = to_torch(array, variable.path)
    if len(found) == 1:
        found[0].into(view)
    else:
        ends = np.cumsum([tensor.shape[0] for tensor in found])
        for tensor, end in zip(found, ends, strict=True):
            tensor.into(view[end - tensor.shape[0] : end])
    return array


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
            lines += [f"  {len(keys)} {title}:"] * bool(keys) + [f"    {key}" for key in keys]
        raise WeightsError("\n".join(lines))


def export(model, rename):
    """A model's variables under timm's keys and axis order, as a dict of `Tensor`.

    Raises:
        ValueError: the model is quantized.
    """
    check_float(model, "Another layout or architecture")
    found = {}
    for variable in variables(model):
        shape = to_torch(np.empty(variable.shape, "b"), variable.path).shape

        def read(variable=variable):
            array = np.asarray(variable.numpy() if hasattr(variable, "numpy") else variable.value)
            return np.ascontiguousarray(to_torch(array, variable.path))

        found[key_of(variable.path, rename)] = Tensor(shape, read)
    return found


def check_float(model, what):
    """Raises where dense layers are quantized; `what` needs the weights themselves."""
    layers = (layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense))
    modes = {layer.quantization_mode for layer in layers} - {None}
    if modes:
        raise ValueError(
            f"{what} needs float weights. Received: a model of quantize({min(modes)!r}). "
            "Do it with the float model, and quantize afterwards."
        )


def parts(tensor, keys):
    """A tensor under one key, or cut on its first axis into equal parts under several."""
    if len(keys) == 1:
        return {keys[0]: tensor}
    rows = tensor.shape[0] // len(keys)

    def read(i):
        return tensor.read()[i * rows : (i + 1) * rows]

    shape = (rows, *tensor.shape[1:])
    return {key: Tensor(shape, functools.partial(read, i)) for i, key in enumerate(keys)}
