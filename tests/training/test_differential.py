"""Random networks, plans and data train alike with the cache, without it, and by hand.

`make fuzz` trains many more of these cases; `python benchmarks/fuzz.py --case N` shows one.
"""

import fuzz  # benchmarks/fuzz.py
import keras
import numpy as np
import pytest

PARTS, EACH = 12, 25


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="compiles for minutes on JAX")
@pytest.mark.parametrize("part", range(PARTS))
def test_cases_train_alike(part):
    rows = fuzz.several(range(part * EACH, (part + 1) * EACH))
    assert not {row["case"]: row["failed"] for row in rows if row["failed"]}
    assert sum(row["cached"] > 0 for row in rows) >= 0.3 * EACH
    assert sum(bool(row["refused"]) for row in rows) <= 0.1 * EACH


@pytest.mark.parametrize(
    ("weight", "loss", "stages", "error"),
    [(1.01, 1.0, 1, ""), (1.0, 1.01, 1, ""), (1.0, 1.0, 2, ""), (1.0, 1.0, 1, "ValueError")],
)
def test_a_weight_a_loss_a_stage_or_an_error_that_differs_is_seen(weight, loss, stages, error):
    def outcome(weight, loss, stages, error):
        moved = [np.array([weight], "float32")]
        return fuzz.Outcome([np.zeros(1, "float32")], moved, {"loss": [loss]}, [stages], [], error)

    same = outcome(1.0, 1.0, 1, "")
    assert fuzz.unlike("", same, outcome(weight, loss, stages, error), fuzz.ROUNDING)
    assert not fuzz.unlike("", same, outcome(1.0, 1.0, 1, ""), 0.0)
