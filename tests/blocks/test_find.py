"""find_blocks: Contract 1, the granularity, the head, and the two halves at a cut."""

from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers

from tlkeras.blocks.find import find_blocks
from tlkeras.utils.tables import html_table, text_table


def conv_net(shape=(32, 32, 3), name="net"):
    """Convolution, normalisation and pooling, four times; all names made up by Keras."""
    x = inputs = keras.Input(shape)
    for filters in (4, 6, 8, 10):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.MaxPooling2D()(x)
    return keras.Model(inputs, x, name=name)


def residual_net(shape=(32, 32, 3)):
    """A stem and three stages of two residual blocks, named as ResNets are."""
    x = inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, padding="same", name="stem_conv")(x)
    for stage in range(3):
        for block in range(2):
            name, stride = f"stack{stage}_block{block}", 1 + (stage > 0 and block == 0)
            y = layers.Conv2D(4, 3, stride, padding="same", name=f"{name}_conv")(x)
            y = layers.Conv2D(4, 3, padding="same", activation="tanh", name=f"{name}_conv2")(y)
            short = layers.Conv2D(4, 1, stride, name=f"{name}_short")(x) if stride > 1 else x
            x = layers.Add(name=f"{name}_add")([short, y])
    return keras.Model(inputs, x, name="resnet")


def headed(backbone, shape=(32, 32, 3)):
    inputs = keras.Input(shape)
    x = layers.Rescaling(1 / 255)(inputs)
    x = backbone(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def moved_by_fit(model, shape, outputs):
    """The ids of the weights that one step of training changes."""
    rng = np.random.default_rng(0)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    model.fit(rng.random((4, *shape), "float32"), rng.random((4, outputs)), verbose=0)
    return {
        id(weight)
        for weight, old in zip(model.weights, before, strict=True)
        if not np.array_equal(keras.ops.convert_to_numpy(weight), old)
    }


def two_towers():
    a, b = keras.Input((8,)), keras.Input((8,))
    x, y = layers.Dense(4, name="left")(a), layers.Dense(4, name="right")(b)
    return keras.Model([a, b], layers.Dense(2)(layers.Add()([x, y])))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(4)
        self.second = layers.Dense(4)
        self.scale = self.add_weight(shape=(1,), name="scale")
        self.last = layers.Dense(2)

    def call(self, x):
        return self.last(self.second(self.first(x)) * self.scale)


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 3), "float32"))
    return model


class Encoder(layers.Layer):
    """Transformer layers inside one layer, which holds a token of its own."""

    def __init__(self, depth, **kwargs):
        super().__init__(**kwargs)
        self.stack = [TransformerLayer(name=f"encoder_layer_{i}") for i in range(depth)]
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")
        for layer in self.stack:
            layer.build(shape)
        self.norm.build(shape)

    def call(self, x):
        x = x + self.token
        for layer in self.stack:
            x = layer(x)
        return self.norm(x)


class TransformerLayer(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.dense = layers.Dense(8)

    def build(self, shape):
        self.attention.build(shape, shape)
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x + self.attention(x, x))


def transformer():
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 4, 4, name="patches")(x)
    x = layers.Reshape((16, 8))(x)
    x = Encoder(3)(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2)(x))


def sequential():
    return keras.Sequential(
        [keras.Input((32, 32, 3)), conv_net(), layers.Flatten(), layers.Dense(2)]
    )


def doubly_nested():
    inner = headed(residual_net())
    x = inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, layers.Dense(2)(inner(layers.RandomFlip()(x))))


def shared():
    x = inputs = keras.Input((8,))
    again = layers.Dense(8, name="again")
    for i in range(4):
        x = layers.Dense(8, name=f"own{i}")(again(x))
    return keras.Model(inputs, x)


MODELS = [
    conv_net,
    residual_net,
    lambda: headed(residual_net()),
    doubly_nested,
    sequential,
    transformer,
    two_towers,
    subclassed,
    shared,
    lambda: keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None),
]


