"""The tables: each row builds, with exactly the parameters it says; the catalogue is complete."""

import dataclasses
import functools
import json
import math

import pytest

import keras_vit
import keras_vit_presets as presets
from keras_vit import layouts, weights

ROWS = presets.checkpoints()


@functools.cache
def parameters(family, arch, size, classes):
    """The parameters of an architecture. Equal blocks add equally many: two depths tell all."""
    row = next(r for r in ROWS.values() if key(r) == (family, arch, size, classes))
    spec = layouts.from_checkpoint(row, None)
    depth = spec.backbone.get("depth")
    if not isinstance(depth, int) or depth < 4:
        return built(spec)
    one, two = (
        built(dataclasses.replace(spec, backbone={**spec.backbone, "depth": d})) for d in (1, 2)
    )
    return one + (depth - 1) * (two - one)


def built(spec):
    """The parameters of a built model. In the scope variables have shapes, but no memory."""
    with weights.without_values():
        backbone = spec.cls.backbone_cls(**spec.backbone)
        model = spec.cls(backbone, spec.num_classes, compile=False, **spec.head)
        # timm does not count the moving statistics of batch normalisation either.
        return sum(math.prod(variable.shape) for variable in model.trainable_weights)


def key(row):
    return row.family, row.architecture, row.image_size, row.num_classes


@pytest.mark.parametrize("name", keras_vit.list_presets())
def test_parameters_are_exactly_the_rows(name):
    assert parameters(*key(ROWS[name])) == ROWS[name].params


def one_of_each_structure():
    """The smallest row of each family and structure."""
    rows = sorted(ROWS.values(), key=lambda row: -row.params)
    return sorted({(row.family, structure(row)): row.name for row in rows}.values())


def structure(row):
    table = presets.families()[row.family].table
    return table["architectures"][row.architecture].get("structure", "")


@pytest.mark.parametrize("name", one_of_each_structure())
def test_a_whole_model_of_each_structure(name):
    assert built(layouts.from_checkpoint(ROWS[name], None)) == ROWS[name].params


# g and G: https://arxiv.org/abs/2106.04560, Table 2, 1011 and 1843 million without the head. All
# are counted by timm with 1000 classes.
GIANTS = {
    "vit_giant_patch14_224": 1_012_611_432,
    "vit_gigantic_patch14_224": 1_844_440_680,
    "vit_small_patch16_36x1_224": 64_665_448,
    "mixer_s16_224": 18_528_264,
    "gmlp_b16_224": 73_075_392,
    "vit_base_r26_s32_224": 101_383_976,
}


@pytest.mark.parametrize("name", GIANTS)
def test_architectures_without_public_weights_build(name):
    assert built(layouts.from_architecture(name)) == GIANTS[name]


def test_an_architecture_is_a_preset_without_weights():
    model = keras_vit.from_preset("vit_tiny_patch16_160", load_weights=False, num_classes=3)
    assert model.input_shape == (None, 160, 160, 3) and model.output_shape == (None, 3)
    with pytest.raises(ValueError, match="vit_tiny_patch16_224.augreg_in21k_ft_in1k"):
        keras_vit.from_preset("vit_tiny_patch16_160")


@pytest.mark.parametrize(
    "tag, data",
    [
        ("augreg_in21k_ft_in1k", "in21k, in1k"),
        ("in22k_ft_in22k_in1k", "in22k, in1k"),
        ("laion2b_ft_in12k_in1k", "laion2b, in12k, in1k"),
        ("metaclip_2pt5b", "metaclip_2pt5b"),
        ("apple_mclip2_dfndr2b", "dfndr2b"),
        ("dfn2b_s39b", "dfn2b"),
        ("tinyclip_yfcc15m", "yfcc15m"),
        ("pali2_3b_docci", "docci"),
        ("v2_webli", "webli"),
        ("lvd142m", "lvd142m"),
        ("openai", "openai"),
        ("mim_m38m_ft_in22k_in1k", "m38m, in22k, in1k"),
        ("merged2b", "merged2b"),
        ("sat493m", "sat493m"),
        ("datacompxl", "datacompxl"),
        ("mae", ""),
        ("c_radio", ""),
    ],
)
def test_the_tag_says_the_training_data(tag, data):
    names = [name for name in ROWS if name.endswith(f".{tag}")]
    assert names and {ROWS[name].trained_on for name in names} == {data}
    untagged = dataclasses.replace(ROWS[names[0]], name="vit_webli_in1k")
    assert untagged.trained_on == ""


