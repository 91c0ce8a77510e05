"""The house: imports point down only, names are public on purpose, an import is light."""

import ast
import importlib
import importlib.util
import os
import pathlib
import pkgutil
import subprocess
import sys
import types

import pytest

import keras_vit
import keras_vit_presets as presets

PACKAGE = pathlib.Path(keras_vit.__file__).parent
ROOT = PACKAGE.parent
# From the foundation up: a module imports from lower tiers, from its own without a circle.
TIERS = [
    {"text", "types", "version"},
    {"atomic"},
    {"layers"},
    {
        "arrays",
        "checks",
        "crop",
        "data",
        "hub",
        "hub_errors",
        "hub_waiting",
        "tensor_files",
        "images",
        "keys",
        "labels",
        "pixels",
        "resize",
        "weights",
    },
    {"models"},
    {"layouts", "zoo"},
    {"explain", "export", "scale", "train"},
    {"demo"},
]
RANK = {name: rank for rank, names in enumerate(TIERS) for name in names}
# A classifier loads and saves itself by what stands above it, which is asked when it is needed.
UP = {"models/classifier.py": {"layouts", "zoo"}}


def home(path):
    """The name of the module or subpackage, directly in keras_vit, that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def name_of(path):
    return str(path.relative_to(PACKAGE))


def imports(path):
    """The modules and subpackages of keras_vit that a file imports, in functions, too; the
    package itself is `""`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            parts = node.module.split(".")
            if parts[0] == "keras_vit":
                yield from [parts[1]] if parts[1:] else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "keras_vit":
                    yield parts[1] if parts[1:] else ""
                assert parts[0] != "keras_vit_command", f"{path}: the command stands above"


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_module_has_its_tier():
    assert {home(path) for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    names = set(imports(path))
    assert "" not in names, "an import of the whole package"
    up = {name for name in names if RANK[name] > RANK[home(path)]}
    assert up == UP.get(name_of(path), set())


def test_there_is_no_circle():
    graph = {name: set() for name in RANK}
    for path in FILES:
        graph[home(path)] |= set(imports(path)) - {home(path)} - UP.get(name_of(path), set())
    while graph:
        free = [name for name, needs in graph.items() if not needs]
        assert free, f"These import each other: {sorted(graph)}"
        graph = {name: needs - set(free) for name, needs in graph.items() if name not in free}


def test_the_tables_stand_below_all_and_the_command_above():
    assert list(imports(ROOT / "keras_vit_presets.py")) == []


def untyped(node, inside=""):
    """Public functions and methods of a file without a full annotation."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from untyped(child, f"{child.name}.")
        if not isinstance(child, ast.FunctionDef) or child.name.startswith("_"):
            continue
        every = child.args.posonlyargs + child.args.args + child.args.kwonlyargs
        every += [a for a in (child.args.vararg, child.args.kwarg) if a]
        every = [a for a in every if a.arg not in ("self", "cls")]
        if child.returns is None or any(a.annotation is None for a in every):
            yield f"{inside}{child.name}"


@pytest.mark.parametrize("path", [*FILES, ROOT / "keras_vit_presets.py"], ids=lambda p: p.stem)
def test_what_is_public_has_types(path):
    assert list(untyped(ast.parse(path.read_text("utf-8")))) == []


def test_the_stubs_are_todays():
    path = ROOT / "scripts" / "stubs.py"
    spec = importlib.util.spec_from_file_location("stubs", path)
    stubs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stubs)
    said = "out of date: python scripts/stubs.py writes it"
    assert stubs.PATH.read_text("utf-8") == stubs.stub(), said


# --- Who knows what ---


FAMILIES = set(presets.families()) | {
    name for f in presets.families().values() for name in (f.cls, f"{f.cls}Backbone")
}
LIBRARY = [path for path in FILES if home(path) != "models"]
LIBRARY += sorted((ROOT / "keras_vit_command").glob("*.py"))


def words(path):
    """(line, word) of the names and whole texts of a file's code."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.Constant(value=str(word)):
                yield node.lineno, word
            case ast.alias(name=name):
                yield from ((node.lineno, word) for word in name.split("."))


RECIPES = ("recipes.py", "parser.py")  # where "deit" is the name of a recipe


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_models_and_presets_know_a_family_by_name(path):
    found = [word for _, word in words(path) if word in FAMILIES]
    assert found == ["deit"] * (path.name in RECIPES)


def calls(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node


FOREIGN = {  # what is not ours to give an interface
    "pixels.py": "images, whatever has a shape",
    "layers/resample.py": "TensorFlow's tensors, without an import of it",
    "arrays.py": "arrays, whatever has a shape",
    "data.py": "datasets, without an import of TensorFlow",
    "export/tflite.py": "the names in TensorFlow's schema",
}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_object_of_ours_is_asked_whether_it_has_an_attribute(path):
    found = [node.lineno for node in calls(path) if node.func.id == "hasattr"]
    assert bool(found) == (name_of(path) in FOREIGN), found


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_layer_is_found_by_its_position(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
            assert node.value.attr != "layers", f"{path}:{node.lineno}"


PACKAGES = ["keras_vit"] + [
    f"keras_vit.{module.name}"
    for module in pkgutil.iter_modules(keras_vit.__path__)
    if module.ispkg
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


HEAVY = ["ai_edge_litert", "jax", "matplotlib", "pandas", "pyarrow", "ray", "rich"]
HEAVY += ["safetensors.tensorflow", "safetensors.torch", "scipy", "sklearn", "timm", "torch"]
HEAVY += ["torchvision", "transformers"]
WITHOUT_KERAS = """
import sys
import keras_vit_presets
from keras_vit_command import parser, tables
print(len(keras_vit_presets.checkpoints()), [n for n in ("keras", "keras_vit") if n in sys.modules])
"""


def test_the_tables_need_no_keras():
    assert python(WITHOUT_KERAS) == f"{len(presets.checkpoints())} []\n"


NAMES = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import keras_vit
print(sorted(name for name in vars(keras_vit) if not name.startswith("_")))
"""


def test_the_order_of_imports_does_not_matter():
    names = ("keras_vit", "keras_vit_command", "keras_vit_presets")
    assert python(NAMES, *names) == python(NAMES, *reversed(names))


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


def test_no_layer_has_a_method_that_torch_calls():
    """On the torch backend a layer is a torch.nn.Module, and `forward` would replace `call`."""
    for path in [*(PACKAGE / "layers").glob("*.py"), *(PACKAGE / "models").glob("*.py")]:
        names = {x.name for x in ast.walk(ast.parse(path.read_text("utf-8"))) if hasattr(x, "name")}
        assert "forward" not in names, path