@pytest.mark.parametrize("make", MODELS)
def test_every_weight_is_in_exactly_one_block(make):
    model = make()
    blocks = find_blocks(model)
    held = Counter(id(weight) for block in blocks for weight in block.weights)
    assert held == Counter(id(weight) for weight in model.weights)
    assert sum(block.params for block in blocks) == model.count_params()
    assert len(set(blocks.names)) == len(blocks) > 1
    for block in blocks:  # `layers` are the layers that hold the weights themselves
        own = {id(w) for x in block.layers for w in x._trainable_variables}
        assert {id(w) for w in block.weights if w.trainable} <= own


def test_resnet50_gives_the_familiar_stages():
    model = keras.applications.ResNet50(weights=None)
    blocks = find_blocks(model)
    assert blocks.names == ["stem", "conv2", "conv3", "conv4", "conv5", "head"]
    assert [b.role for b in blocks] == ["bottom", "bottom", "middle", "middle", "top", "head"]
    assert [b.cut.shape[1] for b in blocks[:-1]] == [56, 56, 28, 14, 7]
    assert [layer.name for layer in blocks["head"].layers] == ["predictions"]


def test_open_image_sides_give_the_same_blocks_as_fixed_ones():
    open_, fixed = (find_blocks(residual_net((side, side, 3))) for side in (None, 64))
    assert open_.names == fixed.names == ["stem", "stack0", "stack1", "stack2"]
    assert [b.params for b in open_] == [b.params for b in fixed]


def test_the_expansion_of_an_inverted_bottleneck_goes_with_its_stride():
    model = keras.applications.MobileNetV2((96, 96, 3), include_top=False, weights=None)
    block = find_blocks(model)["block_3-5"]
    assert block.layers[0].name == "block_3_expand"
    assert block.layers[-1].name == "block_5_project_BN"


def test_pooling_follows_its_block_and_dropout_does_not_end_one():
    x = inputs = keras.Input((32, 32, 3))
    for i in range(4):
        x = layers.Conv2D(4, 3, padding="same", name=f"block{i}_a")(x)
        x = layers.Conv2D(4, 3, padding="same", name=f"block{i}_b")(x)
        x = layers.MaxPooling2D(name=f"pool{i}")(x)
        x = layers.Dropout(0.5)(x)
    blocks = find_blocks(keras.Model(inputs, x))
    assert blocks.names == ["block0", "block1", "block2", "block3"]
    assert [b.cut.shape[1] for b in blocks] == [16, 8, 4, 2]
    assert blocks[0].cut._keras_history.operation.name == "pool0"


def test_input_normalisation_belongs_to_the_stem():
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Normalization(name="scale")(x)
    x = layers.Conv2D(4, 3, 2, padding="same", name="conv")(x)
    stem = find_blocks(keras.Model(inputs, conv_net((16, 16, 4))(x)))[0]
    assert [layer.name for layer in stem.layers][:2] == ["scale", "conv"]


def test_a_network_without_changes_of_size_gives_a_block_a_layer():
    model = keras.Sequential([keras.Input((4,)), *(layers.Dense(4) for _ in range(5))])
    assert find_blocks(model).names == ["stem", "block1", "block2", "block3", "head"]


def test_plain_attention_layers_make_a_block_each():
    tokens = keras.Input((9, 8))
    x = layers.Dense(8, name="embed")(tokens)
    for _ in range(3):
        x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
        x = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.Dense(8)(x)])
    blocks = find_blocks(keras.Model(tokens, x))
    assert blocks.names == ["stem", "block1", "block2", "block3"]
    assert len({b.params for b in blocks[1:]}) == 1
    assert all(b.cut is not None for b in blocks)


def test_transformer_layers_inside_one_layer_are_blocks_without_cuts():
    model = transformer()
    blocks = find_blocks(model)
    assert blocks.names == ["stem", "encoder_layer_0", "encoder_layer_1", "encoder_layer_2", "head"]
    assert [b.cut is None for b in blocks] == [True, True, True, False, False]
    encoder = next(x for x in model.layers if isinstance(x, Encoder))
    assert encoder in blocks["stem"].layers and encoder not in blocks["encoder_layer_1"].layers
    assert any(w is encoder.token for w in blocks["stem"].weights)
    assert encoder.norm in blocks["encoder_layer_2"].layers


# The head ---------------------------------------------------------------------------------------


