"""How much memory training takes when the cached outputs are four times as large as the limit.

    python benchmarks/memory.py                  # limit of 64 MB, 256 MB cached
    python benchmarks/memory.py --limit 128

A head learns for three epochs on a frozen network whose outputs at the cut, 64 KB per image, cannot
be pooled. Images are generated batch by batch and take no memory. There are two separate processes:
one with `tlk.FeatureCache(limit=64 MB)`, so that the outputs go to a file, and one with a larger
limit, so that they fit in memory. Each first trains on a few images, so that memory used by
TensorFlow itself at the first `fit` is not counted. Growth is the peak of resident memory (VmHWM)
during `fit_stages` minus the resident memory before; it needs Linux. Exits with status 1 unless
growth stays below the limit with the file and exceeds it without. Results go to
benchmarks/results/memory.csv.
"""

import argparse
import json
import subprocess
import sys

from results import write

TIMES, BATCH, EPOCHS, SIDE, CHANNELS = 4, 32, 3, 32, 16
EACH = SIDE * SIDE * CHANNELS * 4  # bytes of the outputs for one image
MB = 2**20


def child(limit: int, count: int) -> dict:
    """Train on `count` images with this limit; return bytes of growth, and the cache's place."""
    import numpy as np

    import tlkeras as tlk

    import keras  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)

    class Images(keras.utils.PyDataset):
        """Images of noise, generated on every access and always the same."""

        def __init__(self, count):
            super().__init__()
            self.count = count

        def __len__(self):
            return self.count // BATCH

        def __getitem__(self, number):
            x = np.random.default_rng(number).normal(0, 1, (BATCH, SIDE, SIDE, 3))
            return x.astype("float32"), np.arange(BATCH) % 10

    def train(count, cache):
        keras.utils.set_random_seed(0)
        x = image = keras.Input((SIDE, SIDE, 3))
        for width in (8, CHANNELS):
            x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        backbone = keras.Model(image, x, name="backbone")
        image = keras.Input((SIDE, SIDE, 3))
        x = keras.layers.Flatten()(backbone(image))
        model = keras.Model(image, keras.layers.Dense(10)(x))
        plan = tlk.recipes.head_only(EPOCHS, 1e-4)
        before = _reset_peak()
        run = tlk.fit_stages(model, plan, Images(count), cache=cache, seed=0, verbose=0)
        return _status("VmHWM") - before, run.stages[0].cache

    train(2 * BATCH, tlk.FeatureCache(limit))
    growth, place = train(count, tlk.FeatureCache(limit))
    return {"growth": growth, "place": place}


def _reset_peak() -> int:
    """Reset the peak to the memory that is resident now, and return that."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """Return an entry of /proc/self/status in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024


def measure(limit: int, count: int) -> dict:
    command = [sys.executable, __file__, "--child", str(limit), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=64, help="MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    limit, outputs = options.limit, TIMES * options.limit
    rows = []
    for number in range(options.rounds):
        for who, given in (("on disk", limit), ("in memory", 100 * limit)):
            found = measure(given * MB, outputs * MB // EACH)
            growth = found["growth"] / MB
            rows.append(("memory", who, number, limit, outputs, growth))
            print(f"{who:10} limit {given:5} MB, outputs {outputs} MB, grew by {growth:.0f} MB",
                  flush=True)  # fmt: skip
            if not found["place"].endswith(who):
                sys.exit(f"Expected the outputs {who}, found: {found['place']}")
    header = ("bench", "who", "round", "limit_mb", "outputs_mb", "growth_mb")
    write("memory", header, rows, key="memory")
    most = max(row[5] for row in rows if row[1] == "on disk")
    least = min(row[5] for row in rows if row[1] == "in memory")
    print(f"limit {limit} MB: at most {most:.0f} MB with the file, at least {least:.0f} MB without")
    sys.exit(most >= limit or least <= limit)


if __name__ == "__main__":
    main()
