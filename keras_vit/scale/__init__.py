"""Many pictures: their embeddings as Parquet files, on one machine or many, and search in them."""

from keras_vit.scale.embedding import Embedded, embed
from keras_vit.scale.nearest import Match, search, sheet
from keras_vit.scale.shards import Manifest, Row, Shards, embeddings
from keras_vit.scale.sources import Picture, find

__all__ = [
    "Embedded",
    "Manifest",
    "Match",
    "Picture",
    "Row",
    "Shards",
    "embed",
    "embeddings",
    "find",
    "search",
    "sheet",
]
