"""`import tlkeras` is lazy: it costs next to nothing beyond `import keras`."""

import subprocess
import sys

import keras
from small import small_backbone, with_head

import tlkeras as tlk

TIMED = """
import keras, time, sys
before, start = set(sys.modules), time.process_time()
import tlkeras
print(time.process_time() - start)
print(*sorted({"tensorflow", "matplotlib", "sklearn"} & (set(sys.modules) - before)))
"""


def test_import_adds_at_most_a_tenth_of_a_second_to_keras():
    done = subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True)
    took, loaded = done.stdout.splitlines()
    assert float(took) <= 0.1 and not loaded


def test_import_loads_neither_keras_nor_tensorflow():
    code = "import sys, tlkeras; print({'keras', 'tensorflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"


EACH_FIRST = """
import importlib, keras, pkgutil, sys, tlkeras
for module in list(pkgutil.walk_packages(tlkeras.__path__, "tlkeras.")):
    for name in [n for n in sys.modules if n.partition(".")[0] == "tlkeras"]:
        del sys.modules[name]
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def test_any_module_can_be_imported_first():
    done = subprocess.run([sys.executable, "-c", EACH_FIRST], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_saved_learning_rate_per_block_loads_with_tlkeras_imported(tmp_path):
    keras.utils.set_random_seed(0)
    model = with_head(small_backbone())
    rates = {"head": 1.0, "*": 0.1}
    model.compile(tlk.optimizers.discriminative(keras.optimizers.Adam(), model, rates), "mse")
    model.save(tmp_path / "model.keras")
    code = "import sys, keras, tlkeras; print(keras.models.load_model(sys.argv[1]).optimizer)"
    path = tmp_path / "model.keras"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "stem x 0.1" in done.stdout, done.stderr


def test_every_public_name_is_there():
    assert set(tlk.__all__) == {*tlk._HOME, *tlk._MODULES} and set(tlk.__all__) <= set(dir(tlk))
    for name in tlk.__all__:
        assert getattr(tlk, name).__doc__, name
