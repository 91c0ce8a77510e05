"""pyarrow, which is imported where a Parquet file is read or written."""

from typing import Any


def pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            'Parquet files need pyarrow: pip install "keras-vit-zoo[scale]"'
        ) from None
    return pyarrow, pyarrow.parquet
