# %% [markdown]
# # 8.3 · Head swapping: the same network, another last part
#
# **The question.** A pretrained network ends in answers that you do not need. What should replace
# them: one plain layer, a larger network, or something that looks at *where* things are?
#
# **The promise.** In about half a minute on two cores you remove the thousand ImageNet answers from
# a network and add your own. You cut the network at a better depth and try a recurrent head and a
# transformer head there. You learn which head paid off here, and why. *(Section 1.8 of the course,
# number 3; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np
from sklearn.metrics import balanced_accuracy_score

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_03")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# Think of a kitchen machine. The motor is expensive and stays; the attachment decides whether it
# kneads, slices or grinds. The motor is the **[backbone](glossary.md#backbone)**, the attachment is
# the **[head](glossary.md#head)**. A new task needs a new head. Its outputs always change, because
# a lesion is not one of ImageNet's cats, dogs and buses. The head's architecture changes only if
# that pays.
#
# What does a head see? A network outputs a **[feature map](glossary.md#feature-map)**: a list of
# numbers for every position in the image. The usual head **[pools](glossary.md#pooling)** it, which
# means that it averages over the positions: *what* is there is kept, and *where* it is is lost. A
# head on the map itself can use both.
#
# Our task is `lesions`: seven classes of marks on skin, with thirty labelled images per class. They
# are **synthetic** and have no medical validity.

# %% alt="A row of seven small synthetic images of skin, one of each class; they differ in colour, border and texture."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
images, labels = task.arrays("train")[:2]
task.show(rows=1, columns=7)

# %% [markdown]
# ## By hand: off with the old head
#
# `tlk.load_classifier` plays the role of `keras.applications.EfficientNetB0()`: it loads a whole
# network with its 1,000 outputs. None of them is a lesion. Its layers form a sequence, so take all
# but the last and add a new one.

# %%
classifier = tlk.load_classifier("efficientnet_lite0")
old_head = classifier.layers[-1]
print(old_head.name, "answers", classifier.output_shape[-1])

# %%
classifier.trainable = False  # the old network, before the new head is added
by_hand = keras.Sequential([*classifier.layers[:-1], keras.layers.Dense(len(task.classes))])
count = sum(np.prod(weight.shape) for weight in by_hand.trainable_weights)
total = by_hand.count_params()
print(f"{by_hand.output_shape[-1]} answers; {count:,} of {total:,} parameters are trainable")

# %% [markdown]
# That is all. A new head is needed even if the number of classes is the same: the third output of
# the old head is a kind of shark.
#
# ## The same with tlkeras
#
# `tlk.heads.swap_head` finds the head by itself, in Keras and KerasHub networks or your own,
# including models nested inside a model. The layers that stay are the same objects with the same
# weights, and stay frozen or trainable as they were. If a head cannot be swapped, it raises an
# error that says why.

# %% tags=["nbval-check-output"]
swapped = tlk.heads.swap_head(classifier, keras.layers.Dense(len(task.classes)))
name = "efficient_net_backbone"
before, after = (model.get_layer(name).get_weights() for model in (classifier, swapped))
changed = 0
for old, new in zip(before, after, strict=True):
    changed += not np.array_equal(old, new)
tlk.table(
    [
        ["answers", classifier.output_shape[-1], swapped.output_shape[-1]],
        ["arrays of the backbone", len(before), len(after)],
        ["of these changed", "", changed],
        ["trainable arrays", len(classifier.trainable_weights), len(swapped.trainable_weights)],
    ],
    ["", "before", "after"],
)

# %% [markdown]
# ## A head that sees positions
#
# Now for heads that need the map. At our image size, the last map of this network is 3 × 3, too
# coarse to tell positions apart. In the middle of the network there are 6 × 6 positions, and a
# linear probe there is only four points less accurate on lesions than at the end (61 against 65 %,
# [chapter 8.1](08_01_feature_extraction.ipynb)). So cut the network after that block. Four fifths
# of its parameters are then no longer needed.

