"""LiteRT's options of XNNPACK for exported files: the flag FORCE_FP16 and the weight cache.

    python benchmarks/litert.py MODEL [--runs N]

MODEL: a directory or name for `from_preset`. One thread, batch size 1, medians; the start is the
time until the file is ready to run, without and with the weight cache. Needs ai-edge-litert.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

FORCE_FP16 = 4  # XNN_FLAG_FORCE_FP16_INFERENCE


def milliseconds(path, flags, runs):
    import numpy as np
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.cpu_options import CpuOptions
    from ai_edge_litert.options import Options

    from keras_vit.export.files import open_file

    options = Options(cpu_options=CpuOptions(num_threads=1, xnnpack_flags=flags))
    model = CompiledModel.from_file(str(path), options=options)
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    file = open_file(path, 1)
    ((dtype, shape),) = file.inputs.values()
    ((_, result),) = file.outputs.values()
    inputs[0].write(np.random.default_rng(0).integers(0, 256, shape).astype(dtype))
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        model.run_by_index(0, inputs, outputs)
        outputs[0].read(result[1], np.float32)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]) * 1e3


def main():
    import keras_vit
    from keras_vit.export import runtime

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    model = keras_vit.from_preset(options.model)
    print("| file | ms | ms with FORCE_FP16 | start, ms | start with weight cache, ms |")
    print("|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for mode in (None, "int8_dynamic"):
            path = pathlib.Path(folder) / f"{mode}.tflite"
            keras_vit.export.to_tflite(model, path, quantize=mode)
            cells = [milliseconds(path, flags, options.runs) for flags in (None, FORCE_FP16)]
            starts = [runtime.starts(path, 1) for _ in range(5)]
            cells += [statistics.median(way) * 1e3 for way in zip(*starts, strict=True)]
            print(f"| {mode or 'float32'} | " + " | ".join(f"{x:.1f}" for x in cells) + " |")


if __name__ == "__main__":
    main()
