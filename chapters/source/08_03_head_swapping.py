# %% [markdown]
# # 8.3 · Head swapping: the same network, another last part
#
# **The question.** A pretrained network ends in answers that you do not need. What should stand in
# their place: one plain layer, a larger network, or something that looks at *where* things are?
#
# **The promise.** In about a minute on two cores you take the thousand answers of ImageNet off a
# network and put your own on, cut the network where it serves best, try a recurrent head and a
# transformer head on it, and know which head paid here, and why. *(Section 1.8 of the course,
# number 3; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras  # isort: skip
import numpy as np
from sklearn.metrics import balanced_accuracy_score

SEED = 0  # another draw of labels, another run
setting = tlk.setting("08_03")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# Think of a kitchen machine. The motor is expensive and stays; what you screw on decides whether it
# kneads, slices or grinds. The motor is the **[backbone](glossary.md#backbone)**, the attachment is
# the **[head](glossary.md#head)**. Whoever changes the task changes the head: always the number of
# answers, for a lesion is none of ImageNet's cats, dogs and buses; and, if it pays, its build.
#
# What can a head look at? A network hands over a **[feature map](glossary.md#feature-map)**: for
# every place of the picture a list of numbers. The usual head **[pools](glossary.md#pooling)** it,
# that is, averages over places, so *what* is left and *where* is gone. A head on the map itself can
# look at both.
#
# Our task is `lesions`, seven kinds of marks on skin, thirty labelled pictures of each. They are
# **synthetic** and of no medical validity.

# %% alt="A row of seven small synthetic pictures of skin, one of each kind; they differ in colour, border and texture."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
images, labels = task.arrays("train")[:2]
task.show(rows=1, columns=7)

# %% [markdown]
# ## By hand: off with the old head
#
# `tlk.load_classifier` is here what `keras.applications.EfficientNetB0()` is elsewhere: a whole
# network with its 1,000 answers. None of them is a lesion. Its layers stand in a row, so take all
# but the last, and put a new one behind them.

# %%
classifier = tlk.load_classifier("efficientnet_lite0")
old_head = classifier.layers[-1]
print(old_head.name, "answers", classifier.output_shape[-1])

# %%
classifier.trainable = False  # all of the old network, before the new head is there
by_hand = keras.Sequential([*classifier.layers[:-1], keras.layers.Dense(len(task.classes))])
count = sum(np.prod(weight.shape) for weight in by_hand.trainable_weights)
print(f"{by_hand.output_shape[-1]} answers; {count:,} of {by_hand.count_params():,} numbers learn")

# %% [markdown]
# That is the whole of it. A new head is needed even where the number of answers is the same: the
# third answer of the old head is a kind of shark.
#
# ## The same with tlkeras
#
# `tlk.heads.swap_head` finds the head by itself, in networks of Keras, of KerasHub or your own,
# also in one that is a model inside a model. What stays are the same layers with the same weights,
# frozen or not as they were; what cannot be swapped is refused with a reason.

# %% tags=["nbval-check-output"]
swapped = tlk.heads.swap_head(classifier, keras.layers.Dense(len(task.classes)))
name = "efficient_net_backbone"
before, after = (model.get_layer(name).get_weights() for model in (classifier, swapped))
tlk.table(
    [
        ["answers", classifier.output_shape[-1], swapped.output_shape[-1]],
        ["arrays of the backbone", len(before), len(after)],
        ["of these not bit for bit alike", "", sum(map(np.any, map(np.not_equal, before, after)))],
        ["arrays that learn", len(classifier.trainable_weights), len(swapped.trainable_weights)],
    ],
    ["", "before", "after"],
)

# %% [markdown]
# ## A head that looks at places
#
# Now heads that need the map. The last map of this network is 3 × 3 at our size, a blur. In the
# middle there are 6 × 6 places, and a linear probe reads lesions there only four points less well
# than at the end (61 against 65 %, [chapter 8.1](08_01_feature_extraction.ipynb)). So cut the
# network after that block; four fifths of its numbers are not needed any more.

# %%
whole = tlk.load_backbone(setting.backbone, setting.image_size)
blocks = tlk.find_blocks(whole)
backbone, _ = blocks.split(blocks.names[-2])
backbone.trainable = False
model = tlk.add_head(backbone, len(task.classes))
height, width, channels = backbone.output_shape[1:]
print(f"after {blocks.names[-2]}: {height} x {width} places, {channels} numbers each")

