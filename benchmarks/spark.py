"""Embed a folder of pictures with Spark's `predict_batch_udf`, as docs/scale.md shows it.

    python benchmarks/spark.py FOLDER OUT [--preset NAME]

It needs pyspark and Java. Two local workers write Parquet; the first rows are compared with the
model's own `predict`.
"""

import argparse
import io
import os
import sys
import time

import numpy as np
from PIL import Image

import keras_vit


def maker(preset):
    """The function that Spark calls once in each Python worker."""

    def make_predict():
        import keras_vit

        model = keras_vit.from_preset(preset, num_classes=0)

        def predict(contents):
            pictures = [Image.open(io.BytesIO(data)) for data in contents]
            return model.predict(pictures, verbose=0)

        return predict

    return make_predict


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--preset", default="vit_digits_patch4_32.sklearn")
    args = parser.parse_args()
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import ArrayType, FloatType

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = SparkSession.builder.master("local[2]").getOrCreate()
    embed = predict_batch_udf(maker(args.preset), return_type=ArrayType(FloatType()), batch_size=32)
    pictures = spark.read.format("binaryFile").option("recursiveFileLookup", True)
    start = time.perf_counter()
    rows = pictures.load(args.folder).select("path", embed("content").alias("embedding"))
    rows.write.parquet(args.out)
    seconds = time.perf_counter() - start
    written = spark.read.parquet(args.out)
    some = written.limit(8).collect()
    paths = [row.path.removeprefix("file:") for row in some]
    expected = keras_vit.from_preset(args.preset, num_classes=0).predict(paths, verbose=0)
    difference = np.abs(np.array([row.embedding for row in some]) - expected).max()
    print(f"{written.count()} rows in {seconds:.0f} s; largest difference {difference:.1e}")
    spark.stop()


if __name__ == "__main__":
    main()
