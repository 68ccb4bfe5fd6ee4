import json

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

import tlkeras as tlk
from tlkeras.advice import auto as module
from tlkeras.advice.auto import beyond_chance
from tlkeras.advice.budget import seconds_of
from tlkeras.advice.probing import Probe


def letters():
    keras.utils.set_random_seed(0)
    backbone = tlk.load_backbone("glyph_resnet_small", image_size=32)
    return tlk.add_head(backbone, classes=3)


def stripes(count, seed=0):
    """Three ways of stripes: what a network that reads letters sees at once."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    rows, columns = np.mgrid[:32, :32]
    ways = np.stack([rows % 8 < 4, columns % 8 < 4, (rows + columns) % 8 < 4])
    x = 120.0 * ways[y] + rng.uniform(0, 130, (count, 32, 32))
    return np.repeat(x[..., None], 3, axis=-1).astype("float32"), y


def unlearnable(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 16, 16, 3)).astype("float32"), rng.permutation(count) % 3


@pytest.fixture
def uncut(monkeypatch):
    monkeypatch.setattr(module, "_commit", lambda model, _: (model, "The last block serves."))


def trained(model, train, validation, **options):
    return tlk.fit_auto(model, train, validation, **{"seed": 0, "verbose": 0} | options)


def test_where_the_head_is_enough_nothing_else_learns():
    model, validation = letters(), stripes(30, seed=1)
    before = [np.array(w) for w in tlk.find_blocks(model)["stack1"].weights]
    run = trained(model, stripes(30), validation)
    assert [stage.name for stage in run.stages] == ["head"] and run.kept == "head"
    assert run.why[-1] == "Nothing is left to gain: every validation example is right."
    now = tlk.find_blocks(run.model)["stack1"].weights
    assert all(np.array_equal(a, b) for a, b in zip(before, now, strict=True))
    assert (run.model.predict(validation[0], verbose=0).argmax(-1) == validation[1]).all()


def test_a_tie_opens_no_more():
    keras.utils.set_random_seed(0)
    run = trained(with_head(small_backbone()), unlearnable(60), unlearnable(120, seed=1))
    assert [stage.name for stage in run.stages] == ["head", "last block"]
    assert "no gain beyond chance: no more blocks are unfrozen" in run.why[-1]


def test_what_gains_beyond_chance_opens_more(uncut, monkeypatch):
    monkeypatch.setattr(module, "HEAD_EPOCHS", 1)  # leaves much to gain
    monkeypatch.setattr(module, "HEAD_LR", 1e-4)
    keras.utils.set_random_seed(0)
    run = trained(with_head(small_backbone()), easy_data(96), easy_data(120, seed=1))
    names = [stage.name for stage in run.stages]
    assert names == ["head", "last block", "all blocks"]
    assert "beyond chance." in run.why[2] and len(run.plan.stages) == 3
    assert run.history["stage"] == [s.name for s in run.stages for _ in range(s.epochs)]
    assert run.history["epoch"] == list(range(1, len(run.history["epoch"]) + 1))


def test_the_weights_are_those_of_the_best_step(uncut, monkeypatch):
    scores = iter([0.9, 0.95, 0.5])
    seen = []

    def judge(self, asked):
        score = next(scores)
        seen.append(self.model.get_weights())
        return np.arange(1000) < 1000 * score, np.zeros(1000)

    monkeypatch.setattr(module._Auto, "_judge", judge)
    keras.utils.set_random_seed(0)
    run = trained(with_head(small_backbone()), easy_data(48), easy_data(48, seed=1))
    assert len(run.stages) == 3 and run.kept == "last block"
    for kept, now in zip(seen[1], run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, now)
    assert any((a != b).any() for a, b in zip(seen[1], seen[2], strict=True))


def test_an_earlier_block_that_reads_better_becomes_the_end(monkeypatch):
    correct = np.stack([np.arange(200) < right for right in (100, 190, 120)])
    found = Probe(("stem", "stack0", "stack1"), correct, (0.0,) * 3)
    monkeypatch.setattr(module, "probe", lambda *_: found)
    model = letters()
    run = trained(model, stripes(30), stripes(30, seed=1))
    assert tlk.find_blocks(run.model).names == ["stem", "stack0", "head"]
    assert "what lies above it is left out" in run.why[0]
    assert run.model.output_shape == model.output_shape
    compiled = letters()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled.compile("adamw", loss)
    run = trained(compiled, stripes(30), stripes(30, seed=1))
    assert run.model is compiled and "cannot be cut" in run.why[0]


def test_what_does_not_fit_into_the_time_is_not_begun(monkeypatch):
    monkeypatch.setattr(Probe, "epoch_seconds", lambda self, last: 1e9)
    keras.utils.set_random_seed(0)
    data = unlearnable(30)
    run = trained(with_head(small_backbone()), data, unlearnable(30, seed=1), budget="10min")
    assert [stage.name for stage in run.stages] == ["head"]
    assert "an epoch of last block takes about" in run.ended and run.ended in run.why[-1]


def test_a_budget_that_is_used_up_leaves_one_epoch_of_the_head():
    keras.utils.set_random_seed(0)
    run = trained(with_head(small_backbone()), easy_data(48), easy_data(48, seed=1), budget=1e-3)
    assert [stage.epochs for stage in run.stages] == [1] and not run.stopped
    assert "after 1 epochs the time of 0.001 s is used up" in run.ended


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        ("90s", 90),
        ("5min", 300),
        ("5 min", 300),
        ("2h", 7200),
        ("1h30m", 5400),
        (7, 7),
        ("0.5h", 1800),
    ],
)
def test_budgets(budget, seconds):
    assert seconds_of(budget) == seconds


@pytest.mark.parametrize("budget", ["", "5", "five", "-5min", "5min or so", 0, True, None, "0s"])
def test_budgets_that_are_none(budget):
    with pytest.raises(ValueError, match="budget of time above 0"):
        trained(letters(), stripes(6), stripes(6), budget=budget)


def test_what_it_decides_itself_is_refused():
    with pytest.raises(ValueError, match=r"\['keep'\]: leave it out"):
        trained(letters(), stripes(6), stripes(6), keep="last_stage")
    with pytest.raises(ValueError, match="uses up"):
        trained(letters(), iter([stripes(6)]), stripes(6))


def test_a_model_of_several_labels_is_refused():
    x = keras.Input((16, 16, 3))
    model = keras.Model(x, keras.layers.Dense(3, "sigmoid")(keras.layers.Flatten()(x)))
    with pytest.raises(ValueError, match="a probability for each of several labels"):
        trained(model, easy_data(12), easy_data(12))


def test_validation_in_another_order_each_time_is_refused():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(easy_data(48)).shuffle(48, seed=0).batch(16)
    with pytest.raises(ValueError, match="Leave out shuffle"):
        trained(with_head(small_backbone()), easy_data(24), data)


def test_the_reasons_are_saved_with_the_run(tmp_path):
    run = trained(letters(), stripes(30), stripes(30, seed=1))
    run.save(tmp_path / "run", why="it reads letters")
    why = json.loads((tmp_path / "run" / "run.json").read_text())["why"]
    assert why == " ".join(["it reads letters.", *run.why])
    assert run.why[0] in repr(run)
    assert tlk.load_run(tmp_path / "run").plan == run.plan


def test_a_gain_is_held_against_its_spread():
    gains = np.repeat([1.0, -1.0, 0.0], [14, 6, 180])
    assert not beyond_chance(gains)  # 14 more right, 6 fewer
    assert beyond_chance(np.repeat([1.0, -1.0, 0.0], [15, 4, 181]))
    assert not beyond_chance(np.zeros(200))
