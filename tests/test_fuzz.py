"""Mutations of configs and files of weights of every layout: each ends in a documented error."""

import copy
import json
import random
import resource
import shutil
import signal
import struct

import keras_hub
import pytest
import tiny_checkpoints as tiny
from huggingface_hub import constants
from safetensors.numpy import save

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


def fuzz(tmp_path, files, mutate, rng, count=50):
    """Load mutations of a preset; how the attempts ended."""
    folder = tiny.write(tmp_path / "checkpoint", files)
    attempt(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = set()
    for _ in range(count):
        shutil.rmtree(folder)
        tiny.write(folder, mutate(dict(files), rng))
        ends.add(attempt(folder))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 << 10, f"{grown} KiB for files of a few"
    return ends


def mutate_config(files, rng):
    name = rng.choice([CONFIG, CONFIG, *[n for n in files if n.endswith(".json")]])
    files[name] = mutated(json.loads(files[name]), rng)
    return files


def mutate_weights(files, rng):
    files[WEIGHTS] = mutated_file(files[WEIGHTS], rng)
    return files


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("layout", TINY)
@pytest.mark.parametrize("mutate", [mutate_config, mutate_weights])
def test_mutations_end_in_a_documented_error(tmp_path, mutate, layout, seed):
    rng = random.Random(f"{mutate.__name__} {layout} {seed}")
    assert len(fuzz(tmp_path, TINY[layout], mutate, rng)) > 1


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory):
    """Presets in Keras' layout, of this package and of KerasHub's own ViT."""
    folder = tmp_path_factory.mktemp("keras")
    keras_vit.from_preset(tiny.write(folder / "timm", TINY["timm"])).save_to_preset(folder / "ours")
    sizes = {"image_shape": (8, 8, 3), "patch_size": 4, "num_layers": 1, "num_heads": 2}
    backbone = keras_hub.models.ViTBackbone(**sizes, hidden_dim=8, mlp_dim=12)
    model = keras_hub.models.ViTImageClassifier(backbone, 3)
    model.save_to_preset(str(folder / "theirs"))
    return {"keras": files_of(folder / "ours"), "kerashub": files_of(folder / "theirs")}


def mutate_both(files, rng):
    """The backbone's config in the two files that have it, or any config."""
    if rng.random() < 0.5:
        return mutate_config(files, rng)
    config = json.loads(mutated(json.loads(files[CONFIG]), rng))
    files[CONFIG] = json.dumps(config).encode()
    task = json.loads(files["task.json"])
    task["config"]["backbone"] = config
    files["task.json"] = json.dumps(task).encode()
    return files


def mutate_bytes(files, rng):
    """A few bytes of a file of weights, or its end."""
    name = rng.choice([n for n in files if n.endswith((".h5", ".npz", ".safetensors"))])
    content = bytearray(files[name])
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    for _ in range(rng.randint(1, 20)):
        if content:
            content[rng.randrange(min(len(content), 4096))] = rng.randrange(256)
    files[name] = bytes(content)
    return files


@pytest.mark.filterwarnings("ignore")  # Keras warns of what it skips
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("layout", ["keras", "kerashub"])
@pytest.mark.parametrize("mutate", [mutate_both, mutate_bytes])
def test_mutations_of_kerass_layouts(tmp_path, keras_files, mutate, layout, seed):
    rng = random.Random(f"{mutate.__name__} {layout} {seed}")
    assert len(fuzz(tmp_path, keras_files[layout], mutate, rng)) > 1


ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "bias": "none",
    "alpha_pattern": {"value": 3}, "rank_pattern": {}, "modules_to_save": ["classifier"],
    "revision": None, "init_lora_weights": True, "target_modules": ["query", "value"],
}  # fmt: skip


def mutate_adapter(files, rng):
    name = rng.choice(["adapter_config.json", "adapter_model.safetensors"])
    change = mutated_file if name.endswith("s") else lambda c, rng: mutated(json.loads(c), rng)
    files[name] = change(files[name], rng)
    return files


@pytest.mark.parametrize("seed", range(2))
def test_mutations_of_an_adapter(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # a mutation may name a repository
    base = tiny.write(tmp_path / "base", TINY["transformers"])
    layers = "base_model.model.vit.encoder.layer.0.attention.attention"
    shapes = {}
    for name in ("query", "value"):
        shapes[f"{layers}.{name}.lora_A.weight"] = (2, tiny.WIDTH)
        shapes[f"{layers}.{name}.lora_B.weight"] = (tiny.WIDTH, 2)
    shapes |= {"base_model.model.classifier.weight": (4, tiny.WIDTH)}
    shapes |= {"base_model.model.classifier.bias": (4,)}
    config = {**ADAPTER, "base_model_name_or_path": str(base)}
    files = {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(tiny.tensors(shapes)),
    }
    assert len(fuzz(tmp_path, files, mutate_adapter, random.Random(seed))) > 1
