import keras
import numpy as np
import pytest
from scipy.optimize import minimize
from small import easy_data, small_backbone, with_head

import tlkeras as tlk
from tlkeras.advice.linear import STRENGTHS, logme, strength
from tlkeras.advice.probing import Probe, Taps, outputs_of, probe
from tlkeras.blocks.find import find_blocks


@pytest.mark.parametrize("nested", [True, False])
def test_one_pass_gives_the_pooled_outputs_of_every_block(nested):
    model = with_head(small_backbone(), nested=nested)
    blocks = find_blocks(model)
    x, y = easy_data(10)
    outputs, labels = outputs_of(Taps(model, blocks[:-1]), (x, y))
    for block, found in zip(blocks[:-1], outputs, strict=True):
        below, _ = blocks.split(block.name)
        expected = keras.ops.convert_to_numpy(below(x, training=False)).mean((1, 2))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.array_equal(labels, y)


def ended(inputs, parts, classes=3):
    joined = keras.layers.Concatenate()(parts)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(joined))


def pooled(tensor):
    return keras.layers.GlobalAveragePooling2D()(tensor)


def twin():
    images, backbone = [keras.Input((16, 16, 3)) for _ in "ab"], small_backbone()
    return ended(images, [pooled(backbone(image)) for image in images])


def test_two_images_are_read_from_both_calls_of_the_network():
    model, (x, y), (other, _) = twin(), easy_data(90), easy_data(90, seed=1)
    outputs, _ = outputs_of(Taps(model, find_blocks(model)[:-1]), ((x, other), y))
    assert [found.shape[1] for found in outputs] == [2 * 4, 2 * 6, 2 * 8]
    alone, backbone = small_backbone(), model.layers[2]
    alone.set_weights(backbone.get_weights())
    halves = [alone.predict(images, verbose=0).mean((1, 2)) for images in (x, other)]
    order = halves if np.allclose(outputs[-1][:, :8], halves[0], atol=1e-5) else halves[::-1]
    np.testing.assert_allclose(outputs[-1], np.concatenate(order, axis=1), atol=1e-5)
    assert probe(model, ((x, other), y), ((x, other), y)).accuracies[0] > 0.9
    noise = np.random.default_rng(0).normal(size=x.shape).astype("float32")
    assert probe(model, ([noise, x], y), ([noise, x], y)).accuracies[0] > 0.9  # the second alone


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_a_vector_beside_the_image_belongs_to_the_head(kind):
    image, facts = keras.Input((16, 16, 3), name="image"), keras.Input((4,), name="facts")
    parts = {"image": image, "facts": facts}
    given = parts if kind is dict else kind(parts.values())
    backbone = small_backbone()
    model = ended(given, [pooled(backbone(image)), keras.layers.Dense(5)(facts)])
    x, y = easy_data(90)
    data = {"image": x, "facts": np.zeros((90, 4), "float32")}
    data = data if kind is dict else kind(data.values())
    found = probe(model, (data, y), (data, y))
    assert found.blocks == ("stem", "stack1", "stack2")
    assert found.accuracies == probe(with_head(backbone), (x, y), (x, y)).accuracies


def test_towers_of_images_and_of_tokens():
    tokens, image = keras.Input((7,), dtype="int32"), keras.Input((16, 16, 3))
    text = keras.layers.Embedding(9, 8, mask_zero=True)(tokens)
    text = keras.Model(tokens, keras.layers.LSTM(6)(text), name="text")
    words, (x, y) = keras.Input((7,), dtype="int32", name="words"), easy_data(90)
    model = ended([image, words], [pooled(small_backbone()(image)), text(words)])
    said = np.repeat(y[:, None] + 1, 7, axis=1)
    found = probe(model, ((0 * x, said), y), ((0 * x, said), y))
    assert max(found.accuracies) == 1.0 > min(found.accuracies)


def test_what_a_mask_hides_does_not_count():
    tokens = keras.Input((5,), dtype="int32")
    embedded = keras.layers.Embedding(9, 4, mask_zero=True)(tokens)
    model = keras.Model(tokens, keras.layers.Dense(3)(keras.layers.LSTM(6)(embedded)))
    table = np.asarray(model.layers[1].embeddings)
    block = find_blocks(model)[0]
    found = Taps(model, [block])(np.array([[3, 4, 0, 0, 0]]))
    np.testing.assert_allclose(found[0][0], table[[3, 4]].mean(0), rtol=1e-5)


def test_a_tower_of_keras_hub_with_its_dict_of_inputs():
    hub = pytest.importorskip("keras_hub")
    tower = hub.models.BertBackbone(
        vocabulary_size=20, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16,
        max_sequence_length=8,
    )  # fmt: skip
    given = {name: keras.Input((6,), dtype="int32", name=name) for name in tower.input}
    model = ended(given, [tower(given)["pooled_output"], tower(given)["pooled_output"]])
    y = np.arange(40) % 2
    data = {name: np.ones((40, 6), "int32") for name in given}
    data["token_ids"] = np.repeat(3 + y[:, None], 6, axis=1)
    found = probe(model, (data, y), (data, y))
    assert len(found.blocks) == len(find_blocks(model)) - 1 and found.accuracies[0] == 1.0


def test_a_model_without_a_graph_is_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(keras.ops.mean(x, (1, 2)))

    model, (x, y) = Own(), easy_data(12)
    model(x)
    with pytest.raises(ValueError, match=r"found Own 'own.*', which has no backbone"):
        probe(model, (x, y), (x, y))


def test_labels_of_several_outputs_are_refused():
    model, (x, y) = with_head(small_backbone()), easy_data(12)
    with pytest.raises(ValueError, match="labels of several outputs"):
        probe(model, (x, {"a": y, "b": y}), (x, y))


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


def test_the_strength_is_chosen_by_what_is_left_out_of_training():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    clear = rng.normal(size=(120, 2)) + 8 * np.eye(3)[y][:, :2]
    assert strength(clear, y) == STRENGTHS[-1]
    assert strength(rng.normal(size=(120, 60)), y) == STRENGTHS[0]
    assert strength(rng.normal(size=(3, 4)), np.arange(3)) == STRENGTHS[-1]
    many = rng.normal(size=(2000, 4))
    assert strength(many, np.where(np.arange(2000) < 2, 1, 0)) in STRENGTHS  # a rare class


def test_the_choices_say_what_is_known_and_what_each_costs():
    found = probe(with_head(small_backbone()), easy_data(90), easy_data(30))
    whole, last = found.seconds
    assert 0 <= last <= whole < 1 and found.examples == (90, 30)
    rows = found.choices.cells
    assert [row[0] for row in rows][-2:] == ["train stack2, too", "train all blocks"]
    assert rows[0][1] == f"{found.accuracies[-1]:.3f}" and rows[-1][1] == "not known"
    assert float(rows[-1][2]) == pytest.approx(whole * (3 * 90 + 30), rel=0.06)
    assert "cut after" in repr(found) or max(found.accuracies) == found.accuracies[-1]
    assert "not known" in found._repr_html_()