# Tags that name no pictures: a recipe's, a method's or a teacher's name.
SILENT = {
    "apple_pt", "apple_pt_dist", "c_radio", "dino", "fb", "fb_dino", "fb_tiling", "fcmae",
    "indomain_pt", "mae", "ogvl_2pt5", "ogvl_dist", "pali2_10b_pt", "pali2_3b_pt", "pali_mix",
    "pali_pt", "pt", "robbyant",
}  # fmt: skip


def test_every_other_tag_names_its_training_data():
    silent = {name.partition(".")[2] for name, row in ROWS.items() if not row.trained_on}
    assert silent == SILENT


def test_names_are_unique():
    tables = presets.families().values()
    assert sum(len(table.checkpoints) for table in tables) == len(ROWS)
    assert not set(presets.unsupported()) & set(ROWS)
    architectures = [name for table in tables for name in table.architectures]
    assert len(set(architectures)) == len(architectures)


@pytest.mark.parametrize("family", presets.families())
def test_every_size_structure_and_norm_is_used(family):
    table = presets.families()[family].table
    rows = table["architectures"].values()
    sizes = {row["size"] for row in rows if "size" in row}
    assert sizes == set(table.get("sizes", {}))
    structures = {row["structure"] for row in rows if "structure" in row}
    assert structures == set(table.get("structures", {}))
    assert {row["norm"] for row in table["checkpoints"].values()} == set(table["norms"])


def test_every_checkpoints_architecture_is_in_its_table():
    for name, row in ROWS.items():
        assert row.architecture in presets.families()[row.family].architectures, name


@pytest.mark.parametrize("name", keras_vit.list_presets())
def test_timms_name_of_the_architecture_leads_to_the_row(name):
    row = ROWS[name]
    family, options = presets.architecture(name.split(".")[0])
    assert (family, {**options, "image_size": row.image_size}) == (row.family, row.options)


@pytest.fixture(scope="module")
def catalogue(shared):
    """The checkpoints of timm's modules that the tables cover, by name."""
    rows = json.loads((shared / "catalogue/checkpoints.json").read_text())
    modules = {family.timm_module for family in presets.families().values()}
    return {row["name"]: row for row in rows if row["module"] in modules}


def test_every_checkpoint_of_the_catalogue_has_a_row_or_a_reason(catalogue):
    assert set(catalogue) <= set(ROWS) | set(presets.unsupported())
    assert set(presets.unsupported()) <= set(catalogue)


def test_rows_say_what_the_catalogue_says(catalogue):
    for name in catalogue.keys() & ROWS.keys():
        row, info = catalogue[name], keras_vit.preset_info(name)
        assert row["input_size"] == [3, info["image_size"], info["image_size"]], name
        wanted = {
            "source": row["hf_hub_id"],
            "license": row["license"] or "unknown",
            **{k: row[k] and round(row[k], 2) for k in ("top1", "top5")},
            **{k: row[k] for k in ("num_classes", "params", "mean", "std", "interpolation")},
            **{k: row[k] for k in ("crop_pct", "crop_mode")},
        }
        assert {k: info[k] for k in wanted} == wanted, name


def test_hyper_parameters_are_those_of_the_catalogue(shared, catalogue):
    known = json.loads((shared / "catalogue/architectures.json").read_text())
    same = ("embed_dim", "depth", "num_heads", "patch_size", "class_token", "qkv_bias")
    activations = {"gelu": "GELU", "gelu_tanh": "GELUTanh", "quick_gelu": "QuickGELU"}
    for name in [n for n in catalogue if n in ROWS and ROWS[n].family in ("vit", "deit")]:
        spec = layouts.from_checkpoint(ROWS[name], None)
        arch = known[catalogue[name]["architecture"]]["arch"]
        options = {"class_token": True, "qkv_bias": True, **spec.backbone}
        assert {k: options[k] for k in same} == {k: arch[k] for k in same}, name
        assert options.get("norm_eps", 1e-6) == arch["norm_eps"], name
        assert spec.head.get("pooling", "token") == arch["global_pool"], name
        activation = options.get("activation", "gelu")
        assert activations.get(activation, "SiLU") == arch["act"], name
