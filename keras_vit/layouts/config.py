"""config.json of a repository or directory, in whichever layout it is."""

from keras_vit import checks
from keras_vit.hub import CONFIG
from keras_vit.layouts import kerashub, timm, transformers


def from_repository(repository):
    """The spec that a repository's config.json describes, in the layout of timm, transformers or
    KerasHub.

    Raises:
        ValueError: another layout, or an architecture that is not supported.
    """
    config = repository.json(CONFIG)
    layout = {
        "architecture": timm.read,
        "model_type": transformers.read,
        "registered_name": kerashub.read,
    }
    try:
        for field, read in layout.items():
            if field in config:
                return read(config, repository)
    except checks.WrongValue as error:
        raise ValueError(f"{CONFIG} of {repository} describes no model: {error}") from error
    except KeyError as error:
        raise ValueError(f"{CONFIG} of {repository} has no field {error}.") from error
    except (TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{CONFIG} of {repository} has a field of the wrong kind: {error}"
        ) from error
    raise ValueError(
        f"{CONFIG} of {repository} is of no layout that is read here: timm's has `architecture`, "
        "transformers' has `model_type`, Keras' has `registered_name`. "
        f"Found: {', '.join(list(config)[:12]) or 'nothing'}."
    )
