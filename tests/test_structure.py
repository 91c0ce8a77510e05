"""The house: imports point down only, names are public on purpose, an import is light."""

import ast
import importlib
import os
import pathlib
import pkgutil
import subprocess
import sys
import types

import pytest

import keras_vit

PACKAGE = pathlib.Path(keras_vit.__file__).parent
# From the foundation up: a module imports from lower tiers, from its own without a circle.
TIERS = [
    {"layers"},
    {
        "checks",
        "data",
        "hub",
        "hub_errors",
        "images",
        "keys",
        "labels",
        "presets",
        "resize",
        "weights",
    },
    {"models"},
    {"layouts", "save", "zoo"},
    {"explain", "export", "train"},
    {"cli", "demo"},
]
RANK = {name: rank for rank, names in enumerate(TIERS) for name in names}


def home(path):
    """The name of the module or subpackage, directly in keras_vit, that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """The modules and subpackages of keras_vit that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            parts = node.module.split(".")
            if parts[0] == "keras_vit":
                yield from [parts[1]] if parts[1:] else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "keras_vit" and parts[1:]:
                    yield parts[1]


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_module_has_its_tier():
    assert {home(path) for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    up = [name for name in imports(path) if RANK[name] > RANK[home(path)]]
    assert not up


def test_there_is_no_circle():
    graph = {name: set() for name in RANK}
    for path in FILES:
        graph[home(path)] |= set(imports(path)) - {home(path)}
    while graph:
        free = [name for name, needs in graph.items() if not needs]
        assert free, f"These import each other: {sorted(graph)}"
        graph = {name: needs - set(free) for name, needs in graph.items() if name not in free}


PACKAGES = ["keras_vit"] + [
    f"keras_vit.{module.name}"
    for module in pkgutil.iter_modules(keras_vit.__path__)
    if module.ispkg and module.name != "cli"
]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_what_is_public_and_sorted(name):
    module = importlib.import_module(name)
    names = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    public = {k for k, v in names.items() if not isinstance(v, types.ModuleType)}
    listed = {k for k in module.__all__ if isinstance(names[k], types.ModuleType)}
    assert set(module.__all__) == public | listed
    assert list(module.__all__) == sorted(module.__all__)


def python(code, *arguments, **environment):
    """What a fresh Python prints, warnings being errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    environment = {**os.environ, **environment}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


HEAVY = ["ai_edge_litert", "jax", "matplotlib", "pandas", "rich", "safetensors.tensorflow"]
HEAVY += ["safetensors.torch", "scipy", "sklearn", "timm", "torch", "torchvision", "transformers"]
SILENT = """
import os, sys, tempfile
import keras_hub
known, terminal = set(sys.modules), os.dup(1)
with tempfile.TemporaryFile() as file:
    for number in (1, 2):  # what C++ prints, too
        os.dup2(file.fileno(), number)
    import keras_vit
    sys.stdout.flush(), sys.stderr.flush()
    file.seek(0)
    os.write(terminal, file.read())
os.write(terminal, " ".join(sorted((set(sys.modules) - known) & set(sys.argv[1:]))).encode())
"""


def test_an_import_is_silent_and_brings_nothing_heavy():
    assert python(SILENT, *HEAVY) == ""


ALONE = """
import sys
for name in ("tensorflow", "tensorflow_text", "tf_keras"):
    sys.modules[name] = None  # as if it were not installed
import keras_vit
backbone = keras_vit.ViTBackbone(image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
print(keras_vit.ViT(backbone, 3).count_params(), len(keras_vit.list_presets("deit*")))
"""


@pytest.mark.parametrize(
    ("backend", "needs"), [("numpy", "jax"), ("jax", "jax"), ("torch", "torch")]
)
def test_it_imports_without_tensorflow(backend, needs):
    pytest.importorskip(needs)  # Keras' numpy backend borrows from JAX, too
    assert python(ALONE, KERAS_BACKEND=backend) == "1355 24\n"
