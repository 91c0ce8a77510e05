"""Write keras_vit/models/__init__.pyi, for editors and type checkers.

    python scripts/stubs.py

At run time keras_vit/models/__init__.py finds the classes by the tables of presets/, and a
backbone's signature follows from its graph; tools that only read the code cannot do either.
"""

import inspect
import pathlib

import keras_vit_presets as presets
from keras_vit import models

PATH = pathlib.Path(models.__file__).with_suffix(".pyi")
HEAD = '''"""Every family's classes, for editors and type checkers; scripts/stubs.py writes it."""

import collections.abc
import typing
from typing import Any

'''


def stub() -> str:
    """The text of the file."""
    families = sorted(presets.families().values(), key=lambda family: family.name)
    lines = [f"from keras_vit.models import {f.name} as _{f.name}" for f in families]
    lines.append("from keras_vit.models.pyramid import SegFormerEncoder, SimplePyramid")
    for family in families:
        lines += ["", f"{family.cls} = _{family.name}.{family.cls}", ""]
        lines += backbone(family)
    names = "".join(f'    "{name}",\n' for name in models.__all__)
    return HEAD + "\n".join(lines) + f"\n\n__all__ = [\n{names}]\n"


def backbone(family: presets.Family) -> list[str]:
    """A backbone's class with its signature at run time."""
    name = f"{family.cls}Backbone"
    lines = [f"class {name}(_{family.name}.{name}):", "    def __init__("]
    lines[1:1] = docstring(getattr(models, name))
    lines += ["        self,", "        *,"]
    for parameter in inspect.signature(getattr(models, name)).parameters.values():
        text = f"{parameter.name}: {inspect.formatannotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {parameter.default!r}".replace("'", '"')
        lines.append(f"        {text},")
    return [*lines, "    ) -> None: ..."]


def docstring(cls: type) -> list[str]:
    """A class's docstring as lines of the stub."""
    text = inspect.getdoc(cls).splitlines()
    lines = [f'"""{text[0]}', *text[1:]]
    lines = [*lines[:-1], f'{lines[-1]}"""'] if len(text) == 1 else [*lines, '"""']
    return [f"    {line}".rstrip() for line in lines] + [""]


if __name__ == "__main__":
    PATH.write_text(stub(), "utf-8")
