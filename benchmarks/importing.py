"""The cost of `import keras_vit`, compared with `import keras_hub`, which it depends on.

    python benchmarks/importing.py [--runs 9]

Each run is its own process, in alternation. Reported are CPU time, which other work on the machine
affects little, and peak memory. The first run of each is not counted.
"""

import argparse

import common

MEASURE = """
import resource
used = resource.getrusage(resource.RUSAGE_SELF)
print("RESULT", used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    programs = {name: f"import {name}{MEASURE}" for name in ("keras_hub", "keras_vit")}
    found = common.medians(programs, parser.parse_args().runs)
    base = found["keras_hub"]
    print("| import | CPU seconds | vs keras_hub | MiB | vs keras_hub |")
    print("|---|--:|--:|--:|--:|")
    for name, (seconds, memory) in found.items():
        print(
            f"| {name} | {seconds:.2f} | {seconds / base[0]:.3f} | {memory:.0f} | "
            f"{memory / base[1]:.3f} |"
        )


if __name__ == "__main__":
    main()