def test_a_nested_backbone_is_opened_and_all_after_it_is_head():
    backbone = residual_net()
    model = headed(backbone)
    blocks = find_blocks(model)
    assert blocks.names == [*find_blocks(backbone).names, "head"]
    assert [w.path for w in blocks["head"].weights] == [w.path for w in model.layers[-1].weights]


def test_only_the_outermost_head_is_head():
    blocks = find_blocks(doubly_nested())
    assert [b.role == "head" for b in blocks] == [False] * (len(blocks) - 1) + [True]
    assert blocks[-1].cut.shape == (None, 2)
    assert blocks[-1].params == 3 * 2 + 2


def image_and(branch, shape=(8,), order=1):
    """An image through a nested backbone, joined by what `branch` makes of a second input."""
    image, other = keras.Input((32, 32, 3), name="image"), keras.Input(shape, name="other")
    joined = [layers.GlobalAveragePooling2D()(residual_net()(image)), branch(other)][::order]
    x = layers.Dense(4, name="fusion")(layers.Concatenate()(joined))
    return keras.Model({"image": image, "other": other}, layers.Dense(2, name="out")(x))


def table(other):
    return layers.Dense(4, name="table1")(layers.Dense(8, name="table0")(other))


def nested_table(other):
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, name="table0"), layers.Dense(4, name="table1")]
    )(other)


@pytest.mark.parametrize("branch", [table, nested_table])
@pytest.mark.parametrize("order", [1, -1])
def test_a_branch_beside_the_nested_backbone_and_their_fusion_are_head(branch, order):
    model = image_and(branch, order=order)
    blocks = find_blocks(model)
    names = [layer.name for layer in blocks["head"].layers]
    assert names == ["table0", "table1", "fusion", "out"]
    assert [b.name for b in blocks][:-1] == find_blocks(residual_net()).names


def test_a_second_tower_is_no_head():
    def words(tokens):
        ids = keras.Input((5,))
        x = layers.GlobalAveragePooling1D()(layers.Embedding(9, 4, name="words")(ids))
        return keras.Model(ids, layers.Dense(4)(x), name="tower")(tokens)

    blocks = find_blocks(image_and(words, (5,)))
    assert [layer.name for layer in blocks["head"].layers] == ["fusion", "out"]
    assert any(layer.name == "words" for block in blocks[:-1] for layer in block.layers)


def test_the_head_of_a_subclassed_model_is_all_but_its_backbone():
    class Joined(keras.Model):
        def __init__(self):
            super().__init__()
            self.table = layers.Dense(4, name="table")
            self.backbone = residual_net()
            self.out = layers.Dense(2, name="out")

        def call(self, inputs):
            image, other = inputs
            pooled = keras.ops.mean(self.backbone(image), (1, 2))
            return self.out(keras.ops.concatenate([pooled, self.table(other)], -1))

    model = Joined()
    model((np.zeros((1, 32, 32, 3)), np.zeros((1, 8))))
    blocks = find_blocks(model)
    assert [layer.name for layer in blocks["head"].layers] == ["table", "out"]


def test_a_small_nested_part_is_no_backbone():
    x = inputs = keras.Input((32, 32, 3))
    x = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(3, 3, padding="same")])(x)
    for _ in range(4):
        x = layers.Conv2D(3, 3, 2, padding="same")(x)
    blocks = find_blocks(keras.Model(inputs, x))
    assert "head" not in [block.role for block in blocks]


@pytest.mark.parametrize("make", [conv_net, residual_net])
def test_a_bare_backbone_has_no_head(make):
    assert "head" not in [block.role for block in find_blocks(make())]


def test_the_pooling_of_squeeze_and_excite_is_no_head():
    x = inputs = keras.Input((32, 32, 3))
    for filters in (4, 6, 8, 10):
        x = layers.Conv2D(filters, 3, 2, padding="same")(x)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        x = layers.Multiply()([x, layers.Conv2D(filters, 1, activation="sigmoid")(gate)])
    assert [b.role for b in find_blocks(keras.Model(inputs, x))][-1] == "top"


