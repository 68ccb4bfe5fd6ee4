"""What becomes of saved models in a fresh process: `python reloaded.py FOLDER [plan]`.

Each FOLDER/NAME.keras has a NAME.npz beside it, which says what it must be. Prints a JSON object
from names to what was found. With "plan" tlkeras is imported, and the plan trained once more.
Nothing is compiled, which would take the longest by far.
"""

import json
import re
import sys
import warnings
from pathlib import Path

import keras
import keras_hub  # noqa: F401  (its networks are found through their registration)
import numpy as np


def learning(model):
    """Which of the model's weights learn."""
    ids = {id(weight) for weight in model.trainable_variables}
    return [id(weight) in ids for weight in model.weights]


def state(model):
    return [keras.ops.convert_to_numpy(weight).copy() for weight in model.weights]


def trained(model, x, y, **options):
    """Numbers of the weights that an epoch of plain `fit` changes."""
    before = state(model)
    model.fit(x, y, batch_size=4, verbose=0, **options)
    pairs = zip(before, state(model), strict=True)
    return {number for number, (old, new) in enumerate(pairs) if old.tobytes() != new.tobytes()}


def unpacked(arrays):
    names = sorted(name for name in arrays.files if name.startswith("x"))
    x = {name[2:]: arrays[name] for name in names}
    return x[""] if list(x) == [""] else x, arrays["y"]


def found(path, with_tlkeras):
    told = np.load(path.with_suffix(".npz"))
    (x, y), unsaved = unpacked(told), str(told["unsaved"])
    call = re.search(r"tlk\.freeze\(.*\)(?=, and compile)", unsaved)
    plain = not call and (with_tlkeras or "compile=False" not in unsaved)
    model = keras.saving.load_model(path, compile=plain)
    if not np.allclose(model(x, training=False), told["predicted"], rtol=1e-4, atol=1e-5):
        return "predicts something else"
    kept = learning(model) == told["learning"].tolist()
    if with_tlkeras and call:
        import tlkeras as tlk

        eval(call[0], {"tlk": tlk, "model": model})
        if learning(model) != told["learning"].tolist():
            return f"{call[0]} does not put it back"
    elif not call and not kept:
        return "other weights learn, and it was not said"
    if call and not with_tlkeras:
        return "said"
    if plain:
        same = [np.array_equal(v, told[f"o{i}"]) for i, v in enumerate(model.optimizer.variables)]
        if not same or not all(same):
            return "another optimizer"
        model.run_eagerly = True
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, run_eagerly=True)
    moved = trained(model, x, y)
    if not moved:
        return "nothing learns"
    if moved & set(told["held"].tolist()):
        return "what was frozen moved"
    if with_tlkeras:
        import tlkeras as tlk

        plan = tlk.Plan.from_dict(json.loads(str(told["plan"])))
        tlk.fit_stages(model, plan, (x, y), batch_size=4, verbose=0)
        if learning(model) != told["learning"].tolist():
            return "the plan opens other weights than before"
    return "said" if call else "exact"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    keras.utils.set_random_seed(0)
    with_tlkeras = sys.argv[2:] == ["plan"]
    if with_tlkeras:
        import tlkeras  # noqa: F401
    results = {}
    for path in sorted(Path(sys.argv[1]).glob("*.keras")):
        try:
            results[path.stem] = found(path, with_tlkeras)
        except Exception as error:
            results[path.stem] = f"{type(error).__name__}: {error}"
    assert ("tlkeras" in sys.modules) == with_tlkeras
    print(json.dumps(results))
