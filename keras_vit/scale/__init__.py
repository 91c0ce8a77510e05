"""Many pictures: their embeddings as Parquet files, on one machine or many, and search in them."""

from keras_vit.scale.embedding import Embedded, embed
from keras_vit.scale.nearest import Match, search, sheet
from keras_vit.scale.shards import embeddings
from keras_vit.scale.sources import Picture, find

__all__ = [
    "Embedded",
    "Match",
    "Picture",
    "embed",
    "embeddings",
    "find",
    "search",
    "sheet",
]