def test_what_becomes_an_image_again_is_no_head():
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, 2, padding="same")(x)
    x = layers.Dense(16 * 4)(layers.Flatten()(x))
    x = layers.Conv2DTranspose(3, 3, 2, padding="same", name="up")(layers.Reshape((8, 8, 1))(x))
    blocks = find_blocks(keras.Model(inputs, x))
    assert [x.name for b in blocks if b.role == "head" for x in b.layers] == ["up"]


def unet(up, named=True):
    """A U-Net in one graph, as tutorials write it."""

    def convolved(x, filters, name):
        for i in range(2):
            name = name and f"{name}_conv{i}"
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
        return layers.BatchNormalization()(x)

    x, skips = keras.Input((32, 32, 3)), []
    inputs = x
    for i, filters in enumerate((4, 6, 8)):
        x = convolved(x, filters, f"enc{i}" if named else None)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = convolved(x, 10, "enc3" if named else None)
    for i, skip in reversed(list(enumerate(skips))):
        x = layers.Concatenate()([up(x, f"dec{i}_up" if named else None), skip])
        x = convolved(x, 4, f"dec{i}" if named else None)
    return keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax", name="mask")(x))


def transposed(x, name):
    return layers.Conv2DTranspose(4, 2, 2, padding="same", name=name)(x)


def up_sampled(x, _):
    return layers.UpSampling2D()(x)


def resized(x, _):
    return keras.ops.image.resize(x, (2 * x.shape[1], 2 * x.shape[2]))


@pytest.mark.parametrize("up", [transposed, up_sampled, resized])
def test_encoder_decoder_and_head_of_a_flat_unet_are_told_apart(up):
    blocks = find_blocks(unet(up))
    assert blocks.names == ["enc0", "enc1", "enc2", "enc3", "dec2", "dec1", "dec0", "head"]
    assert [b.role == "head" for b in blocks] == [False] * 4 + [True] * 4
    assert [layer.name for layer in blocks["head"].layers] == ["mask"]
    blocks = find_blocks(unet(up, named=False))
    assert blocks.names[3:] == ["block3", "decoder4", "decoder5", "decoder6", "head"]


def test_a_decoder_on_a_pretrained_encoder_is_head_flat_or_nested():
    encoder = residual_net((64, 64, 3))
    skips = [encoder.get_layer(f"stack{i}_block1_add").output for i in range(3)]
    nested = keras.Model(encoder.input, skips, name="encoder")
    inputs = keras.Input((64, 64, 3))
    for image, (low, middle, x) in ((encoder.input, skips), (inputs, nested(inputs))):
        lateral = layers.Conv2D(4, 1, name="lateral")(middle)
        x = layers.Add()([transposed(x, "up0"), lateral])
        x = layers.Concatenate()([transposed(x, "up1"), low])
        blocks = find_blocks(keras.Model(image, layers.Conv2D(2, 3, padding="same")(x)))
        assert blocks.names == ["stem", "stack0", "stack1", "stack2", "up0", "up1", "head"]
        assert [b.role for b in blocks][-3:] == ["head"] * 3
        assert {"up0", "lateral"} == {layer.name for layer in blocks["up0"].layers}


def test_an_image_that_is_enlarged_and_classified_has_no_decoder():
    x = inputs = keras.Input((32, 32, 3))
    for i in range(3):
        x = layers.Conv2D(4, 3, 2, padding="same", name=f"conv{i}")(x)
    pooled = layers.UpSampling2D(4)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Concatenate()([layers.ZeroPadding2D()(x)[:, 1:-1, 1:-1], pooled])
    x = layers.Conv2D(4, 3, name="conv3")(layers.UpSampling2D()(x))
    x = layers.GlobalAveragePooling2D()(x)
    blocks = find_blocks(keras.Model(inputs, layers.Dense(2, name="logits")(x)))
    assert [layer.name for layer in blocks["head"].layers] == ["logits"]


