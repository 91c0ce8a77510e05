"""The tables of checkpoints, from presets/: mkdocs' hook for docs/models.md, and a script.

python scripts/docs/model_table.py    writes the table of families into README.md
"""

import fnmatch
import html
import importlib.util
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
FAMILIES = {  # pattern of list_presets: what it is; a name belongs to the first that matches
    "deit_*": "[DeiT](https://arxiv.org/abs/2012.12877), with and without distillation",
    "deit3_*": "[DeiT III](https://arxiv.org/abs/2204.07118)",
    "vit_*_patch*.augreg*": "[ViT, AugReg](https://arxiv.org/abs/2106.10270)",
    "vit_*_patch*.orig*": "[ViT](https://arxiv.org/abs/2010.11929), the paper's own",
    "vit_*.sbb*": "ViT, timm's small and medium recipes",
    "vit_*_clip_*": "[CLIP](https://arxiv.org/abs/2103.00020): OpenAI, LAION, DataComp, MetaCLIP",
    "vit_*_siglip_*": "[SigLIP](https://arxiv.org/abs/2303.15343) and SigLIP 2",
    "vit_*dinov2*": "[DINOv2](https://arxiv.org/abs/2304.07193), with and without registers",
    "vit_*.dino": "[DINO](https://arxiv.org/abs/2104.14294)",
    "vit_*.mae": "[MAE](https://arxiv.org/abs/2111.06377)",
    "aimv2_*": "[AIMv2](https://arxiv.org/abs/2411.14402)",
    "beit3_*": "[BEiT-3](https://arxiv.org/abs/2208.10442), vision part",
    "flexivit_*": "[FlexiViT](https://arxiv.org/abs/2212.08013)",
    "vit_*_radio_*": "[RADIO](https://arxiv.org/abs/2312.06709)",
    "vit_*_r*_s[13]*": "R+ViT: a ResNet, then a [ViT](https://arxiv.org/abs/2010.11929)",
    "mixer_*": "[MLP-Mixer](https://arxiv.org/abs/2105.01601)",
    "resmlp_*": "[ResMLP](https://arxiv.org/abs/2105.03404)",
    "*": "others",
}
COLUMNS = (
    "name",
    "class",
    "pixels",
    "parameters",
    "classes",
    "top-1",
    "top-5",
    "data",
    "licence",
    "source",
)
NUMBERS = COLUMNS[2:7]


def load_presets():
    """keras_vit/presets.py by itself: a table needs no Keras."""
    spec = importlib.util.spec_from_file_location("presets", ROOT / "keras_vit" / "presets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_config(config):
    config.watch.append(str(ROOT / "presets"))  # for mkdocs serve
    return config


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri != "models.md":
        return markdown
    rows = list(model_rows())
    markdown = markdown.replace("{{ number of presets }}", str(len(rows)))
    markdown = markdown.replace("{{ table of families }}", families_table())
    return markdown.replace("{{ table of presets }}", models_table(rows))


def families_table():
    """Markdown: how many checkpoints of what."""
    groups = {pattern: [] for pattern in FAMILIES}
    for name, row in load_presets().checkpoints().items():
        pattern = next(p for p in FAMILIES if fnmatch.fnmatch(name, p))
        groups[pattern].append(row)
    lines = ["| family | pattern | checkpoints | best top-1 |", "|---|---|--:|--:|"]
    for pattern, rows in groups.items():
        best = max((row["top1"] for row in rows if "top1" in row), default=None)
        shown = "" if best is None else f"{best:.1f}"
        pattern = "" if pattern == "*" else f"`{pattern}`"
        what = FAMILIES[pattern.strip("`") or "*"]
        if rows:
            lines.append(f"| {what} | {pattern} | {len(rows)} | {shown} |")
    total = sum(map(len, groups.values()))
    return "\n".join([*lines, f"| all | `*` | {total} | |"])


def model_rows():
    """The columns' values of each preset; a number, a text, (text, address) or None."""
    presets = load_presets()
    for name, row in presets.checkpoints().items():
        place = "this package"
        if "path" not in row:
            repository = row.get("hub", f"timm/{name}")
            place = (repository.partition("/")[0], f"https://huggingface.co/{repository}")
        kind = presets.families()[row["family"]]["class"]
        numbers = [row["size"], row["params"], row["classes"], row.get("top1"), row.get("top5")]
        data = presets.trained_on(name) or None
        yield [name, kind, *numbers, data, row.get("license", "unknown"), place]


def models_table(rows):
    """HTML, which docs/javascripts/models.js sorts and filters."""
    heads = "".join(
        f'<th{number(name)} data-key="{name}"><button>{name}</button></th>' for name in COLUMNS
    )
    lines = [f'<table id="models"><thead><tr>{heads}</tr></thead><tbody>']
    for row in rows:
        cells = zip(COLUMNS, row, strict=True)
        cells = "".join(f"<td{number(name)}>{cell(name, value)}</td>" for name, value in cells)
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def number(name):
    return ' class="number"' if name in NUMBERS else ""


def cell(name, value):
    if value is None:
        return ""
    if isinstance(value, tuple):
        text, address = map(html.escape, value)
        return f'<a href="{address}">{text}</a>'
    if name == "name":
        return f"<code>{html.escape(value)}</code>"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else html.escape(value)


def with_families(readme):
    """README.md's text with today's table of families."""
    begin, end = "<!-- families: scripts/docs/model_table.py -->", "<!-- end -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n{families_table()}\n{end}", readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_families(path.read_text("utf-8")), "utf-8")