# %%
whole = tlk.load_backbone(setting.backbone, setting.image_size)
blocks = tlk.find_blocks(whole)
backbone, _ = blocks.split(blocks.names[-2])
backbone.trainable = False
model = tlk.add_head(backbone, len(task.classes))
height, width, channels = backbone.output_shape[1:]
print(f"after {blocks.names[-2]}: {height} x {width} positions, {channels} numbers each")

# %% [markdown]
# The network stays [frozen](glossary.md#freeze), so its output for every image is computed once.
# Every head below also gets the same scaling: each channel is normalised to mean 0 and
# [spread](glossary.md#spread) 1, which needs no labels.

# %%
held, truth = (part[: 10 * 40] for part in task.arrays("validation")[:2])
maps = backbone.predict(images, batch_size=70, verbose=0)
held_maps = backbone.predict(held, batch_size=100, verbose=0)
scale = keras.layers.Normalization()
scale.adapt(maps)


# %% [markdown]
# Here are four heads, each a function from one tensor to another. The recurrent one (GRU) reads the
# map row by row, as you read a page. The transformer block is the "ViT block" that is sometimes put
# on an EfficientNet. It lets each position look at all others (**attention**), then passes each
# through a small network. It cannot tell where a position is, so a position embedding is added.


# %%
def linear(x):
    return keras.layers.Dense(7)(keras.layers.GlobalAveragePooling2D()(scale(x)))


def mlp(x):
    x = keras.layers.GlobalAveragePooling2D()(scale(x))
    return keras.layers.Dense(7)(keras.layers.Dense(256, "relu")(x))


def rows(x):
    pages = keras.layers.Reshape((height, width * channels))(scale(x))
    return keras.layers.Dense(7)(keras.layers.GRU(64)(pages))


# %%
import keras_hub


def transformer(x):
    positions = keras.layers.Reshape((height * width, channels))(scale(x))
    positions += keras_hub.layers.PositionEmbedding(height * width)(positions)
    seen = keras_hub.layers.TransformerEncoder(376, 4, dropout=0.1, normalize_first=True)(positions)
    seen = keras.layers.LayerNormalization()(seen)
    return keras.layers.Dense(7)(keras.layers.GlobalAveragePooling1D()(seen))


heads = {"linear": linear, "MLP": mlp, "GRU over rows": rows, "transformer block": transformer}
models = {name: tlk.heads.swap_head(model, head, at="map") for name, head in heads.items()}

# %% tags=["nbval-check-output"]
rows_of_table = []
for name, one in models.items():
    learning = tlk.freeze(one, tlk.policies.head_only())
    rows_of_table.append([name, learning.trainable_params, learning.params])
tlk.table(rows_of_table, ["head", "trainable parameters", "parameters in total"])

# %% [markdown]
# Now train three of them on the stored maps. The head alone is a model from map to logits, which
# `blocks.split` returns. It shares its layers with the whole model, so training it trains the whole
# model's head, too.