def test_dropout_before_the_last_dense_is_in_the_head():
    x = inputs = keras.Input((8,))
    for i in range(3):
        x = layers.Dropout(0.5)(layers.Dense(8, activation="relu", name=f"dense{i}")(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert find_blocks(model)[-2].cut._keras_history.operation.name == "dense2"


def test_a_flat_model_has_a_head_for_each_output_and_gives_features_too():
    x = inputs = keras.Input((8,))
    for _ in range(3):
        x = layers.Dense(8, activation="relu")(x)
    kind, size = layers.Softmax()(layers.Dense(3, name="kind")(x)), layers.Dense(1, name="size")(x)
    for outputs in ([kind, size], {"kind": kind, "size": size, "features": x}):
        blocks = find_blocks(keras.Model(inputs, outputs))
        assert {layer.name for layer in blocks["head"].layers} == {"kind", "size"}
        assert len(blocks) == 4


def test_a_single_dense_before_a_dropout_is_one_block():
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dropout(0.5)(layers.Dense(3)(x)))
    assert [block.role for block in find_blocks(model)] == ["head"]


# Names ------------------------------------------------------------------------------------------


def test_names_are_the_same_when_the_model_is_built_again():
    assert find_blocks(headed(conv_net())).names == find_blocks(headed(conv_net())).names
    assert find_blocks(conv_net()).names == ["stem", "block1", "block2", "block3"]


def test_blocks_do_not_depend_on_what_is_frozen():
    model = headed(residual_net())
    before = [(b.name, b.role, b.params) for b in find_blocks(model)]
    model.trainable = False
    assert [(b.name, b.role, b.params) for b in find_blocks(model)] == before


def test_a_number_is_never_cut_in_two():
    x = inputs = keras.Input((64, 64, 3))
    for i in (1, 2, 10, 11, 12):
        x = layers.Conv2D(4, 3, 1 if i > 10 else 2, padding="same", name=f"block{i}_conv")(x)
        x = layers.Conv2D(4, 3, padding="same", name=f"block{i}_conv_b")(x)
    x = layers.Conv2D(4, 3, 2, padding="same", name="block13_conv")(x)
    blocks = find_blocks(keras.Model(inputs, x))
    assert blocks.names == ["block1", "block2", "block10-12", "block13"]


def test_a_stage_whose_last_layer_strides_keeps_its_name():
    x = inputs = keras.Input((64, 64, 3))
    for stage in range(1, 5):  # as in ResNet50V2
        for i in range(4):
            x = layers.Conv2D(4, 3, 1 + i // 3, padding="same", name=f"conv{stage}_{i}")(x)
    blocks = find_blocks(keras.Model(inputs, x))
    assert blocks.names == ["conv1", "conv2", "conv3", "conv4", "block4"]


# Cuts -------------------------------------------------------------------------------------------


def test_a_flat_model_composes_at_every_cut():
    model = residual_net()
    x = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    for block in find_blocks(model)[:-1]:
        below, above = keras.Model(model.input, block.cut), keras.Model(block.cut, model.output)
        np.testing.assert_array_equal(above(below(x)), model(x))


@pytest.mark.parametrize(
    "make", [lambda: headed(residual_net()), doubly_nested, sequential, residual_net]
)
def test_a_model_splits_at_every_block_with_a_cut(make):
    model = make()
    blocks = find_blocks(model)
    x = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    for i, block in enumerate(blocks[:-1]):
        below, above = blocks.split(block.name)
        np.testing.assert_array_equal(
            above(below(x, training=False), training=False), model(x, training=False)
        )
        ids = {id(w) for b in blocks[: i + 1] for w in b.weights}
        assert {id(w) for w in below.weights} == ids


@pytest.mark.parametrize("kind", [layers.ReLU, layers.BatchNormalization, lambda: layers.Dense(8)])
def test_a_model_splits_where_the_layer_at_the_cut_is_called_again_above(kind):
    layer, x = kind(), keras.Input((8,))
    given, x = x, layer(x)
    for _ in range(3):
        x = layer(layers.Dense(8)(x))
    model = keras.Model(given, layers.Dense(3)(x))
    blocks, x = find_blocks(model), np.random.default_rng(0).random((2, 8), "float32")
    for block in blocks[:-1]:
        below, above = blocks.split(block.name)
        np.testing.assert_array_equal(above(below(x)), model(x))


def test_training_the_upper_half_trains_the_model():
    model = headed(residual_net())
    below, above = find_blocks(model).split("stack1")
    moved = moved_by_fit(above, below.output_shape[1:], 3)
    assert moved == {id(w) for b in find_blocks(model)[3:] for w in b.weights}


def test_there_is_no_cut_where_data_leaves_by_two_ways():
    blocks = find_blocks(two_towers())
    assert blocks[0].cut is None

    tokens, mask = keras.Input((5, 8)), keras.Input((5,), dtype="bool")
    x, visible = tokens, keras.ops.expand_dims(mask, 1)
    for i in range(3):
        x = layers.MultiHeadAttention(2, 4, name=f"layer{i}")(x, x, attention_mask=visible)
    blocks = find_blocks(keras.Model([tokens, mask], x))
    assert [b.cut is None for b in blocks] == [True, True, False]


def test_there_is_no_cut_where_a_mask_goes_along():
    x = inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(x)
    x = layers.LSTM(4, return_sequences=True)(x)
    x = layers.LSTM(4)(x)
    blocks = find_blocks(keras.Model(inputs, layers.Dense(2)(x)))
    assert [b.cut is None for b in blocks] == [True, True, False, False]


def test_a_mask_goes_along_into_a_nested_model():
    x = inner = keras.Input((None, 4))
    for _ in range(4):
        x = layers.LSTM(4, return_sequences=True)(x)
    inputs = keras.Input((6,), dtype="int32")
    x = keras.Model(inner, x)(layers.Embedding(9, 4, mask_zero=True)(inputs))
    x = layers.GlobalAveragePooling1D()(x)
    blocks = find_blocks(keras.Model(inputs, layers.Dense(2)(x)))
    assert blocks.names == ["stem", "block1", "block2", "block3", "block4", "head"]
    assert all(block.cut is None for block in blocks[:-1])


def test_a_mask_is_seen_in_models_that_were_built_without_it_until_it_ends():
    stack = keras.Sequential([keras.Input((6, 4))])
    for more in (True, True, False):
        stack.add(layers.LSTM(4, return_sequences=more))
    inputs = keras.Input((6, 4))
    masked = keras.Sequential([keras.Input((6, 4)), layers.Masking(), layers.Dense(4)])
    x = layers.Dense(8)(stack(masked(inputs)))
    blocks = find_blocks(keras.Model(inputs, layers.Dense(2)(x)))
    assert [b.cut is None for b in blocks[:-1]] == [True, True, True, False]


def test_a_model_called_twice_has_no_cuts_inside():
    tower = conv_net()
    a, b = keras.Input((32, 32, 3)), keras.Input((32, 32, 3))
    x = layers.Concatenate()([tower(a), tower(b)])
    x = layers.GlobalAveragePooling2D()(x)
    blocks = find_blocks(keras.Model([a, b], layers.Dense(2)(x)))
    assert all(block.cut is None for block in blocks[:3])
    assert blocks[-1].role == "head"

    tower = keras.Sequential([keras.Input((8,)), *(layers.Dense(8) for _ in range(3))])
    blocks = find_blocks(keras.Sequential([keras.Input((8,)), tower, tower, layers.Dense(2)]))
    assert all(block.cut is None for block in blocks[:2])


def test_a_network_that_always_reads_two_tensors_gives_blocks_without_cuts():
    last = x = inputs = keras.Input((64, 64, 3))
    for i in range(12):  # every cell reads the two before it, as NASNet's do
        stride = 2 if i % 3 == 2 else 1
        a = layers.Conv2D(4, 3, stride, padding="same")(x)
        b = layers.Conv2D(4, 1, x.shape[1] // a.shape[1] * last.shape[1] // x.shape[1])(last)
        last, x = x, layers.Add()([a, b])
    blocks = find_blocks(keras.Model(inputs, x))
    assert len(blocks) >= 4
    assert sum(block.cut is None for block in blocks) >= 3


def test_a_weight_that_no_call_reaches_belongs_to_the_last_block():
    model = residual_net()
    model.spare = layers.Dense(2)
    model.spare.build((None, 2))
    known = {id(weight) for weight in model.weights}  # Keras 3.12 does not count them
    spare = {id(weight) for weight in model.spare.weights} & known
    assert spare <= {id(weight) for weight in find_blocks(model)[-1].weights}


def test_a_shared_layer_belongs_to_the_first_block_that_uses_it():
    blocks = find_blocks(shared())
    homes = [b.name for b in blocks if any(layer.name == "again" for layer in b.layers)]
    assert homes == [blocks[0].name]


def test_a_subclassed_model_goes_by_its_tracked_layers():
    model = subclassed()
    blocks = find_blocks(model)
    assert [b.cut for b in blocks] == [None] * len(blocks)
    assert blocks[-1].role == "head" and blocks[-1].layers == [model.last]
    assert any(w is model.scale for w in blocks[0].weights)


# KerasHub ---------------------------------------------------------------------------------------


def test_keras_hub_resnet_with_pre_activation():
    import keras_hub

    backbone = keras_hub.models.ResNetBackbone(
        [64], [7], [64, 64, 64], [1, 1, 1], [1, 2, 2], "basic_block", use_pre_activation=True
    )
    classifier = keras_hub.models.ImageClassifier(backbone=backbone, num_classes=3)
    assert find_blocks(backbone).names == ["stem", "stack0", "stack1", "stack2"]
    blocks = find_blocks(classifier)
    assert blocks.names == ["stem", "stack0", "stack1", "stack2", "head"]
    assert all(b.cut is not None for b in blocks)


def test_keras_hub_vit_and_bert_give_a_block_a_transformer_layer():
    import keras_hub

    vit = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=8, num_layers=4, num_heads=2, hidden_dim=8, mlp_dim=8
    )
    assert [len(b.layers) for b in find_blocks(vit)] == [3, 8, 8, 8, 9]
    assert find_blocks(vit)[-1].cut is not None
    bert = keras_hub.models.BertBackbone(
        vocabulary_size=9,
        num_layers=3,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=6,
    )
    blocks = find_blocks(bert)
    assert blocks.names[:3] == ["stem", "transformer_layer_0", "transformer_layer_1"]
    assert all(b.cut is None for b in blocks[:3])  # a padding mask passes every layer
    assert "head" not in [b.role for b in blocks]


# What callers rely on ---------------------------------------------------------------------------


def test_weights_of_one_block_freeze_alone_even_those_a_composite_layer_holds():
    """Flags of variables, not of layers: `encoder.trainable = False` would reach every block."""
    model = transformer()
    blocks = find_blocks(model)
    for block in blocks:
        for weight in block.weights:
            weight.trainable = block.name != "stem"
    moved = moved_by_fit(model, (16, 16, 3), 2)
    assert moved == {id(w) for block in blocks[1:] for w in block.weights}


def test_blocks_show_as_a_table():
    blocks = find_blocks(residual_net())
    lines = repr(blocks).splitlines()
    assert lines[0].split() == ["block", "role", "layers", "parameters", "output"]
    assert lines[2].startswith("stem") and lines[2].endswith("32 x 32 x 4")
    assert blocks._repr_html_().count("<tr>") == len(blocks) + 1


def test_tables_align_numbers_right_and_escape_html():
    assert text_table([("a", 1), ("bb", 10)], ("x", "n")).splitlines()[2:] == ["a    1", "bb  10"]
    assert "&lt;b&gt;" in html_table([("<b>",)], ("x",))
    with pytest.raises(ValueError, match="cell for each"):
        text_table([("a",)], ("x", "n"))


def test_a_block_is_found_by_name():
    blocks = find_blocks(residual_net())
    assert blocks["stack1"] is blocks[2]
    with pytest.raises(KeyError, match="stack0.*'stack9'"):
        blocks["stack9"]


def test_a_block_without_a_cut_cannot_be_split():
    with pytest.raises(ValueError, match="encoder_layer_2.*cut is None"):
        find_blocks(transformer()).split("encoder_layer_0")


def test_models_without_blocks_are_refused():
    with pytest.raises(TypeError, match="found Dense"):
        find_blocks(layers.Dense(2))
    with pytest.raises(ValueError, match="built"):
        find_blocks(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="built"):
        find_blocks(Subclassed())
    with pytest.raises(ValueError, match="with weights"):
        find_blocks(keras.Sequential([keras.Input((2,)), layers.Rescaling(1.0)]))


def test_a_model_whose_weights_never_learn_is_one_block():
    model = keras.Sequential([keras.Input((2,)), layers.Normalization()])
    [block] = find_blocks(model)
    assert block.role == "bottom"
