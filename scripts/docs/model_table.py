"""The tables of checkpoints, from presets/: a mkdocs hook for docs/models.md, and a script.

python scripts/docs/model_table.py    writes the table of families into README.md
"""

import fnmatch
import html
import pathlib
import re

import keras_vit_presets as presets

ROOT = pathlib.Path(__file__).parents[2]
FAMILIES = {  # pattern of list_presets: description; the first match of a name counts
    "deit_*": "[DeiT](https://arxiv.org/abs/2012.12877), with and without distillation",
    "deit3_*": "[DeiT III](https://arxiv.org/abs/2204.07118)",
    "vit_*_patch*.augreg*": "[ViT, AugReg](https://arxiv.org/abs/2106.10270)",
    "vit_*_patch*.orig*": "[ViT](https://arxiv.org/abs/2010.11929), the original weights",
    "vit_*.sbb*": "ViT, timm's recipes for small and medium sizes",
    "vit_*_clip_*": "[CLIP](https://arxiv.org/abs/2103.00020): OpenAI, LAION, DataComp, MetaCLIP",
    "vit_*_siglip_*": "[SigLIP](https://arxiv.org/abs/2303.15343) and SigLIP 2",
    "vit_*dinov2*": "[DINOv2](https://arxiv.org/abs/2304.07193), with and without registers",
    "vit_*dinov3*": "[DINOv3](https://arxiv.org/abs/2508.10104) and EUPE, of the same structure",
    "vit_*.dino": "[DINO](https://arxiv.org/abs/2104.14294)",
    "vit_*.mae": "[MAE](https://arxiv.org/abs/2111.06377)",
    "aimv2_*": "[AIMv2](https://arxiv.org/abs/2411.14402)",
    "eva_giant*": "[EVA](https://arxiv.org/abs/2211.07636)",
    "eva02_*": "[EVA-02](https://arxiv.org/abs/2303.11331)",
    "vit_pe_*": "[Perception Encoder](https://arxiv.org/abs/2504.13181)",
    "vit_*_rope_*.naver*": "[RoPE-ViT](https://arxiv.org/abs/2403.13298)",
    "vit_*lingbot*": "[LingBot-Vision](https://arxiv.org/abs/2607.05247)",
    "beit3_*": "[BEiT-3](https://arxiv.org/abs/2208.10442), vision part",
    "beit_*": "[BEiT](https://arxiv.org/abs/2106.08254)",
    "beitv2_*": "[BEiT v2](https://arxiv.org/abs/2208.06366)",
    "vit_*relpos_*": "ViT with relative positions, timm's",
    "flexivit_*": "[FlexiViT](https://arxiv.org/abs/2212.08013)",
    "vit_*_radio_*": "[RADIO](https://arxiv.org/abs/2312.06709)",
    "vit_*_r*_s[13]*": "R+ViT: a ResNet before a [ViT](https://arxiv.org/abs/2010.11929)",
    "mixer_*": "[MLP-Mixer](https://arxiv.org/abs/2105.01601)",
    "resmlp_*": "[ResMLP](https://arxiv.org/abs/2105.03404)",
    "swin_*": "[Swin](https://arxiv.org/abs/2103.14030) and "
    "[Swin-S3](https://arxiv.org/abs/2111.14725)",
    "swinv2_*": "[Swin V2](https://arxiv.org/abs/2111.09883)",
    "pvt_v2_*": "[PVT v2](https://arxiv.org/abs/2106.13797)",
    "convnext_*": "[ConvNeXt](https://arxiv.org/abs/2201.03545)",
    "convnextv2_*": "[ConvNeXt V2](https://arxiv.org/abs/2301.00808)",
    "coatne*": "[CoAtNet](https://arxiv.org/abs/2106.04803) and timm's CoAtNeXt",
    "maxvit_*": "[MaxViT](https://arxiv.org/abs/2204.01697)",
    "maxxvit*": "MaxxViT: timm's MaxViT of ConvNeXt blocks",
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


def on_config(config):
    config.watch.append(str(ROOT / "presets"))  # for mkdocs serve
    return config


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri == "api/models.md":
        return with_references(markdown)
    if page.file.src_uri != "models.md":
        return markdown
    rows = list(model_rows())
    markdown = markdown.replace("{{ number of presets }}", str(len(rows)))
    markdown = markdown.replace("{{ table of families }}", families_table())
    return markdown.replace("{{ table of presets }}", models_table(rows))


def families_table():
    """Markdown: the number of checkpoints in each family."""
    groups = {pattern: [] for pattern in FAMILIES}
    for name, row in presets.checkpoints().items():
        pattern = next(p for p in FAMILIES if fnmatch.fnmatch(name, p))
        groups[pattern].append(row)
    lines = ["| family | pattern | checkpoints | best top-1 |", "|---|---|--:|--:|"]
    for pattern, rows in groups.items():
        best = max((row.top1 for row in rows if row.top1 is not None), default=None)
        shown = "" if best is None else f"{best:.1f}"
        pattern = "" if pattern == "*" else f"`{pattern}`"
        what = FAMILIES[pattern.strip("`") or "*"]
        if rows:
            lines.append(f"| {what} | {pattern} | {len(rows)} | {shown} |")
    total = sum(map(len, groups.values()))
    return "\n".join([*lines, f"| all | `*` | {total} | |"])


def model_rows():
    """The values of each preset's columns: a number, a string, (text, URL) or None."""
    for name, row in presets.checkpoints().items():
        place = "this package"
        if row.repository is not None:
            where = f"https://huggingface.co/{row.repository}"
            place = (row.repository.partition("/")[0], where)
        numbers = [row.image_size, row.params, row.num_classes, row.top1, row.top5]
        yield [name, row.cls, *numbers, row.trained_on or None, row.license, place]


REFERENCE = """::: keras_vit.models.{name}
    options:
      heading_level: 3
      inherited_members: {inherited}
      members: {members}
"""
# Documented for the first backbone only; its signature is in keras_vit/models/__init__.pyi.
MEMBERS = ["blocks", "grid_size", "num_prefix_tokens", "leading_tokens"]


def with_references(markdown):
    """The models' reference page with the two classes of each family, ViT first."""
    families = sorted(presets.families().values(), key=lambda family: family.name != "vit")
    for what, suffix in (("classifiers", ""), ("backbones", "Backbone")):
        texts = [
            REFERENCE.format(
                name=f"{family.cls}{suffix}" if suffix else f"{family.name}.{family.cls}",
                members=MEMBERS if suffix and family.name == "vit" else [],
                inherited=MEMBERS if suffix and family.name == "vit" else [],
            )
            for family in families
        ]
        markdown = markdown.replace(f"{{{{ {what} }}}}", "\n".join(texts))
    return markdown


def models_table(rows):
    """An HTML table, which docs/javascripts/models.js sorts and filters."""
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
    """README.md's text with the current table of families."""
    begin, end = "<!-- families: scripts/docs/model_table.py -->", "<!-- end -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n{families_table()}\n{end}", readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_families(path.read_text("utf-8")), "utf-8")
