"""Random small networks, plans and data, each drawn from a number, for `fuzz.py` to train.

`draw(number)` always builds the same case, with new objects: two of them share nothing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import tlkeras as tlk

CLASSES = 3
WORDS = ("ash", "bay", "elm", "fir", "oak")


@dataclass
class Case:
    """The arguments of one call of `fit_stages`, and their description in `said`.

    `coarse`: part of the network is computed in a number type of low precision.
    `plain`: a short loop of plain `fit` calls can do the same.
    `shared`: a sibling is trained with the same cache first.
    """

    model: keras.Model
    plan: list[tlk.Stage]
    data: Any
    validation: Any
    cache: Any
    options: dict[str, Any]
    said: list[str]
    coarse: bool
    plain: bool
    shared: bool


def draw(number: int, sibling: bool = False) -> Case:
    """Return a case; with `sibling`, one that differs only in settings of layers and operations."""
    rng = random.Random(number)
    keras.utils.clear_session()
    keras.utils.set_random_seed(number)
    net = Network(rng, sibling)
    model = net.model()
    _settle(model)
    _close(rng, net, model)
    data, validation, options = _data(rng, net)
    plan = _plan(rng, net, model, validation is not None)
    seed = rng.choice((None, number))
    options |= {"batch_size": 4, "seed": number if net.plain else seed, "verbose": 0}
    options |= _objective(rng, net, model)
    shared = rng.random() < 0.15 and not net.partner
    cache = rng.choices(("auto", "disk", tlk.FeatureCache(300)), (8, 1, 1))
    cache = [tlk.FeatureCache()] if shared else cache
    net.said += [f"{stage.name}: {_words(stage)}" for stage in plan]
    net.said.append("cache shared with a sibling" if shared else f"cache={cache[0]}")
    plain = net.plain and not net.held and isinstance(data, tuple)
    return Case(
        model, plan, data, validation, cache[0], options, net.said, net.coarse, plain, shared
    )


# Custom layers -----------------------------------------------------------------------------------


class Own(layers.Layer):
    """A custom layer with inner layers and a weight; `do` says what it does in training."""

    def __init__(self, width: int, do: str = "", amount: float = 0.0, **options: Any):
        super().__init__(**options)
        self.width, self.do, self.amount = width, do, amount
        self.dense, self.norm = layers.Dense(width), layers.LayerNormalization()
        if do in ("depth", "noise"):
            self.seeds = keras.random.SeedGenerator(7)

    def build(self, shape: tuple) -> None:
        self.dense.build(shape)
        self.norm.build((*shape[:-1], self.width))
        self.token = self.add_weight(shape=(self.width,), initializer="normal", name="token")
        if self.do == "counts":
            self.count = self.add_weight(shape=(), name="count", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        y = self.norm(self.dense(x)) + self.token
        if self.do == "mixes":
            return y - self.amount * ops.mean(y, axis=0, keepdims=True)
        if not training or not self.do:
            return y
        if self.do == "depth":  # leaves some examples out
            drawn = keras.random.uniform((ops.shape(x)[0],), seed=self.seeds)
            kept = ops.reshape(drawn, (-1, *[1] * (len(x.shape) - 1))) >= self.amount
            return y * ops.cast(kept, y.dtype)
        if self.do == "noise":
            return y + self.amount * keras.random.normal(ops.shape(y), seed=self.seeds)
        if self.do == "adds":
            self.add_loss(self.amount * ops.mean(ops.square(y)))
            return y
        if self.do == "counts":
            self.count.assign(self.count + 1)
        return y * (1 + self.amount)


class Configured(Own):
    def get_config(self) -> dict:
        return super().get_config() | {"width": self.width, "do": self.do, "amount": self.amount}


class Normed(layers.Wrapper):
    """Calls its Dense layer with kernel columns scaled to length 1."""

    def call(self, x: Any) -> Any:
        kernel = self.layer.kernel
        length = ops.sqrt(1e-3 + ops.sum(ops.square(kernel), axis=0))
        return ops.matmul(x, kernel / length) + self.layer.bias


class Subclassed(keras.Model):
    """A model around another one, without a graph that can be cut."""

    def __init__(self, inner: keras.Model):
        super().__init__()
        self.inner, self.built = inner, True

    def call(self, x: Any, training: bool = False) -> Any:
        return self.inner(x, training=training)


def crooked(x: Any) -> Any:
    return x * ops.sigmoid(1.1 * x)


# Networks ---------------------------------------------------------------------------------------

Maker = Callable[[random.Random, int], keras.Layer]  # (rng, width of the last axis) -> a layer
ANY: dict[str, Maker] = {
    "Dense": lambda r, w: layers.Dense(r.choice((w, w + 1)), r.choice((None, "relu", "tanh"))),
    "Dense with a penalty": lambda r, w: layers.Dense(w, "gelu", kernel_regularizer="l2"),
    "LayerNormalization": lambda r, w: layers.LayerNormalization(),
    "BatchNormalization": lambda r, w: layers.BatchNormalization(momentum=0.8),
    "Activation": lambda r, w: layers.Activation(r.choice(("relu", "silu", "softmax", "elu"))),
    "Activation of one's own": lambda r, w: layers.Dense(w, crooked),
    "PReLU": lambda r, w: layers.PReLU(),
    "Rescaling": lambda r, w: layers.Rescaling(r.choice((0.5, 2.0)), offset=0.1),
    "Own": lambda r, w: r.choice((Own, Configured))(w),
    "Own that asks for training": lambda r, w: Configured(w, "grows"),
    "Lambda": lambda r, w: layers.Lambda(lambda x: ops.tanh(x) * 1.5),
    "Normed": lambda r, w: Normed(layers.Dense(w)),
}
IMAGE: dict[str, Maker] = {
    "Conv2D": lambda r, w: layers.Conv2D(w, 3, r.choice((1, 1, 2)), "same", activation="relu"),
    "Conv2D without bias": lambda r, w: layers.Conv2D(w + 1, 2, 1, "same", use_bias=False),
    "DepthwiseConv2D": lambda r, w: layers.DepthwiseConv2D(3, padding="same"),
    "SeparableConv2D": lambda r, w: layers.SeparableConv2D(w, 3, padding="same"),
    "GroupNormalization": lambda r, w: layers.GroupNormalization(1),
    "MaxPooling2D": lambda r, w: layers.MaxPooling2D(2, padding="same"),
    "ZeroPadding2D": lambda r, w: layers.ZeroPadding2D(1),
    "UpSampling2D": lambda r, w: layers.UpSampling2D(2),
}
SEQUENCE: dict[str, Maker] = {
    "Conv1D": lambda r, w: layers.Conv1D(w, 3, padding="same", activation="relu"),
    "GRU": lambda r, w: layers.GRU(w, return_sequences=True),
    "LSTM": lambda r, w: layers.LSTM(w, return_sequences=True),
    "Bidirectional": lambda r, w: layers.Bidirectional(
        layers.SimpleRNN(w, return_sequences=True), "sum"
    ),
    "TimeDistributed": lambda r, w: layers.TimeDistributed(layers.Dense(w)),
    "Masking": lambda r, w: layers.Masking(),
    "Permute": lambda r, w: layers.Permute((2, 1)),
}
ODD: dict[str, Maker] = {  # behave differently in training or in other batches, or in subtle ways
    "Dropout": lambda r, w: layers.Dropout(r.choice((0.0, 0.01, 0.3)), seed=r.choice((None, 5))),
    "GaussianNoise": lambda r, w: layers.GaussianNoise(r.choice((1e-4, 0.3))),
    "GaussianDropout": lambda r, w: layers.GaussianDropout(0.2),
    "stochastic depth": lambda r, w: Configured(w, "depth", r.choice((0.01, 0.5))),
    "own noise": lambda r, w: Own(w, "noise", r.choice((1e-3, 0.3))),
    "grows in training": lambda r, w: Own(w, "grows", r.choice((1e-3, 0.5))),
    "adds to the loss": lambda r, w: Own(w, "adds", 0.1),
    "counts its calls": lambda r, w: Own(w, "counts", 0.1),
    "mixes examples": lambda r, w: Own(w, "mixes", r.choice((0.01, 0.5))),
    "SpectralNormalization": lambda r, w: layers.SpectralNormalization(layers.Dense(w)),
    "activity regularizer": lambda r, w: layers.Dense(w, activity_regularizer="l2"),
    "bfloat16": lambda r, w: layers.Dense(w, dtype="mixed_bfloat16"),
    "float16": lambda r, w: layers.Activation("tanh", dtype="float16"),
    "float64": lambda r, w: layers.Dense(w, dtype="float64"),
    "Softmax over examples": lambda r, w: layers.Softmax(axis=0),
}
ODD_IMAGE: dict[str, Maker] = {
    "RandomFlip": lambda r, w: layers.RandomFlip(seed=r.choice((None, 5))),
    "SpatialDropout2D": lambda r, w: layers.SpatialDropout2D(0.2),
}
ODD_SEQUENCE: dict[str, Maker] = {
    "SpatialDropout1D": lambda r, w: layers.SpatialDropout1D(0.2),
    "GRU with dropout": lambda r, w: layers.GRU(w, return_sequences=True, dropout=0.2),
    "LSTM with recurrent dropout": lambda r, w: layers.LSTM(
        w, return_sequences=True, recurrent_dropout=0.2
    ),
}
OPERATIONS: dict[str, Callable] = {
    "ops": lambda x: ops.relu(x) * 2.0 - 0.5,
    "ops.flip": lambda x: ops.flip(x, axis=-1),
    "reversed": lambda x: x[:, ::-1],
    "ops.mean of the axis": lambda x: x - ops.mean(x, axis=-1, keepdims=True),
    "ops.concatenate": lambda x: ops.concatenate([x, 1 - x], axis=-1),
}
OF_RANK = {4: IMAGE, 3: SEQUENCE, 2: {}}
ODD_OF_RANK = {4: ODD_IMAGE, 3: ODD_SEQUENCE, 2: {}}


class Next:
    """Draws like `rng`, but sometimes takes the next choice instead."""

    def __init__(self, rng: random.Random):
        self.rng, self.coin = rng, random.Random(str(rng.getstate()))

    def choice(self, options: Any) -> Any:
        place = options.index(self.rng.choice(options)) + (self.coin.random() < 0.4)
        return options[place % len(options)]


class Network:
    """Draws a network, and records what it draws."""

    def __init__(self, rng: random.Random, sibling: bool):
        self.rng, self.said = rng, list[str]()
        self.settings: Any = Next(rng) if sibling else rng
        self.coarse = False
        self.held = False  # whether tlkeras keeps a state fixed that a plain loop would change
        self.odd = rng.random() < 0.45  # whether odd layers are allowed
        self.plain = rng.random() < 0.2  # whether a short loop of plain `fit` calls does the same
        self.kind = rng.choice(("image", "image", "any image", "sequence", "tokens", "vector"))
        if rng.random() < 0.05:
            self.kind = "text"
        self.partner = "" if self.kind == "text" else rng.choice(("", "", "", "", "vector", "twin"))
        self.outputs = rng.choice((1, 1, 1, 2))
        self.everywhere = layers.LeakyReLU() if rng.random() < 0.15 else None  # one layer, reused
        self.denses = dict[int, keras.Layer]()  # for each width, a layer that is reused
        self.target = "class" if self.outputs == 2 else rng.choice(("class", "one-hot", "number"))

    def model(self) -> keras.Model:
        inputs, features = self._inputs()
        x = features[0] if len(features) == 1 else self._fused(features)
        if self.rng.random() < 0.4:
            x = self._again(x) if self.denses else self._layer(x)
        x = self.everywhere(x) if self.everywhere else x
        if self.outputs == 2:
            outputs = {
                "kind": layers.Dense(CLASSES, name="kind")(x),
                "size": layers.Dense(1, name="size")(x),
            }
        else:
            outputs = layers.Dense(1 if self.target == "number" else CLASSES, name="logits")(x)
            outputs = layers.Activation("linear", dtype="float32")(outputs)
        model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)
        if self.outputs == 1 and self.rng.random() < 0.04:
            self.said.append("Subclassed")
            model = Subclassed(model)
        return model

    def _inputs(self) -> tuple[list, list]:
        """Return the inputs, and a vector from each."""
        flat = self.rng.random() < 0.4
        self.said.append(f"{'flat' if flat else 'nested'} {self.kind} {self.partner}".strip())
        first = self._input(self.kind, "one")
        if flat:
            x = self._pooled(self._trunk(self._entry(first)))
            inputs, features = [first], [x]
            self.partner = self.partner and "vector"
        else:
            inside = self._input(self.kind, "image")
            trunk = self._trunk(self._entry(inside))
            pool = self.rng.random() < 0.5  # inside the backbone rather than after it
            backbone = keras.Model(inside, self._pooled(trunk) if pool else trunk, name="backbone")
            inputs = [first]
            inputs += [self._input(self.kind, "two")] if self.partner == "twin" else []
            features = [backbone(given) for given in inputs]
            features = features if pool else [self._pooled(x) for x in features]
        if self.partner == "vector":
            inputs.append(self._input("vector", "two"))
            features.append(self._layer(inputs[-1]))
        return inputs, features

    def _input(self, kind: str, name: str) -> keras.KerasTensor:
        shape: tuple = {"vector": (6,), "sequence": (3, 4), "tokens": (3,), "text": (3,)}.get(
            kind, (8, 8, 3) if kind == "image" else (None, None, 3)
        )
        kinds = {"tokens": "int32", "text": "string"}
        return keras.Input(shape, name=name, dtype=kinds.get(kind, "float32"))

    def _entry(self, x: Any) -> Any:
        masked = self.rng.random() < 0.5
        if self.kind == "text":
            x = layers.StringLookup(vocabulary=list(WORDS))(x)
        if self.kind in ("tokens", "text"):
            self.said.append("Embedding" + " with a mask" * masked)
            return layers.Embedding(len(WORDS) + 1, 4, mask_zero=masked)(x)
        return x

    def _trunk(self, x: Any) -> Any:
        for _ in range(self.rng.choice((2, 2, 3))):
            x = self._step(x)
            x = self.everywhere(x) if self.everywhere else x
        return x

    def _step(self, x: Any) -> Any:
        rank = len(x.shape)
        options = ["layer"] * 8 + ["branch", "nested", "sequential", "shared", "operation", "again"]
        options += ["attention"] * 2 if rank == 3 else []
        if rank == 4 and None not in x.shape[1:]:
            options.append("to a sequence")
        what = self.rng.choice(options)
        if what == "layer":
            return self._layer(x)
        self.said.append(what + ":")
        return getattr(self, "_" + what.replace(" ", "_"))(x)

    def _layer(self, x: Any) -> Any:
        return self._made(x)(x)

    def _made(self, x: Any) -> keras.Layer:
        """Return a random layer that can be called on `x`."""
        rank = len(x.shape)
        known, odd = ANY | OF_RANK[rank], ODD | ODD_OF_RANK[rank]
        specific = list(OF_RANK[rank]) * 2  # twice, since there are fewer of them
        names = list(odd) if self.odd and self.rng.random() < 0.35 else [*known, *specific]
        if None in x.shape[1:]:
            names = [name for name in names if name not in ("PReLU", "Permute")]
        name = self.rng.choice(names)
        self.said.append(name)
        self.coarse |= name in ("bfloat16", "float16")
        self.held |= name in ("SpectralNormalization", "counts its calls")
        return (known | odd)[name](self.settings, x.shape[-1])

    def _branch(self, x: Any) -> Any:
        width = x.shape[-1]
        layer = self._made(x)
        pair = [layer(x), layers.Dense(width)(x)]
        pair[0] = layers.Dense(width)(pair[0])
        image = keras.KerasTensor([size or 8 for size in x.shape], x.dtype)  # unknown sizes: 8
        if layer.compute_output_spec(image).shape[:-1] != image.shape[:-1]:
            return pair[0]
        if self.rng.random() < 0.5:
            pair.reverse()
        return self.rng.choice(
            (layers.Add(), layers.Concatenate(), layers.Multiply(), layers.Subtract())
        )(pair)

    def _nested(self, x: Any) -> Any:
        inner = keras.Input(x.shape[1:], dtype=x.dtype)
        model = keras.Model(inner, layers.Dense(x.shape[-1])(self._layer(self._layer(inner))))
        y = model(x)
        twice = self.rng.random() < 0.3 and y.shape == x.shape
        return model(y) if twice else y

    def _sequential(self, x: Any) -> Any:
        model = keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype)])
        for _ in range(2):
            model.add(self._made(model.outputs[0] if model.layers else x))
        return model(x)

    def _shared(self, x: Any) -> Any:
        layer = layers.Dense(x.shape[-1], "tanh")
        return layers.Add()([layer(x), layer(layer(x))])

    def _again(self, x: Any) -> Any:
        width = x.shape[-1]
        return self.denses.setdefault(width, layers.Dense(width, "tanh"))(x)

    def _operation(self, x: Any) -> Any:
        name = self.settings.choice(list(OPERATIONS))
        self.said.append(name)
        return OPERATIONS[name](x)

    def _attention(self, x: Any) -> Any:
        kind = self.rng.choice(("MultiHeadAttention", "Attention", "with dropout"))
        self.said.append(kind)
        if kind == "Attention":
            return layers.Attention()([x, x])
        rate = 0.1 if kind == "with dropout" and self.odd else 0.0
        return layers.Add()([x, layers.MultiHeadAttention(2, 2, dropout=rate)(x, x)])

    def _to_a_sequence(self, x: Any) -> Any:
        return layers.Reshape((-1, x.shape[-1]))(x)

    def _pooled(self, x: Any) -> Any:
        rank = len(x.shape)
        if rank == 2:
            return x
        pools = {4: ("GlobalAveragePooling2D", "GlobalMaxPooling2D"), 3: ("GlobalMaxPooling1D",)}
        choices = [*pools[rank], *(["LSTM"] if rank == 3 else [])]
        if None not in x.shape[1:] and getattr(x, "_keras_mask", None) is None:
            choices.append("Flatten")
        name = self.rng.choice(choices)
        self.said.append(name)
        return layers.LSTM(5)(x) if name == "LSTM" else getattr(layers, name)()(x)

    def _fused(self, features: list) -> Any:
        alike = features[0].shape == features[1].shape
        if self.partner == "twin" and alike and self.rng.random() < 0.5:
            return ops.abs(features[0] - features[1])
        return layers.Concatenate()(features)

    # What is fed --------------------------------------------------------------------------------

    def examples(self, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return an array for each input; one example occurs twice."""
        kinds = [self.kind] + {"": [], "twin": [self.kind], "vector": ["vector"]}[self.partner]
        arrays = []
        for kind in kinds:
            shape = {"vector": (6,), "sequence": (3, 4)}.get(kind, (8, 8, 3))
            x = rng.normal(size=(count, *shape)).astype("float32")
            if kind == "sequence":
                x[:, 2:][rng.random(count) < 0.5] = 0  # masked
            elif kind in ("tokens", "text"):
                x = rng.integers(0, len(WORDS) + 1, size=(count, 3)).astype("int32")
                x = np.array([*WORDS, "yew"], object)[x] if kind == "text" else x
            x[count // 2] = x[0]
            arrays.append(x)
        return arrays

    def labels(self, count: int, rng: np.random.Generator) -> Any:
        kind = rng.integers(CLASSES, size=count)
        size = rng.normal(size=(count, 1)).astype("float32")
        if self.outputs == 2:
            return {"kind": kind, "size": size}
        one_hot = np.eye(CLASSES, dtype="float32")[kind]
        return {"class": kind, "one-hot": one_hot, "number": size}[self.target]


def _settle(model: keras.Model) -> None:
    """Give biases and statistics random values, as in a trained network, instead of 0 or 1."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("bias", "beta", "moving_mean"):
            weight.assign(rng.normal(0, 0.1, weight.shape))
        elif weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))


def _close(rng: random.Random, net: Network, model: keras.Model) -> None:
    """Sometimes freeze a layer, as a user might; it then stays frozen."""
    inside = [x for x in model._flatten_layers() if type(x) is layers.Dense and x.name != "logits"]
    if inside and not net.plain and rng.random() < 0.1:
        layer = rng.choice(inside)
        layer.trainable = False
        net.said.append(f"{layer.name} is closed")


# Data -------------------------------------------------------------------------------------------


class Batches(keras.utils.PyDataset):
    """Batches of 4; `changing`: different examples every epoch; `turning`: a different order."""

    def __init__(self, parts: tuple, changing: bool = False, turning: bool = False):
        super().__init__()
        self.parts, self.changing, self.turning, self.epoch = parts, changing, turning, 0

    def __len__(self) -> int:
        return -(-len(keras.tree.flatten(self.parts)[0]) // 4)

    def __getitem__(self, number: int) -> tuple:
        rng = np.random.default_rng([self.epoch, number])
        number = (number + self.epoch) % len(self) if self.turning else number
        x, *rest = keras.tree.map_structure(lambda a: a[4 * number : 4 * number + 4], self.parts)
        if self.changing:
            x = keras.tree.map_structure(
                lambda a: (
                    a + rng.normal(size=a.shape).astype(a.dtype)
                    if a.dtype.kind == "f"
                    else rng.permutation(a)
                ),
                x,
            )
        return (x, *rest)

    def on_epoch_end(self) -> None:
        self.epoch += 1


KINDS = ("arrays",) * 4 + ("lists", "batches", "turning", "changing")
KINDS += ("tf.data", "tf.data shuffled", "tf.data shuffled anew", "tf.data changing")


def _data(rng: random.Random, net: Network) -> tuple[Any, Any, dict]:
    """Return training data, validation data or None, and sometimes a class_weight."""
    kind = rng.choice(KINDS if net.kind != "text" else KINDS[-4:])
    kind = "arrays" if net.plain and net.kind != "text" else kind
    weighted = net.outputs == 1 and rng.random() < 0.25
    count = rng.choice((5, 7, 8))
    data = _made(kind, rng, net, count, weighted, seed=1)
    checked = rng.choice(("none", "same kind", "same kind", "arrays"))
    if net.kind == "text" and checked == "arrays":
        checked = "same kind"
    other = {"same kind": kind, "arrays": "arrays"}.get(checked)
    validation = other and _made(other, rng, net, 3, weighted and rng.random() < 0.5, seed=2)
    options = {}
    if not weighted and net.outputs == 1 and net.target != "number" and rng.random() < 0.2:
        options["class_weight"] = {0: 2.0, 1: 0.5, 2: 1.0}
    net.said.append(
        f"{count} examples as {kind}{' with weights' * weighted}, validation: {checked}, {options}"
    )
    return data, validation, options


def _made(
    kind: str, rng: random.Random, net: Network, count: int, weighted: bool, seed: int
) -> Any:
    numbers = np.random.default_rng([seed, count])
    x: Any = net.examples(count, numbers)
    names = ("one", "two")[: len(x)]
    single = x if kind == "arrays" and rng.random() < 0.2 else x[0]
    several = (dict(zip(names, x, strict=False)), tuple(x), x if kind == "arrays" else tuple(x))
    x = single if len(x) == 1 else rng.choice(several)
    parts: tuple = (x, net.labels(count, numbers))
    parts += (numbers.uniform(0, 2, count).astype("float32"),) if weighted else ()
    if kind == "lists":
        single = not isinstance(x, dict | tuple) and net.outputs == 1
        return tuple(part.tolist() for part in parts) if single else parts
    if kind == "arrays":
        return parts
    if not kind.startswith("tf.data"):
        return Batches(parts, kind == "changing", kind == "turning")
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(parts)
    if "shuffled" in kind:
        data = data.shuffle(count, seed=None if kind.endswith("anew") else 3)
    if kind.endswith("changing") and net.kind not in ("tokens", "text"):
        data = data.map(
            lambda x, *rest: (
                tf.nest.map_structure(lambda t: t + tf.random.normal(t.shape, seed=4), x),
                *rest,
            )
        )
    return data.batch(4)


# Plans ------------------------------------------------------------------------------------------


def _plan(rng: random.Random, net: Network, model: keras.Model, validated: bool) -> list[tlk.Stage]:
    blocks = tlk.find_blocks(model)
    head = [block.name for block in blocks if block.role == "head"]
    policies = [tlk.policies.all_blocks(), tlk.policies.named(*blocks.names[-2:])]
    if head:
        below = len(blocks) - len(head)
        policies += [tlk.policies.head_only()] * 8
        policies += [tlk.policies.last_blocks(n) for n in range(1, below)] * 2
    if head and any(block.role == "middle" for block in blocks):
        policies.append(tlk.policies.middle_blocks())
    policies.append(tlk.policies.named(*rng.sample(blocks.names, rng.randint(1, len(blocks)))))
    stages = []
    for number in range(rng.choice((1, 1, 1, 2, 2, 3))):
        augment = rng.choices(
            (None, layers.Rescaling(0.9), layers.GaussianNoise(0.2, seed=2)), (14, 1, 1)
        )[0]
        numeric = net.kind not in ("tokens", "text") and not net.partner
        augment = augment if numeric and not net.plain else None
        sure = isinstance(augment, layers.Rescaling) and rng.random() < 0.7
        by_block = (tlk.optimizers.layerwise_decay(0.5), lambda b: 0.5 + (b.role == "head"))
        rates = rng.choice((None, None, None, *by_block))
        rate: Any = rng.choice((0.1, 0.01))
        if rng.random() < 0.1:
            rate = keras.optimizers.schedules.ExponentialDecay(rate, 2, 0.5)
        stages.append(
            tlk.Stage(
                f"stage{number}",
                rng.choice(policies),
                rate,
                rng.choice((1, 1, 1, 2)),
                rng.choice(("frozen", "frozen", "train", "train" if net.plain else "affine")),
                patience=1 if validated and not net.plain and rng.random() < 0.2 else None,
                rates=None if net.plain else rates,
                augment=augment,
                views=2 if sure else None,
            )  # fmt: skip
        )
    return stages


def _words(stage: tlk.Stage) -> str:
    given = [f"{stage.policy}", f"{stage.epochs} epochs", f"BatchNorm {stage.batchnorm}"]
    given += [f"rate {stage.rate_text}"] + [f"patience {stage.patience}"] * bool(stage.patience)
    return ", ".join(given + [f"{stage.augment}, views={stage.views}"] * bool(stage.augment))


class Watch(keras.callbacks.Callback):
    """A callback that is called after every batch."""

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        pass


def _objective(rng: random.Random, net: Network, model: keras.Model) -> dict[str, Any]:
    """Return loss, metrics, optimizer and callbacks; sometimes the model is compiled instead."""
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    one_hot = keras.losses.CategoricalCrossentropy(from_logits=True)
    loss = {"class": sparse, "one-hot": one_hot, "number": "mse"}[net.target]
    metrics: Any = rng.choice((None, ["mae"])) if net.target == "number" else ["accuracy"]
    if net.outputs == 2:
        loss, metrics = {"kind": sparse, "size": "mse"}, {"kind": ["accuracy"], "size": ["mae"]}
    kinds = keras.optimizers
    optimizer = rng.choice(
        (
            kinds.SGD(), kinds.SGD(), kinds.SGD(momentum=0.9, nesterov=True), kinds.Adagrad(),
            kinds.SGD(clipnorm=0.5), kinds.Adam(epsilon=0.01), kinds.RMSprop(epsilon=0.01),
            kinds.AdamW(epsilon=0.01, weight_decay=0.1), kinds.SGD(use_ema=True, ema_momentum=0.5),
        )
    )  # fmt: skip
    given = {"loss": loss, "metrics": metrics, "optimizer": optimizer, "jit_compile": False}
    if net.plain:
        given["optimizer"] = optimizer = kinds.SGD()
    elif rng.random() < 0.15:
        net.said.append("compiled before")
        model.compile(**given)
        given = {}
    callbacks = [[], [], [Watch()], [keras.callbacks.EarlyStopping("loss", patience=1)]]
    given["callbacks"] = [] if net.plain else rng.choice(callbacks)
    said = type(optimizer).__name__ + " momentum" * bool(getattr(optimizer, "momentum", 0))
    net.said.append(
        f"{net.target}, {said}, {', '.join(type(c).__name__ for c in given['callbacks'])}"
    )
    return given
