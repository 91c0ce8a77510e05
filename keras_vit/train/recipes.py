"""The papers' recipes, one row each."""

import dataclasses

MANY_PICTURES, MANY_EPOCHS = 10_000, 20  # from here on, `"finetune"` mixes pictures and labels


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a paper trains with.

    Attributes:
        source: where the numbers stand.
        rate: the peak learning rate for `rate_batch` pictures per step; it is proportional to the
            batch size. None: 0.06 / width of the model at any batch size.
        weight_decay, layer_decay, clip_norm, ema, beta_2, kind: as in `train.optimizer`.
        warmup: the part of the steps in which the rate rises, from `start`; it ends at `end`.
        scale: as in `Augmentation`; `"margin"`: a random cut of the view that the model sees, with
            1/14 of its size around it.
        flip, rand_augment, three, jitter: as in `Augmentation`.
        erasing: the probability of random erasing.
        mixup, cutmix: as in `mix`.
        smoothing: of the labels.
        repeats: how often each picture of a batch is in it, with other views (repeated
            augmentation, https://arxiv.org/abs/1901.09335).
        binary: binary cross-entropy, for labels that are 1 wherever a mixture has a part.
        drop_path: stochastic depth that the recipe is meant for. It is an argument of
            `from_preset`, since the model's own layers do it.
    """

    source: str
    rate: float | None = None
    rate_batch: int = 1
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    clip_norm: float | None = 1.0
    ema: float | None = None
    beta_2: float = 0.999
    kind: str = "adamw"
    warmup: float = 0.1
    start: float = 0.0
    end: float = 0.0
    scale: tuple[float, float] | str | None = (0.08, 1.0)
    flip: float = 0.5
    rand_augment: str = ""
    three: bool = False
    jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    repeats: int = 1
    binary: bool = False
    drop_path: float = 0.0

    @property
    def soft(self) -> bool:
        """Whether the labels are distributions over the classes."""
        return bool(self.mixup or self.cutmix or self.smoothing or self.binary)


RECIPES = {
    "finetune": Recipe(
        source="ours: fewer than 10000 pictures or 20 epochs",
        scale="margin",
    ),
    "finetune_long": Recipe(
        source="ours: many pictures and epochs; the augmentation of AugReg's medium1, section 3.2 "
        "of https://arxiv.org/abs/2106.10270, with layer decay 0.75 of https://arxiv.org/abs/"
        "2111.06377, table 9",
        layer_decay=0.75,
        rand_augment="rand-m9-mstd0.5-inc1",
        mixup=0.2,
        cutmix=1.0,
        smoothing=0.1,
    ),
    # 300 epochs; warm-up 5 of them. deit/main.py, table 9 of the paper.
    "deit": Recipe(
        source="https://arxiv.org/abs/2012.12877, table 9",
        rate=5e-4,
        rate_batch=512,
        clip_norm=None,
        warmup=5 / 300,
        start=1e-6,
        end=1e-5,
        rand_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
        repeats=3,
        drop_path=0.1,
    ),
    # 800 epochs. The paper has LAMB with 4e-3 at 2048; here it is AdamW with DeiT's rate.
    "deit3": Recipe(
        source="https://arxiv.org/abs/2204.07118, table 1; AdamW in place of LAMB",
        rate=5e-4,
        rate_batch=512,
        warmup=5 / 800,
        start=1e-6,
        end=1e-6,
        three=True,
        jitter=0.3,
        mixup=0.8,
        cutmix=1.0,
        repeats=3,
        binary=True,
        drop_path=0.05,
    ),
    # 300 epochs; 10 000 steps of warm-up of about 93 600. Decay 0.1 = 1e-4 / 1e-3: big_vision's wd
    # is the product with the rate. RandAugment is timm's with big_vision's n and m; big_vision's
    # own set has Cutout, too.
    "augreg_light1": Recipe(
        source="https://arxiv.org/abs/2106.10270, section 3.2; big_vision/configs/vit_i1k.py",
        rate=1e-3,
        rate_batch=4096,
        weight_decay=0.1,
        rand_augment="rand-m0-n2-mmax30",
    ),
    "augreg_medium1": Recipe(
        source="https://arxiv.org/abs/2106.10270, section 3.2; big_vision/configs/vit_i1k.py",
        rate=1e-3,
        rate_batch=4096,
        weight_decay=0.1,
        rand_augment="rand-m15-n2-mmax30",
        mixup=0.2,
    ),
    # ViT-B: 100 epochs, 5 of them warm-up. ViT-L and H: rate 1e-3, layer decay 0.75.
    "mae_finetune": Recipe(
        source="https://arxiv.org/abs/2111.06377, table 9; mae/FINETUNE.md",
        rate=5e-4,
        rate_batch=256,
        layer_decay=0.65,
        clip_norm=None,
        warmup=0.05,
        end=1e-6,
        rand_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
        drop_path=0.1,
    ),
    # From 384 pixels on the paper resizes to 448 and cuts 384 out; here it is the margin of 8/7.
    "vit_transfer": Recipe(
        source="https://arxiv.org/abs/2010.11929, table 4; big_vision/configs/transfer.py",
        rate=3e-3,
        rate_batch=512,
        weight_decay=0.0,
        kind="sgd",
        scale="margin",
    ),
    # Pre-training without labels. 800 epochs, 40 of them warm-up.
    "mae": Recipe(
        source="https://arxiv.org/abs/2111.06377, table 8; mae/PRETRAIN.md",
        rate=1.5e-4,
        rate_batch=256,
        clip_norm=None,
        beta_2=0.95,
        warmup=40 / 800,
        scale=(0.2, 1.0),
    ),
    # 800 epochs, 10 of them warm-up; the paper then lowers the rate once, at 700. Here: a cosine.
    "simmim": Recipe(
        source="https://arxiv.org/abs/2111.09886, appendix A; configs/vit_base__800ep",
        rate=1e-4,
        rate_batch=512,
        clip_norm=5.0,
        warmup=10 / 800,
        scale=(0.67, 1.0),
    ),
    # 1M steps, of which 10 000 warm-up; no decay.
    "masked_patches": Recipe(
        source="https://arxiv.org/abs/2010.11929, appendix B.1.2",
        rate=2e-4,
        rate_batch=4096,
        weight_decay=0.0,
        warmup=0.01,
    ),
}


def recipe(name: str | Recipe, pictures: int = 0, epochs: int = 0) -> Recipe:
    """A row by its name, or that of one's own: `dataclasses.replace(RECIPES["deit"], erasing=0)`.

    `"finetune"` with 10 000 pictures and 20 epochs or more is `"finetune_long"`.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}. Received: {name!r}")
    if name == "finetune" and pictures >= MANY_PICTURES and epochs >= MANY_EPOCHS:
        name = "finetune_long"
    return RECIPES[name]
