"""BatchNorm swapped for GroupNorm: the rest stays, and a batch of one trains as it is used."""

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

import tlkeras as tlk


@pytest.mark.parametrize("nested", [True, False])
def test_only_the_norms_change(nested):
    model = with_head(small_backbone((4, 6, 9)), nested=nested)
    before = model.get_weights()
    copy = tlk.to_groupnorm(model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    inner = copy.layers[1] if nested else copy
    norms = [x for x in inner.layers if isinstance(x, keras.layers.GroupNormalization)]
    assert [norm.groups for norm in norms] == [4, 2, 1]
    kernels = [[w for w in m.get_weights() if w.ndim > 1] for m in (model, copy)]
    assert all(np.array_equal(a, b) for a, b in zip(*kernels, strict=True))
    x = easy_data(4)[0]
    np.testing.assert_allclose(copy(x, training=True), copy(x, training=False), atol=1e-5)
    np.testing.assert_allclose(copy(x)[:1], copy(x[:1]), atol=1e-5)


def test_norms_without_scale_or_shift():
    x = keras.Input((8, 8, 3))
    y = keras.layers.BatchNormalization(scale=False)(keras.layers.Conv2D(4, 1)(x))
    model = keras.Model(x, keras.layers.BatchNormalization(center=False)(y))
    model.layers[2].beta.assign([1, 2, 3, 4])
    copy = tlk.to_groupnorm(model)
    assert np.array_equal(copy.layers[2].get_weights()[0], [1, 2, 3, 4])


class Hides(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.norm = keras.layers.BatchNormalization()

    def call(self, x):
        return self.norm(x)


def test_what_cannot_be_swapped():
    x = keras.Input((4,))
    with pytest.raises(ValueError, match="has none"):
        tlk.to_groupnorm(keras.Model(x, keras.layers.Dense(2)(x)))
    with pytest.raises(ValueError, match="inside a layer of another kind"):
        tlk.to_groupnorm(keras.Model(x, Hides()(x)))
