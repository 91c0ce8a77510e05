"""What `import keras_vit` costs beside `import keras_hub`, on which it stands.

    python benchmarks/importing.py [--runs 9]

Each run is a process of its own, in alternation; counted are its seconds of processor time (which
other work on the machine moves little) and its peak memory. The first of each is not counted.
"""

import argparse
import statistics
import subprocess
import sys

PROGRAMS = ("keras_hub", "keras_vit")


def run(name):
    """Seconds of processor time, and MiB, of a process that imports that package."""
    measure = "import resource; used = resource.getrusage(resource.RUSAGE_SELF); "
    show = "print('RESULT', used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    command = [sys.executable, "-c", f"import {name}; {measure}{show}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT"))
    return [float(word) for word in line.split()[1:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    results = {name: [] for name in PROGRAMS}
    for i in range(runs + 1):
        for name in PROGRAMS:
            found = run(name)
            if i:
                results[name].append(found)
    medians = {n: [statistics.median(c) for c in zip(*r, strict=True)] for n, r in results.items()}
    base = medians["keras_hub"]
    print("| import | seconds of processor time | of keras_hub's | MiB | of keras_hub's |")
    print("|---|--:|--:|--:|--:|")
    for name, (seconds, memory) in medians.items():
        print(
            f"| {name} | {seconds:.2f} | {seconds / base[0]:.3f} | {memory:.0f} | "
            f"{memory / base[1]:.3f} |"
        )


if __name__ == "__main__":
    main()
