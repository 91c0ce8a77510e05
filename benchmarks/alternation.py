"""Time programs in alternation: each in its own process, paused while the others run.

A worker prepares, warms up and calls `serve(run)`; the parent calls `alternate`.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time

THREADS = 2
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": str(THREADS)}


def serve(run):
    """In a worker: run once for each line of stdin, and print the time in seconds."""
    print("READY", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print("TOOK", time.perf_counter() - start, flush=True)


def alternate(commands, rounds):
    """Time each program in seconds, taking turns.

    Args:
        commands: {name: the arguments of its worker, a Python program}.
        rounds: how often each program runs.

    Returns:
        {name: [seconds, ...]}
    """
    workers, times = {}, {name: [] for name in commands}
    with contextlib.ExitStack() as stack:
        for name, command in commands.items():
            workers[name] = stack.enter_context(_Worker(command))
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name].append(worker.once())
    return times


class _Worker:
    def __init__(self, command):
        environment = {**os.environ, **QUIET}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._read("READY")
        self.process.send_signal(signal.SIGSTOP)

    def _read(self, word):
        for line in self.process.stdout:
            if line.startswith(word):
                return line[len(word) :].strip()
        sys.exit(f"{self.process.args} ended with status {self.process.wait()}")

    def once(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds = float(self._read("TOOK"))
        self.process.send_signal(signal.SIGSTOP)
        return seconds

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def medians(times):
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def table(times, base, columns=()):
    """The medians as Markdown; `base(name)`: the program that the last column compares with."""
    median_of = medians(times)
    yield "| program | " + "".join(f"{title} | " for title, _ in columns) + "ms | relative time |"
    yield "|---|" + "--:|" * (len(columns) + 2)
    for name, median in median_of.items():
        cells = "".join(f"{values[name]} | " for _, values in columns)
        other = base(name)
        ratio = f"{median / median_of[other]:.2f}" if other else ""
        yield f"| {name} | {cells}{median * 1e3:.1f} | {ratio} |"
