"""The version of the distribution."""

from importlib import metadata

try:
    __version__ = metadata.version("keras-vit-zoo")
except metadata.PackageNotFoundError:  # a checkout that was not installed
    __version__ = "unknown"
