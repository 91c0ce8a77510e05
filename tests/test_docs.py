"""README and docs: the code runs, commands parse, links lead somewhere, tables are today's."""

import ast
import contextlib
import doctest
import importlib.util
import pathlib
import pkgutil
import re
import shlex
import shutil
import tomllib

import numpy as np
import pytest
import tiny_checkpoints as tiny
import yaml
from hub_server import HubServer, client_of
from PIL import Image
from safetensors.numpy import save_file

import keras_vit
import keras_vit_presets as presets
from keras_vit_command import run as main
from keras_vit_command.parser import parser

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {str(p.relative_to(ROOT)): p for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]}
HUB = "# needs the Hub\n"  # the first line of code that a reader cannot run without a network
# Likewise for a package that the reader need not have.
OPTIONAL = {
    "# needs the extra onnx\n": ("onnx", "onnxruntime", "tf2onnx"),
    "# needs the extra openvino\n": ("onnx", "openvino", "tf2onnx"),
}
HUB_NAME = "timm/deit_tiny_patch16_224.fb_in1k"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page, *languages):
    """(line, text) of a page's fenced blocks."""
    text = PAGES[page].read_text("utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if found[1] in languages:
            yield text[: found.start()].count("\n") + 2, found[2]


def code(page, hub):
    """The blocks of Python that need the Hub, or those that do not."""
    found = blocks(page, "python", "pycon")
    return [(line, text) for line, text in found if text.startswith(HUB) == hub]


def pages_with(hub):
    return sorted(page for page in PAGES if code(page, hub))


def run(page, hub, namespace):
    """Run a page's blocks in order, as a reader would; a session must print what it shows."""
    for line, text in code(page, hub):
        needed = OPTIONAL.get(text.partition("\n")[0] + "\n", ())
        if not all(map(importlib.util.find_spec, needed)):
            continue
        if ">>>" in text:
            session(page, line, text, namespace)
        else:
            exec(compile("\n" * (line - 1) + text, PAGES[page], "exec"), namespace)


def session(page, line, text, namespace):
    test = doctest.DocTestParser().get_doctest(text, namespace, page, str(PAGES[page]), line - 1)
    said = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append, clear_globs=False)
    namespace.update(test.globs)
    assert not said, "".join(said)


@pytest.mark.filterwarnings(  # whose successor is a package that the reader need not have
    "ignore:.*tf.lite.Interpreter is deprecated:UserWarning"
)
@pytest.mark.parametrize("page", pages_with(hub=False))
def test_code_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        folder = tmp_path / "flowers" / ("rose", "tulip")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((48, 40), 60).convert("RGB").save(folder / f"{i}.jpg")
    save_file(tiny.tensors(tiny.torchvision_shapes()), tmp_path / "mnist_vit.safetensors")
    run(page, False, {})


@pytest.mark.parametrize("page", pages_with(hub=True))
def test_code_that_needs_the_hub_runs(page, deit_tiny, photographs, tmp_path, monkeypatch):
    """On the real DeiT-Tiny, which a server on 127.0.0.1 gives as the Hub would."""
    monkeypatch.chdir(tmp_path)
    for name in ("collie", "damselfly"):
        shutil.copyfile(next(p for p in photographs[0] if name in p.name), f"{name}.jpg")
    images = np.random.default_rng(0).integers(0, 256, (10, 96, 128, 3), dtype="uint8")
    files = {path.name: path.read_bytes() for path in deit_tiny.iterdir()}
    with HubServer({HUB_NAME: files}) as server, client_of(server, tmp_path / "cache"):
        run(page, True, {"images": images, "labels": np.arange(10) % 5})


@pytest.mark.parametrize("page", pages_with(hub=True))
def test_code_that_needs_the_hub_names_what_is_there(page):
    for line, text in code(page, hub=True):
        source = doctest.script_from_examples(text) if ">>>" in text else text
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        for call in calls:
            if ast.unparse(call.func).endswith("from_preset") and call.args:
                preset = getattr(call.args[0], "value", None)
                assert preset is None or keras_vit.preset_info(preset), line


