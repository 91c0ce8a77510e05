"""Rate, memory and use of `keras_vit.scale.embed`, and what a billion pictures would take.

    python benchmarks/embedding.py flowers.tar DEIT_TINY [--pictures 2000] [--workers 2] [--price 1]

Each measurement is a process of its own: the model alone, on pixels that are ready; decoding alone;
`embed` in one process; `embed` on Ray. The first two bound the third: where model and decoding
share the processors, no overlap is faster than 1 / (1 / model + 1 / decoding) unless the model
leaves some idle. The classes for the nearest neighbours are the names of the folders. Memory is the
peak of the process, for Ray the sum over its workers.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

START = """
import json, os, pathlib, resource, sys, time
os.environ["RAY_worker_niceness"] = "0"  # as this process has
import keras_vit
from keras_vit import scale
from keras_vit.scale import reading, sources
from keras_vit.scale.outputs import Output

def peak(who=resource.RUSAGE_SELF):
    return resource.getrusage(who).ru_maxrss / 1024

def workers_of_ray():
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                yield place
        except OSError:
            pass

def resident(place):
    line = next(x for x in (place / "status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

if __name__ == "__main__":
    source, preset, count, workers, out, batch = json.loads(sys.argv[1])
    pictures = sources.find(source).pictures
    step = max(1, len(pictures) // count)
    pictures = pictures[::step][:count]
    model = keras_vit.from_preset(preset)
    output = Output(model, "features", batch)
    threads = reading.processors()
"""
MODEL = """
    import numpy as np
    x = np.zeros((*output.converter.image_size, len(output.converter.mean)), "float32")
    output([x] * batch)
    start = time.perf_counter()
    for _ in range(-(-count // batch)):
        output([x] * batch)
    rate = -(-count // batch) * batch / (time.perf_counter() - start)
    print("RESULT", rate, peak())
"""
DECODING = """
    start = time.perf_counter()
    for _ in reading.decoded(pictures, output.converter, threads, 4 * threads):
        pass
    rate = len(pictures) / (time.perf_counter() - start)
    print("RESULT", rate, peak(), sum(len(p.read()) for p in pictures) / len(pictures), threads)
"""
EMBED = """
    from unittest import mock
    from keras_vit.scale import embedding
    found = sources.Pictures(pictures, "")
    moments, memory = [], [0]
    def progress(items, total):
        for item in items:
            moments.append((time.perf_counter(), item.rows))
            memory.append(sum(map(resident, workers_of_ray())))
            yield item
    with mock.patch.object(embedding, "find", lambda *_: found):
        scale.embed(model, source, out, batch_size=batch, workers=workers, part_size=2 * batch,
            name=preset, progress=progress)
    # After the first part: the start of the model, and of Ray, is not a rate.
    rows = sum(n for _, n in moments[1:])
    seconds = moments[-1][0] - moments[0][0]
    print("RESULT", rows / seconds if seconds else float("nan"), max(memory) or peak())
"""


def measured(code, settings):
    """The numbers that a program prints."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(START + code)
        file.flush()
        done = subprocess.run(
            [sys.executable, file.name, json.dumps(settings)], capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT"))
    return [float(word) for word in line.split()[1:]]


def accuracy(out):
    """Of the 20 nearest neighbours, every second picture being a query."""
    from keras_vit.scale import embeddings
    from keras_vit.train.probing import neighbours

    read = [embeddings(part) for part in sorted(out.glob("part-*.parquet"))]
    x = np.concatenate([vectors for _, vectors in read])
    names = [path.split("/")[-2] for paths, _ in read for path in paths]
    labels = np.unique(names, return_inverse=True)[1]
    found = neighbours(x[::2], labels[::2], x[1::2])
    return (found == labels[1::2]).mean(), len(x)


def stored(out):
    """Bytes per row of one large file; those of this benchmark are small."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])
    pq.write_table(rows, out / "whole.parquet", compression="zstd")
    return (out / "whole.parquet").stat().st_size / rows.num_rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("preset")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2, help="of Ray; 0: without Ray")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--price", type=float, default=1.0, help="of such a machine, per hour")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)

        def run(code, workers=None, name="none"):
            settings = [args.source, args.preset, args.pictures, workers, str(out / name)]
            return measured(code, [*settings, args.batch_size])

        model, memory = run(MODEL)
        decoding, _, size, threads = run(DECODING)
        print(f"model alone         {model:8.1f} pictures/s {memory:6.0f} MiB")
        print(f"decoding, {threads:.0f} threads {decoding:8.1f} pictures/s")
        one, memory = run(EMBED, name="one")
        print(f"embed, one process  {one:8.1f} pictures/s {memory:6.0f} MiB  {one / model:.2f}")
        bound = 1 / (1 / model + 1 / decoding)
        print(f"  of the rate that model and decoding allow one after the other: {one / bound:.2f}")
        if args.workers:
            ray, memory = run(EMBED, args.workers, "ray")
            name = f"embed on Ray, {args.workers}"
            print(f"{name:19} {ray:8.1f} pictures/s {memory:6.0f} MiB  {ray / model:.2f}")
        share, rows = accuracy(out / "one")
        row = stored(out / "one")
        print(f"{rows} rows; nearest neighbours are right for {share:.1%} of the odd half")
    print("\nA billion pictures, at the rate of one process:")
    print(f"  machine-hours  {1e9 / one / 3600:12,.0f}")
    print(
        f"  per million    {1e6 / one / 3600:12.2f} hours, cost {1e6 / one / 3600 * args.price:.2f}"
    )
    print(f"  Parquet        {row * 1e9 / 1e12:12.2f} TB at {row:.0f} bytes per row")
    print(f"  to read        {size * 1e9 / 1e12:12.2f} TB at {size:.0f} bytes per picture")
    print(f"  network        {one * size * 8 / 1e6:12.2f} Mbit/s into each machine")


if __name__ == "__main__":
    main()
