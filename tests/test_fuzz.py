"""A thousand mutations of config.json and safetensors headers: each ends in a documented error."""

import copy
import json
import random
import resource
import signal
import struct

import pytest
import tiny_checkpoints as tiny

import keras_vit
from keras_vit.hub import HubError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
VALUES = [None, True, False, 0, 1, -1, 2, 3, 5, 7, 64, 1000, 10**6, 10**9, 2**63, 10**400, 0.5,
          -2.5, 1e-300, 1e300, float("inf"), float("nan"), "", "x", "4", "vit", "é\x00", [], [1],
          [1, 2, 3], [8, 8], [[]], {}, {"a": 1}, {"height": 8, "width": 8}, {"shortest_edge": 9},
          ]  # fmt: skip
TINY = {"timm": tiny.timm_files(), "transformers": tiny.transformers_files()}


def places(value, path=()):
    """The paths of all values within a JSON value."""
    if path:
        yield path
    if not isinstance(value, (dict, list)):
        return
    for key, below in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places(below, (*path, key))


def mutated(config, rng):
    """A config with one or two values replaced, removed or added."""
    config = json.loads(json.dumps(config))
    for _ in range(rng.choice([1, 1, 2])):
        paths = list(places(config))
        if not paths:
            break
        *outer, key = rng.choice(paths)
        place = config
        for step in outer:
            place = place[step]
        deed = rng.random()
        if deed < 0.8:
            place[key] = copy.deepcopy(rng.choice(VALUES))
        elif deed < 0.9 or isinstance(place, list):
            del place[key]
        else:
            name = rng.choice(["depth", "embed_dim", "mlp_ratio", "x"])
            place[name] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(config).encode()


def plausible(header, rng):
    """A header changed so that the file may be valid still: dtype, shape, name, place, metadata."""
    header = json.loads(json.dumps(header))
    names = [name for name in header if name != "__metadata__"]
    one, two = rng.sample(names, 2)
    deed = rng.randrange(6)
    if deed == 0:
        header[one]["dtype"] = rng.choice(["I32", "U32", "F64", "F16", "BF16", "BOOL", "F8_E4M3"])
    elif deed == 1:
        header[one]["shape"] = rng.choice([[64], [1, 8], [8, 1], [], [0], [2, 2, 2], [-8]])
    elif deed == 2:
        header[one]["shape"].reverse()
    elif deed == 3:
        header[rng.choice(["", "x", "head", "a.b.c", two])] = header.pop(one)
    elif deed == 4:
        header[one], header[two] = header[two], header[one]
    else:
        header["__metadata__"] = rng.choice([{}, {"format": "tf"}, {"a": 1}, None])
    return header


def mutated_file(content, rng):
    """A safetensors file with its header changed: its values, its bytes, or its length."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = rng.randrange(5)
    if kind < 2:
        header = json.dumps(plausible(json.loads(header), rng)).encode()
        size = len(header)
    elif kind == 2:
        header = mutated(json.loads(header), rng)
        size = len(header)
    elif kind == 3:
        header = bytearray(header)
        for _ in range(rng.randint(1, 4)):
            header[rng.randrange(len(header))] = rng.randrange(256)
    else:
        size = rng.choice([0, 1, size - 1, size + 1, size + len(data), 2**31, 2**62, 2**64 - 1])
    return struct.pack("<Q", size) + bytes(header) + data


def attempt(folder, seconds=20):
    """Load a directory; the documented errors are results, and time is not without end."""

    def stop(*_):
        raise AssertionError(f"{folder} was not done after {seconds} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        model = keras_vit.from_preset(folder)
        shape = (1, *model.image_size, model.backbone.input_shape[-1])
        assert model.compute_output_shape(shape) is not None
        return "loaded"
    except (ValueError, HubError) as error:
        assert str(error)
        return type(error).__name__
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("layout", TINY)
@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_mutations_end_in_a_documented_error(tmp_path, file, layout, seed):
    rng = random.Random(f"{file} {layout} {seed}")
    folder = tiny.write(tmp_path / "checkpoint", TINY[layout])
    attempt(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = set()
    for _ in range(50):
        files = dict(TINY[layout])
        if file == WEIGHTS:
            files[WEIGHTS] = mutated_file(files[WEIGHTS], rng)
        else:
            names = [CONFIG] if layout == "timm" else [CONFIG, CONFIG, "preprocessor_config.json"]
            name = rng.choice(names)
            files[name] = mutated(json.loads(files[name]), rng)
        tiny.write(folder, files)
        ends.add(attempt(folder))
    assert len(ends) > 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 << 10, f"{grown} KiB for files of a few"
