import keras
import numpy as np
import pytest
from scipy.optimize import minimize
from small import easy_data, small_backbone, with_head

import tlkeras as tlk
from tlkeras.advice.probing import Probe, _outputs, _parts, logme, probe
from tlkeras.blocks.find import find_blocks


@pytest.mark.parametrize("nested", [True, False])
def test_one_pass_gives_the_pooled_outputs_of_every_block(nested):
    model = with_head(small_backbone(), nested=nested)
    blocks = find_blocks(model)
    x, y = easy_data(10)
    outputs, labels = _outputs(_parts(model, blocks[:-1]), (x, y))
    for block, found in zip(blocks[:-1], outputs, strict=True):
        below, _ = blocks.split(block.name)
        expected = keras.ops.convert_to_numpy(below(x, training=False)).mean((1, 2))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.array_equal(labels, y)


def test_easy_classes_are_read_off_and_the_model_stays_as_it_was():
    keras.utils.set_random_seed(0)
    model = with_head(small_backbone())
    before = model.get_weights()
    probed = tlk.probe(model, easy_data(90), easy_data(30, seed=1))
    assert probed.blocks == ("stem", "stack1", "stack2") and probed.accuracies[0] > 0.9
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert "stem" in repr(probed) and "stack2" in probed._repr_html_() and probed.plot().axes


def found(*right: int) -> Probe:
    """Of 200 examples, each block names the first so many rightly."""
    return Probe(("stem", "middle", "top"), np.arange(200) < np.array(right)[:, None], (0.0,) * 3)


def test_the_advice_follows_the_accuracies():
    assert "unfreeze the blocks above it (top)" in found(100, 160, 120).advice
    assert not found(100, 160, 120).last_serves


@pytest.mark.parametrize(("best", "tie"), [(163, True), (166, False)])
def test_a_lead_is_held_against_chance(best, tie):
    probed = found(100, best, 160)  # three or six of 200 more; nobody is right where others err
    assert probed.last_serves == tie
    assert ("may be chance" in probed.advice) == tie


def test_the_interval_is_that_of_wilson():
    from scipy.stats import binomtest

    low, high = found(100, 160, 120)._intervals()[1]
    expected = binomtest(160, 200).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_one_class_cannot_be_probed():
    x, y = easy_data(10)
    with pytest.raises(ValueError, match=r"at least two classes; found \[0\]"):
        probe(with_head(small_backbone()), (x, y * 0), (x, y * 0))


def test_one_hot_rows_names_and_lists_are_classes_and_several_labels_are_not():
    model, (x, y) = with_head(small_backbone()), easy_data(24)
    rows = keras.utils.to_categorical(y, 3)
    expected = probe(model, (x, y), (x, y)).accuracies
    for labels in (rows, np.array(["a", "b", "c"])[y], y.tolist(), y[:, None]):
        assert probe(model, (x, labels), (x, labels)).accuracies == expected
    with pytest.raises(ValueError, match="one class for each example"):
        probe(model, (x, 1 - rows), (x, rows))


def test_data_without_end_cannot_be_probed():
    tf = pytest.importorskip("tensorflow")
    data = easy_data(24)
    endless = tf.data.Dataset.from_tensor_slices(data).batch(8).repeat()
    with pytest.raises(ValueError, match="come to an end"):
        probe(with_head(small_backbone()), endless, data)


@pytest.mark.parametrize(("count", "channels"), [(60, 5), (30, 80)])
def test_logme_is_the_evidence_at_its_best(count, channels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, channels))
    y = x[:, 0] + 0.5 * rng.normal(size=count) > 0

    def unlikely(precisions, wanted):
        weights, noise = np.exp(precisions)
        spread = np.eye(count) / noise + x @ x.T / weights
        logs = np.linalg.slogdet(spread)[1] + wanted @ np.linalg.solve(spread, wanted)
        return 0.5 * (logs + count * np.log(2 * np.pi)) / count

    best = [-minimize(unlikely, [0, 0], (y == c,), "Nelder-Mead").fun for c in (True, False)]
    np.testing.assert_allclose(logme(x, y), np.mean(best), atol=2e-3)
