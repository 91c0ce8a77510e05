"""config.json of a repository or directory, in any of the layouts."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from keras_vit import checks
from keras_vit.hub import CONFIG, MissingFile, Repository
from keras_vit.layouts import kerashub, peft, saved, timm, transformers
from keras_vit.layouts.spec import Spec
from keras_vit.text import printable
from keras_vit.weights import Tensor


def from_repository(repository: Repository) -> Spec:
    """The spec that a repository's config.json describes, in the layout of timm, transformers,
    KerasHub or this package; or PEFT's adapter_config.json.

    Raises:
        ValueError: an unknown layout, or an architecture that is not supported.
    """
    try:
        config = repository.json(CONFIG)
    except MissingFile:
        adapter = _adapter(repository)
        if adapter is None:
            raise
        return peft.spec_of_adapter(adapter, functools.partial(_of_base, adapter))
    spec = _read(config, repository)
    spec.otherwise = functools.partial(_with_adapter, spec, repository)
    return spec


def _of_base(adapter: peft.Adapter, base: Repository) -> Spec:
    """The spec of an adapter's base, with the adapter's preprocessing where it has its own."""
    return _read(base.json(CONFIG), base, (adapter.repository,))


def _with_adapter(spec: Spec, repository: Repository) -> dict[str, Tensor] | None:
    """The tensors of a repository that has a config.json, but no weights except an adapter's."""
    adapter = _adapter(repository)
    return None if adapter is None else peft.merged(adapter, spec.of(adapter.base)).tensors()


def _adapter(repository):
    with _naming(peft.CONFIG, repository, "describes no adapter that can be loaded"):
        return peft.find(repository)


def _read(
    config: dict[str, Any], repository: Repository, processors: tuple[Repository, ...] = ()
) -> Spec:
    layout: dict[str, Callable[..., Spec]] = {
        "architecture": timm.read_config,
        "model_type": functools.partial(transformers.read_config, processors=processors),
        "registered_name": kerashub.read_config
        if kerashub.is_preset(config)
        else saved.read_config,
    }
    with _naming(CONFIG, repository, "describes no model"):
        for field, read in layout.items():
            if field in config:
                return read(config, repository)
    fields = printable(", ".join(list(config)[:12]))
    raise ValueError(
        f"{CONFIG} of {repository} has none of the supported layouts: timm's has `architecture`, "
        "transformers' has `model_type`, Keras' has `registered_name`. "
        f"Its fields: {fields or 'nothing'}."
    )


@contextlib.contextmanager
def _naming(name, repository, what):
    """Let errors of values name their file."""
    try:
        yield
    except checks.WrongValue as error:
        raise ValueError(f"{name} of {repository} {what}: {error}") from error
    except KeyError as error:
        raise ValueError(f"{name} of {repository} has no field {error}.") from error
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{name} of {repository} has a field of the wrong type: {error}"
        ) from error
