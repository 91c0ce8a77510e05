"""Write Swin V2's goldens: see make_swin.py, which also makes those of transformers."""

import make_swin


def make(golden, architecture):
    """A golden of timm."""
    sizes = {"pretrained_window_sizes": (5, 3, 2)} if "pretrained" in golden else {}
    make_swin.make(golden, architecture, **sizes)


def others():
    """None."""