# %% [markdown]
# The network stays [frozen](glossary.md#freeze), so what it says of every picture is computed once.
# One more thing is the same for every head below: each channel is brought to mean 0 and
# [spread](glossary.md#spread) 1, for which no label is needed.

# %%
held, truth = (part[: 10 * 40] for part in task.arrays("validation")[:2])
maps = backbone.predict(images, batch_size=70, verbose=0)
held_maps = backbone.predict(held, batch_size=100, verbose=0)
scale = keras.layers.Normalization()
scale.adapt(maps)


# %% [markdown]
# Four heads, each a function from one tensor to another. The recurrent one (GRU) reads the map row
# by row, as you read a page. The transformer block, the "ViT block" on an EfficientNet, lets each
# place look at all others (**attention**), then passes each through a small network; as it cannot
# know where a place is, it is told.


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
    places = keras.layers.Reshape((height * width, channels))(scale(x))
    places += keras_hub.layers.PositionEmbedding(height * width)(places)
    seen = keras_hub.layers.TransformerEncoder(376, 4, dropout=0.1, normalize_first=True)(places)
    return keras.layers.Dense(7)(keras.layers.GlobalAveragePooling1D()(seen))


heads = {"linear": linear, "MLP": mlp, "GRU over rows": rows, "transformer block": transformer}
models = {name: tlk.heads.swap_head(model, head, at="map") for name, head in heads.items()}

# %% tags=["nbval-check-output"]
rows_of_table = []
for name, one in models.items():
    learning = tlk.freeze(one, tlk.policies.head_only())
    rows_of_table.append([name, learning.trainable_params, learning.params])
tlk.table(rows_of_table, ["head", "numbers that learn", "of all"])

# %% [markdown]
# Train three of them, on the stored maps: the head alone is a model from map to answers, and
# `blocks.split` gives it. The whole model shares its layers, so it is trained, too.


# %%
def fit_head(name, rate, epochs=20):
    """Balanced accuracy in % on validation pictures."""
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
# A single draw, and 400 pictures of which some kinds are rare: this shows that it runs, not which
# head is better.
#
# ## Which head pays?
#
# The stored runs give every head the same: the same maps, 400 steps, batches in which every kind is
# as frequent as any other, and its own best rate of four, chosen on validation pictures with other
# draws (for the linear head and the GRU that was the highest, for the convolution the lowest).
# Thirty labels a class, five [draws](glossary.md#draw), all test images. The scores are [balanced
# accuracy](glossary.md#balanced-accuracy). A large MLP is the control for **size**: it has as many
# numbers as the GRU. And one head more is as large: a convolution, which slides one small window
# over the map.

# %% tags=["plumbing"]
stored = tlk.results("heads", part="test", labels_per_class=30)
MAIN = ["linear", "MLP", "large MLP", "convolution", "GRU over rows", "transformer block"]
scores = stored.scores("head", scale=100)
size, took = (stored.scores("head", value=v) for v in ("parameters", "seconds"))

# %% alt="Bars of balanced accuracy at 30 labels a class: linear 65, MLP 66, large MLP 65, convolution 72, GRU over rows 65, transformer block 67; spreads are one to two points."
tlk.plots.bars({name: scores[name] for name in MAIN},
               title="Heads on one frozen map, lesions (synthetic), 30 labels")  # fmt: skip

# %% tags=["nbval-check-output"]
tlk.table(
    [[name, f"{size[name][0]:,.0f}", scores[name]] for name in MAIN],
    ["head", "numbers that learn", "balanced accuracy (%)"],
    note=stored.note,
)

# %% [markdown]
# **Looking at places can pay; size alone does not.** The convolution is six and a half points ahead
# of the single layer and of the large MLP, which has as many numbers (± 0.8, the standard error of
# the mean difference in the same draws). (Of the MLPs the small one is 1.2 ± 0.4 ahead of the
# single layer, the large one is level.) The transformer block is 2.2 ± 1.2 ahead: a tie, with these
# 210 pictures. The GRU sees the same map, is as large, and ties with a single layer. What the
# convolution has is a better guess about pictures: what matters is small and can be anywhere. A
# likely reason for the others: the GRU takes in a row of the map as 672 numbers at once, and the
# transformer has to learn which places are neighbours.
#
# ## Is it the places?
#
# A head on the map has more to look at than a pooled one. Three controls. A **flattened** MLP sees
# every number of the map with its place, and as many numbers learn as in the GRU; but nothing tells
# it that two places are neighbours. And convolution and GRU once more, on maps whose 36 places are
# **shuffled**, another way in each picture: all that was found is still there, only not where.

