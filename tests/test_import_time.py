"""`import tlkeras` is lazy: it costs next to nothing beyond `import keras`."""

import subprocess
import sys
from statistics import median

import tlkeras as tlk

TIMED = """
import keras, time, sys
before, start = set(sys.modules), time.perf_counter()
import tlkeras
print(time.perf_counter() - start)
print(*sorted(name for name in set(sys.modules) - before if name.startswith("tlkeras")))
"""


def test_import_adds_at_most_a_tenth_of_a_second_to_keras():
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True)
        took, loaded = done.stdout.splitlines()
        seconds.append(float(took))
        assert loaded == "tlkeras tlkeras.quiet"
    assert median(seconds) <= 0.1


def test_import_loads_neither_keras_nor_tensorflow():
    code = "import sys, tlkeras; print({'keras', 'tensorflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_every_public_name_is_there():
    assert set(tlk.__all__) == {*tlk._HOME, *tlk._MODULES} and set(tlk.__all__) <= set(dir(tlk))
    for name in tlk.__all__:
        assert getattr(tlk, name).__doc__, name