# %%
def fit_head(name, rate, epochs=20):
    """Balanced accuracy in % on validation images."""
    keras.utils.set_random_seed(SEED)
    parts = tlk.find_blocks(models[name])
    _, head = parts.split([block.name for block in parts if block.role != "head"][-1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head.compile(keras.optimizers.AdamW(rate), loss, jit_compile=False)
    head.fit(maps, labels, batch_size=32, epochs=epochs, verbose=0)
    said = head.predict(held_maps, verbose=0).argmax(axis=1)
    return 100 * balanced_accuracy_score(truth, said)


rates = {"linear": 1e-2, "MLP": 1e-3, "GRU over rows": 1e-3}
tlk.table([[name, fit_head(name, rate)] for name, rate in rates.items()], ["head", "%"], digits=0)

# %% [markdown]
# This is a single draw, and some classes are rare among the 400 images. It shows that the code
# runs, not which head is better.
#
# ## Which head pays?
#
# In the stored runs all heads get the same treatment: the same maps, 400 steps, and batches in
# which all classes are equally frequent. Each head has its own best learning rate out of four,
# chosen on validation images with other draws (the highest for the linear head and the GRU, the
# lowest for the convolution). There are thirty labels per class and five [draws](glossary.md#draw),
# and scores are [balanced accuracy](glossary.md#balanced-accuracy) on all test images. Two more
# heads are included. A large MLP is the control for **size**: it has as many parameters as the GRU.
# A convolution, which slides one small window over the map, is equally large.

# %% tags=["plumbing"]
stored = tlk.results("heads", part="test", labels_per_class=30)
MAIN = ["linear", "MLP", "large MLP", "convolution", "GRU over rows", "transformer block"]
scores = stored.scores("head", scale=100)
size, took = (stored.scores("head", value=v) for v in ("parameters", "seconds"))

# %% alt="Bars of balanced accuracy at 30 labels per class: linear 65, MLP 66, large MLP 65, convolution 72, GRU over rows 65, transformer block 67; spreads are one to two points."
tlk.plots.bars({name: scores[name] for name in MAIN},
               title="Heads on one frozen map, lesions (synthetic), 30 labels")  # fmt: skip

# %% tags=["nbval-check-output"]
tlk.table(
    [[name, f"{size[name][0]:,.0f}", scores[name]] for name in MAIN],
    ["head", "trainable parameters", "balanced accuracy (%)"],
    note=stored.note,
)

# %% [markdown]
# **Looking at positions can pay; size alone does not.** The convolution is six and a half points
# ahead of both the single layer and the large MLP, which has as many parameters (± 0.8, the
# standard error of the mean difference in the same draws). Of the two MLPs, the small one is 1.2 ±
# 0.4 ahead of the single layer and the large one is level. The transformer block is 2.2 ± 1.2
# ahead, a tie with these 210 images. The GRU sees the same map, is just as large, and ties with the
# single layer. The advantage of the convolution is a better assumption about images: what matters
# is small and can be anywhere. A likely reason for the others: the GRU reads a row of the map as
# 672 numbers at once, and the transformer has to learn which positions are neighbours.
#
# ## Is it the positions?
#
# A head on the map has more numbers to look at than one on pooled features. Three controls test
# whether that explains the gain. A **flattened** MLP sees every number of the map at its position
# and has as many parameters as the GRU, but nothing tells it that two positions are neighbours. The
# other two are the convolution and the GRU again, on maps whose 36 positions are **shuffled**
# differently in each image: all the features are still there, but not where they were.

# %% tags=["nbval-check-output"]
CONTROLS = ["linear", "large MLP", "flattened MLP", "convolution", "convolution, shuffled",
            "GRU over rows", "GRU, shuffled"]  # fmt: skip
tlk.table({name: scores[name] for name in CONTROLS}, "head, 30 labels", digits=0)

# %% [markdown]
# With shuffled positions the convolution loses nine and a half points (± 0.9) and ends three below
# the single layer: its lead came entirely from *where* things are. The flattened MLP also has every
# position, but reaches only 61. So the head needs the right architecture, one that treats positions
# as neighbours and not as 4,032 separate numbers.
#
# ## Where it fails
#
# A head on the map takes its input as it is, and the channels of a map differ in scale. Here is the
# same GRU on the map without the `Normalization`, at its own best rate:

# %% tags=["nbval-check-output"]
raw = {"not normalised": scores["GRU, raw map"], "normalised": scores["GRU over rows"]}
tlk.table(raw, "the map that the GRU reads")

# %% [markdown]
# A single layer with no trainable parameter is worth fourteen points. If you leave it out of a
# comparison of heads, you will conclude that recurrent heads are bad. A head on the map also fails
# if the positions carry no information: on shuffled maps, the convolution and the GRU are both
# below the plain head.
#
# All this is with 30 labels per class; other numbers were not measured. With five, a head of
# 140,000 parameters would have 35 images to learn from. Start with the plain head, and keep it as
# the control.
#
# ## What it costs
#
# The frozen network is the expensive part, and it is the same for all heads. The heads differ
# little: the table shows the seconds for 400 steps on one core, and the optimizer's memory for two
# numbers per trainable parameter.

# %% tags=["plumbing"]
tlk.table(
    [[name, took[name], f"{2 * 4 * size[name][0] / 1024:,.0f} KiB"] for name in MAIN],
    ["head", "seconds", "optimizer"],
)

# %% [markdown]
# (The core was shared: the same convolution took 3 s in one draw and 17 in another, so the seconds
# do not rank the heads.)
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: upside down
# Turn the validation maps upside down, `held_maps[:, ::-1]`, and give them to the linear head and
# to the GRU that you trained. For what share of the images does each head change its answer? Say
# first what you expect.

# %% [markdown] tags=["hint"]
# How much of the order of rows is left after averaging over all positions? The head alone is the
# second part that `tlk.find_blocks(models[name]).split(...)` returns, as in `fit_head`.

# %% tags=["answer"]
for name in ("linear", "GRU over rows"):
    parts = tlk.find_blocks(models[name])
    _, head = parts.split([block.name for block in parts if block.role != "head"][-1])
    said, turned = (head.predict(x, verbose=0).argmax(1) for x in (held_maps, held_maps[:, ::-1]))
    print(f"{name}: {np.mean(said != turned):.0%} of the answers change")

# %% [markdown] tags=["answer"]
# The linear head changes none, because the average over positions does not depend on their order.
# The GRU changes many, because it has read the image from the other end. If an image has no up and
# down, as here, that sensitivity is useless. Adding flipped copies of the training images is the
# thing to try against it.

# %% [markdown] tags=["question"]
# ### Exercise 2: the last map
# Take the whole network, `uncut = tlk.add_head(whole, 7)`. Then `tlk.heads.swap_head(uncut, rows,
# at="map")` fails. Why, and what has to change in `rows`? How many parameters does the new head
# have?

# %% [markdown] tags=["hint"]
# Look at `whole.output_shape`. The error says which map the head was given.

# %% tags=["answer"]
try:
    tlk.heads.swap_head(tlk.add_head(whole, 7), rows, at="map")
except ValueError as error:
    print(str(error)[:120], "...")


def rows_of_any(x):
    pages = keras.layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]))(x)
    return keras.layers.Dense(7)(keras.layers.GRU(64)(pages))


at_the_top = tlk.heads.swap_head(tlk.add_head(whole, 7), rows_of_any, at="map")
print(f"{at_the_top.count_params() - whole.count_params():,} parameters")

# %% [markdown] tags=["answer"]
# The last map has 3 × 3 positions with 1,280 numbers each, not 6 × 6 with 112. The function `rows`
# fits one shape of map, while a head on pooled features fits any. Three rows of 3,840 numbers make
# a GRU five times as large, for a quarter of the positions: one more reason to take the map from
# the middle. (`scale` was adapted to 112 channels, so it is left out here; this head would need a
# new `Normalization`.)

# %% [markdown]
# ## What to remember
#
# - Swapping a head takes one line: all layers but the last, plus a new one. The backbone keeps its
#   weights, and frozen layers stay frozen.
# - A head that sees positions can pay (six and a half points for a convolution); a larger one on
#   pooled features gained about a point at most.
# - Compare heads with equal steps, each at its own learning rate, on inputs of the same scale; that
#   scaling alone was worth fourteen points.
#
# **Then**: what if source and target look different, and the target has no labels at all? [Chapter
# 8.4](08_04_domain_adaptive.ipynb).
