"""`import tlkeras` is lazy: it costs next to nothing beyond `import keras`."""

import subprocess
import sys

import keras
import pytest
from small import small_backbone, with_head

import tlkeras as tlk

# A fresh Python, which loads Keras once for several tests; a line for each.
FRESH = """
import importlib, keras, pkgutil, sys, time
before, start = set(sys.modules), time.process_time()
import tlkeras
print(time.process_time() - start)
print({"tensorflow", "matplotlib", "sklearn"} & (set(sys.modules) - before))
print(repr(keras.models.load_model(sys.argv[1]).optimizer))
for module in list(pkgutil.walk_packages(tlkeras.__path__, "tlkeras.")):
    for name in [n for n in sys.modules if n.partition(".")[0] == "tlkeras"]:
        del sys.modules[name]
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("each module was imported first")
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model, rates = with_head(small_backbone()), {"head": 1.0, "*": 0.1}
    model.compile(tlk.optimizers.discriminative(keras.optimizers.Adam(), model, rates), "mse")
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    done = subprocess.run([sys.executable, "-c", FRESH, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_import_adds_at_most_a_tenth_of_a_second_to_keras(fresh):
    assert float(fresh[0]) <= 0.1
    assert fresh[1] == "set()"


def test_a_saved_learning_rate_per_block_loads_with_tlkeras_imported(fresh):
    assert "stem x 0.1" in fresh[2]


FIRST = {
    "tlkeras, then keras": "import tlkeras, keras",
    "one of ours that imports keras": "import tlkeras as tlk; tlk.find_blocks; import keras",
}


@pytest.mark.parametrize("start", FIRST.values(), ids=FIRST)
def test_it_loads_whatever_was_imported_first(start, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    optimizer = tlk.optimizers.discriminative(keras.optimizers.SGD(), model, {"*": 0.5})
    model.compile(optimizer, "mse")
    model.save(tmp_path / "model.keras")
    code = f"{start}, sys; print(type(keras.models.load_model(sys.argv[1]).optimizer).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model.keras"], capture_output=True, text=True
    )
    assert done.stdout == "DiscriminativeSGD\n", done.stderr


def test_any_module_can_be_imported_first(fresh):
    assert fresh[-1] == "each module was imported first"


def test_import_loads_neither_keras_nor_tensorflow():
    code = "import sys, tlkeras; print({'keras', 'tensorflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_every_public_name_is_there():
    assert set(tlk.__all__) == {*tlk._HOME, *tlk._MODULES} and set(tlk.__all__) <= set(dir(tlk))
    for name in tlk.__all__:
        assert getattr(tlk, name).__doc__, name