# %% tags=["nbval-check-output"]
CONTROLS = ["linear", "large MLP", "flattened MLP", "convolution", "convolution, shuffled",
            "GRU over rows", "GRU, shuffled"]  # fmt: skip
tlk.table({name: scores[name] for name in CONTROLS}, "head, 30 labels", digits=0)

# %% [markdown]
# With places shuffled the convolution falls by nine and a half points (± 0.9), three below the
# single layer: its lead was all *where*. The flattened MLP knows every place, too, and reads 61. So
# it takes the right build: places as neighbours, not as 4,032 separate numbers.
#
# ## Where it fails
#
# A head on the map takes its input as it comes, and the channels of a map differ in size. The same
# GRU, on the map without the `Normalization`, at its own best rate:

# %% tags=["nbval-check-output"]
raw = {"as it comes": scores["GRU, raw map"], "brought to one scale": scores["GRU over rows"]}
tlk.table(raw, "the map that the GRU reads")

# %% [markdown]
# Fourteen points, from one layer without a single number to learn. Who compares heads and forgets
# it will report that recurrent heads are bad. And the other way a head fails: where there is
# nothing to be seen in places. On shuffled maps, convolution and GRU are both below the plain head.
#
# All this is with 30 labels a class; other numbers were not measured. With five, a head of 140,000
# numbers would have 35 pictures to learn from: begin with the plain one, and keep it as the
# control.
#
# ## What it costs
#
# The frozen network is the dear part, and it is the same for all heads. What differs is small: the
# seconds of 400 steps on one core, and the optimizer's memory, two numbers for each that learns.

# %% tags=["plumbing"]
tlk.table(
    [[name, took[name], f"{2 * 4 * size[name][0] / 1024:,.0f} KiB"] for name in MAIN],
    ["head", "seconds", "optimizer"],
)

# %% [markdown]
# (The core was shared: the same convolution took 3 s in one draw and 17 in another, so read no
# order of heads into the seconds.)
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: upside down
# Turn the validation maps upside down, `held_maps[:, ::-1]`, and give them to the linear head and
# to the GRU that you trained. On how many of the pictures does each give another answer? Say first
# what you expect.

# %% [markdown] tags=["hint"]
# What is left of the order of rows after averaging over all places? And the head alone is the
# second half of `tlk.find_blocks(models[name]).split(...)`, as in `fit_head`.

# %% tags=["answer"]
for name in ("linear", "GRU over rows"):
    parts = tlk.find_blocks(models[name])
    _, head = parts.split([block.name for block in parts if block.role != "head"][-1])
    said, turned = (head.predict(x, verbose=0).argmax(1) for x in (held_maps, held_maps[:, ::-1]))
    print(f"{name}: {np.mean(said != turned):.0%} of the answers change")

# %% [markdown] tags=["answer"]
# Of the linear head none: the average over places does not know their order. Of the GRU many: it
# has read the picture from the other end. Where a picture has no up and down, as here, that is a
# sensitivity that nobody needs, and flipped copies of the training pictures are what to try against
# it.

# %% [markdown] tags=["question"]
# ### Exercise 2: the last map
# Take the whole network, `uncut = tlk.add_head(whole, 7)`. Then `tlk.heads.swap_head(uncut, rows,
# at="map")` fails. Why, and what has to be changed in `rows`? How many numbers does that head then
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
print(f"{at_the_top.count_params() - whole.count_params():,} numbers")

# %% [markdown] tags=["answer"]
# The last map has 3 × 3 places with 1,280 numbers each, not 6 × 6 with 112; a head on a map fits
# one shape of map, where a head on pooled features fits any. Three rows of 3,840 numbers make a GRU
# five times as large, for a quarter of the places: one more reason to look for the map in the
# middle. (`scale` was adapted to 112 channels, so it is left out here; a new `Normalization` would
# be needed.)

# %% [markdown]
# ## What to remember
#
# - A head is swapped in a line: all layers but the last, and a new one; the backbone keeps its
#   weights, and what was frozen stays so.
# - A head that looks at places can pay (a convolution, six points); a larger one on pooled features
#   brought a point at most.
# - Compare heads at equal steps, each at its own rate, on inputs of one scale; that layer alone was
#   worth fourteen points.
#
# **Then**: what if source and target look different, and the target has no labels at all? [Chapter
# 8.4](08_04_domain_adaptive.ipynb).