def commands():
    """(page, command, what the page shows below it) of all lines that begin with `$`."""
    for page in sorted(PAGES):
        for _, text in blocks(page, "console"):
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                line, _, shown = part.partition("\n")
                for command in line.split(" && "):
                    yield page, command.strip(), shown.strip()


@pytest.mark.parametrize(("page", "command", "shown"), [*commands()], ids=lambda value: value[:40])
def test_commands_are_ones(page, command, shown, capsys, monkeypatch):
    program, *arguments = shlex.split(command)
    if program == "keras-vit":
        assert parser().parse_args(arguments).command
        if shown:
            monkeypatch.setenv("COLUMNS", "80")
            assert main(arguments) == 0
            assert doctest.OutputChecker().check_output(shown, capsys.readouterr().out, OPTIONS)
        return
    assert program in ("pip", "pytest", "python", "mkdocs")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(re.findall(r"\.\[(\w+)\]", command)) <= extras.keys()
    for word in arguments:
        assert "/" not in word or (ROOT / word).exists(), word


def load_tables():
    path = ROOT / "scripts" / "docs" / "model_table.py"
    spec = importlib.util.spec_from_file_location("model_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = load_tables()
REFERENCE = [
    (name, yaml.safe_load(options) or {})
    for page in sorted(ROOT.glob("docs/api/*.md"))
    for name, options in re.findall(
        r"^::: (\S+)\n((?:    .*\n)*)",
        TABLES.with_references(page.read_text("utf-8")),
        re.MULTILINE,
    )
]


def test_the_reference_has_every_family():
    names = {name.rpartition(".")[2] for name, _ in REFERENCE}
    assert names >= set(keras_vit.models.__all__)


@pytest.mark.parametrize("name, options", REFERENCE, ids=[name for name, _ in REFERENCE])
def test_the_reference_shows_what_it_names(name, options):
    """mkdocstrings is silent of members that a class only inherits, and shows a module where a
    function has its name."""
    assert importlib.util.find_spec(name.rpartition(".")[0]), "of a module"
    with contextlib.suppress(ModuleNotFoundError):
        assert importlib.util.find_spec(name) is None, "a module, not its function"
    found = pkgutil.resolve_name(name)
    options = options.get("options", {})
    inherited = options.get("inherited_members", [])
    for member in options.get("members", []):
        assert member in vars(found) or (member in inherited and hasattr(found, member)), member


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    text = re.sub(
        r"^```.*?^```$", "", PAGES[page].read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        goal = (PAGES[page].parent / file).resolve() if file else PAGES[page]
        assert goal.is_file(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", goal.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, heads), target


def slug(head):
    """The anchor that mkdocs makes of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower())


def test_the_families_of_the_readme():
    readme = PAGES["README.md"].read_text("utf-8")
    said = "out of date: python scripts/docs/model_table.py writes it"
    assert TABLES.with_families(readme) == readme, said
    counts = dict(re.findall(r"\| `([^`]+)` \| (\d+) \|", TABLES.families_table()))
    assert counts.keys() == set(TABLES.FAMILIES)
    for pattern, count in counts.items():
        assert len(keras_vit.list_presets(pattern)) == int(count), pattern


def test_the_table_of_the_docs_has_every_preset():
    rows = {row[0]: row for row in TABLES.model_rows()}
    assert list(rows) == keras_vit.list_presets()
    info = keras_vit.preset_info("deit_tiny_patch16_224.fb_in1k")
    numbers = [info[key] for key in ("image_size", "params", "num_classes", "top1", "top5")]
    address = f"https://huggingface.co/{info['source']}"
    expected = [info["name"], "DeiT", *numbers, "in1k", "apache-2.0", ("timm", address)]
    assert rows[info["name"]] == expected
    html = TABLES.models_table(rows.values())
    assert html.count("<tr>") == 1 + len(rows) and html.count("<td") == len(rows) * 10


def test_the_page_on_loading_names_every_type_of_transformers():
    text = PAGES["docs/loading.md"].read_text("utf-8")
    assert [t for t in presets.layout("transformers") if f"`{t}`" not in text] == []


def test_the_tests_that_the_page_on_reliability_names_exist():
    named = re.findall(
        r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text("utf-8")
    )
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if f"def {name}(" not in (pathlib.Path(__file__).parent / file).read_text("utf-8")
    ]
    assert missing == []
