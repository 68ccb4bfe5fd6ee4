# %% [markdown]
# # 10.3 · Domain-adaptive pretraining: learn the look first
#
# **The question.** You have thousands of pictures of your own domain and labels for a few of them.
# Is it worth the time to let the network look at all of them first, without labels?
#
# **The promise.** In about a minute on two cores you write the loss of contrastive learning, in
# plain Keras; you let a network that knows ImageNet go on learning from unlabelled pictures, and
# you can check, with the controls that papers often leave out, whether that was better than
# spending the same time otherwise. *(Section 1.10 of the course; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras  # isort: skip
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

SEED = 0  # another draw of labels, another run
setting = tlk.setting("10_3")
contrastive = tlk.flavors.contrastive
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# Before you start work in a foreign town, you spend a week walking through it, without a map or a
# guide. Nobody tells you what the houses are. But you notice that one and the same house looks
# different in the morning, in rain, and from behind, and you learn what to look past.
#
# **[Self-supervised](glossary.md#self-supervised)** learning makes an exercise of that: two
# pictures are to get similar [features](glossary.md#feature) if they show the same thing, and
# different ones if they do not. Which show the same is known without any label: two random changes
# of one picture (its **[views](glossary.md#view)**), or two pictures of one patient's spot, taken
# at two visits. **Domain-adaptive pretraining** does this on the *target's* pictures, starting from
# ImageNet, before [fine-tuning](glossary.md#fine-tuning). It is for fields where pictures are many
# and labels dear, X-rays for one. (In [chapter 8.8](08_08_self_supervised.ipynb) the network starts
# from nothing.)
#
# The lesions here are **synthetic, of no medical validity**. 3,600 pictures have no label.

# %%
task = tlk.load_task(setting.task, image_size=setting.image_size)
pictures, lesion = task.arrays("train", "image", "lesion")
change = keras.Sequential([
    keras.layers.RandomFlip(),
    keras.layers.RandomRotation(0.5, "reflect"),
    keras.layers.RandomZoom((-0.4, 0.0), fill_mode="reflect"),
    keras.layers.RandomBrightness(0.15),
    keras.layers.RandomContrast(0.3),
])  # fmt: skip

# %% tags=["plumbing"] alt="Three rows of synthetic lesions: five pictures; a view of each, turned, zoomed and with other light; and another picture of the same lesion, with other hairs, light and angle."
keras.utils.set_random_seed(SEED)
several = [np.flatnonzero(lesion == number) for number in np.unique(lesion)]
several = np.array([those[:2] for those in several if len(those) > 1])[:5]
rows = {
    "a picture": pictures[several[:, 0]],
    "a view of it": change(pictures[several[:, 0]], training=True),
    "the same lesion": pictures[several[:, 1]],
}
tlk.plots.strips(rows, columns=5, title="Two ways to see the same again (synthetic)")

# %% [markdown]
# ## By hand: contrastive learning on top of ImageNet
#
# To save time, the lower and middle blocks stay [frozen](glossary.md#freeze), and what they put out
# is stored once: of two views of each of 1,200 pictures, all of lesions that were photographed more
# than once. The top learns.
# [BatchNorm](glossary.md#batchnorm) keeps its statistics, as in [chapter 6](06_unfreezing.ipynb).

# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
blocks = tlk.find_blocks(backbone)
middle = [block.name for block in blocks if block.role == "middle"]
below, above = blocks.split(middle[-1])
for block in blocks:
    for layer in block.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
imagenet = above.get_weights()  # to come back to


# %%
def lower(images):
    return below.predict(np.asarray(images), batch_size=100, verbose=0)


again = np.flatnonzero(np.bincount(lesion)[lesion] > 1)  # not the only picture of their lesion
some = again[np.argsort(lesion[again], kind="stable")][:1200]
first, second = (lower(change(pictures[some], training=True)) for _ in range(2))

# %% [markdown]
# Each view becomes a short vector: the features, averaged over place, through two Dense layers that
# are thrown away afterwards (the *projection*). The **loss** is a quiz ([Chen and others
# 2020](https://arxiv.org/abs/2002.05709), SimCLR). Shown is one view, and the second views of all
# 48 pictures of the batch: which of them is the partner? The network answers with cosines, divided
# by a [temperature](glossary.md#temperature), and the cross-entropy is that of any classifier with
# 48 classes.


# %%
def quiz(_, views):
    views = keras.ops.normalize(views, axis=-1)
    cosines = keras.ops.matmul(views[:, 0], keras.ops.transpose(views[:, 1])) / 0.1
    partner = keras.ops.arange(keras.ops.shape(views)[0])
    return keras.losses.sparse_categorical_crossentropy(partner, cosines, from_logits=True)


# %%
keras.utils.set_random_seed(SEED)
a, b = (keras.Input(first.shape[1:]) for _ in "ab")
project = keras.Sequential([
    keras.layers.GlobalAveragePooling2D(),
    keras.layers.Dense(256, "relu"), keras.layers.Dense(64),
])  # fmt: skip
both = keras.ops.stack([project(above(a)), project(above(b))], axis=1)
model = keras.Model([a, b], both)  # one network, used twice

# %%
model.compile(keras.optimizers.AdamW(1e-3), quiz)
nobody = np.zeros(len(some))  # fit wants labels; the quiz does not look at them
history = model.fit([first, second], nobody, batch_size=48, epochs=2, verbose=0)
rows = [[number + 1, loss] for number, loss in enumerate(history.history["loss"])]
tlk.table(rows, ["epoch", "loss of the quiz"])

# %% [markdown]
# By chance it would be the logarithm of 48, which is 3.9. Has that taught anything of use? Take
# five labels of each kind and a [linear probe](glossary.md#linear-probe), before and after.


# %%
few = tlk.load_task(setting.task, 5, SEED, setting.image_size)
few, labels = few.arrays("train")
tests, truth = task.arrays("test")
few, tests = lower(few), lower(tests)


def probe():
    x, new = (above.predict(part, verbose=0).mean(axis=(1, 2)) for part in (few, tests))
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    model = LogisticRegression(C=0.01, max_iter=300).fit((x - mean) / spread, labels)
    return 100 * balanced_accuracy_score(truth, model.predict((new - mean) / spread))


# %%
found = {"pretrained on views": probe()}
above.set_weights(imagenet)
found["ImageNet alone"] = probe()

# %% [markdown]
# ## The same with the library: pictures of one lesion
#
# `contrastive.SimCLR` is such a model; if it is given a layer that changes pictures, it makes the
# views itself, and it watches for [collapse](glossary.md#collapse). `contrastive.Pairs` draws two
# pictures of one thing. For an archive knows more than single pictures: it knows which show the
# same lesion. (A caveat: two pictures of one lesion have the same class, so this says something
# about classes, only not which.)

# %%
keras.utils.set_random_seed(SEED)
pairs = contrastive.Pairs(first, lesion[some], batch_size=48, seed=SEED)
model = contrastive.SimCLR(above)
model.compile(keras.optimizers.AdamW(1e-3))
history = model.fit(pairs, epochs=2, verbose=0)
found["pretrained on pairs of one lesion"] = probe()

# %%
rows = [[name, *values] for name, values in history.history.items()]
tlk.table(rows, ["", "epoch 1", "epoch 2"], digits=2)

# %% [markdown]
# *partners* is the mean cosine of two pictures of one lesion, *others* that of any two: the first
# shall rise, the second must not. And the probe?

# %%
tlk.table(list(found.items()), ["five labels a kind, one draw", "balanced accuracy, %"])

# %% [markdown]
# In this run both help. It is too small to judge by: 1,200 pictures, two passes, five labels, a
# single draw. So:
#
# ## The experiment: is it worth its time?
#
# Stored are three runs, each with its own pretraining on pairs from all 3,600 pictures (60 steps,
# 16 seconds of one core) and its own [draw](glossary.md#draw) of labels. Then top and a new head
# are fine-tuned on the labels, 40 steps, at the rate that was best for ImageNet. **Three
# controls**: fine-tuning at once; fine-tuning at once for 220 steps, so that as many pictures go
# through the network as in pretraining and tuning together; and pretraining on *random pairs*,
# which is as much training and teaches nothing true. And 220 steps after the pretraining, too.

# %% tags=["plumbing"]
tuned = tlk.results("pretraining", part="tune")
names = {
    "ImageNet": "at once", "random pairs": "random pairs first", "views": "views first",
    "lesion pairs": "lesion pairs first", "ImageNet, longer": "at once, 220 steps",
    "lesion pairs, longer": "lesion pairs first, 220 steps",
}  # fmt: skip
scores = {}
for count in (5, 30):
    there = tuned.where(labels_per_class=count).scores("method", scale=100)
    scores[f"{count} labels a class"] = {label: there[name] for name, label in names.items()}

# %% alt="Bars of balanced accuracy. 5 labels a class: fine-tuning at once 42 percent, random pairs first 29, views first 42, lesion pairs first 47, at once with 220 steps 43, lesion pairs first and 220 steps 48. 30 labels: 48, 23, 46, 56, 67, 68."
tlk.plots.bars(
    scores,
    title="Pairs of one lesion help five labels; thirty are helped more by steps (synthetic)",
)

# %% tags=["nbval-check-output"]
gained = {label: {} for label in list(names.values())[1:]}
for label in gained:
    for count, there in scores.items():
        gained[label][count] = there[label] - there["at once"]
tlk.table(gained, "points gained over fine-tuning at once", note=tuned.note)

# %% [markdown]
# **With five labels** pairs of one lesion help, in each of three draws: by 1 to 10 points after 40
# steps, and by 4 to 6 where both take 220. More steps alone bring less than a point, and views
# nothing. **With thirty labels** the pretraining is 3 to 13 points ahead after 40 steps: a fine
# result for a report, if the control were missing. As many pictures spent on *fine-tuning* are
# worth 12 to 25 points, and after 220 steps pretraining is a tie with none (1 ± 2 points). So there
# it saved steps, not labels.
#
# (40 steps from a random head at one rate are hardly the best fine-tuning; [chapter
# 6](06_unfreezing.ipynb) starts with the head. With 30 labels one of the three draws at once lies
# 13 points below the others.)
#
# ## Where it fails, and what is cheaper
#
# **What the pairs say is learned.** The library's watch shows what random pairs do:

# %% tags=["plumbing", "nbval-check-output"]
watched = tlk.results("pretraining", part="pretrain", rate=0.001)
columns = {
    "partners": "cosine of partners",
    "others": "cosine of others",
    "seconds": "core seconds",
}
rows = []
for name in ("views", "lesion pairs", "random pairs"):
    those = watched.where(method=name)
    rows.append([name, *[[row[column] for row in those] for column in columns]])
tlk.table(rows, ["pretrained on", *columns.values()], digits=2)

# %% [markdown]
# Random partners have nothing in common, so the quiz cannot be answered, and the network gives up:
# it says the same of every picture ([collapse](glossary.md#collapse)). Look at *others* first.
#
# **A closed form does the same.** [Chapter 4](04_strategies.ipynb) divided features by how they
# scatter within a lesion (**whitening**). That is also learning from pairs of one lesion, without a
# step of training. The same labels, a linear probe on frozen features:

# %% tags=["plumbing", "nbval-check-output"]
probed = tlk.results("pretraining", part="probe")
rows = {}
for name, method, depth in (
    ("ImageNet, middle blocks", "ImageNet", "block4-5"),
    ("whitened by lesions, middle", "whitened", "block4-5"),
    ("whitened by random pairs, middle", "whitened, random pairs", "block4-5"),
    ("ImageNet, last block", "ImageNet", "last block"),
    ("pretrained on views, last", "views", "last block"),
    ("pretrained on lesion pairs, last", "lesion pairs", "last block"),
    ("pretrained on random pairs, last", "random pairs", "last block"),
):
    those = probed.where(method=method, depth=depth)
    rows[name] = those.scores("labels_per_class", scale=100)
tlk.table(rows, "probe (%), labels a class", digits=0)

# %% [markdown]
# The middle blocks are frozen, so pretraining did not touch them. Above them, pairs of one lesion
# are worth 11 points at five labels, 10 at ten and 1 at thirty, where it is a tie. Views: 4 ± 4, 1
# ± 2 and **-6** ± 4; random pairs take 1, 4 and 11. But whitening the *middle* features, which
# takes a matrix root, reaches 53, 58 and 68 %: a tie with pretraining at five and ten labels, and
# at thirty ahead of it in two draws of three. By random pairs it takes 2 to 3 points, so here, too,
# it is the lesions that help.
#
# A likely reason, not measured: both learn to look past whatever differs *between two pictures of
# one lesion*, light, angle, hairs. Whitening does only that. SimCLR moves 2.7 million weights to do
# it, with a few thousand pictures, and forgets other things that ImageNet knew. And views teach to
# look past flips, zooms and brightness, to which a network from ImageNet is nearly blind already,
# and not past hairs, which no view of ours moves.
#
# ## What it costs
#
# Of one core pretraining took 16 seconds, 40 steps of fine-tuning 6, and 220 steps 27. (As many
# pictures as both together, but in smaller batches.) Two views of 3,600 pictures through the frozen
# blocks come on top. To fit a probe takes less than two seconds, and whitening is one root of a
# matrix of 112 by 112 before it. 2.7 million numbers learn in pretraining and tuning, and AdamW
# remembers two for each; of the probe 8,967 in the last block and 791 in the middle. The stored
# outputs are 1,792 numbers a view.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: what does a view keep?
#
# Which of these changes would you not make to a
# picture of a lesion, and why: a flip, another colour, a crop of a tenth of the picture, a blur?

# %% [markdown] tags=["hint"]
# What the two views do not share, the network learns to ignore. Ask how far a change moves the
# features: the mean cosine before and after, of 200 pictures.

# %% tags=["answer"]
changes = {
    "flip": keras.layers.RandomFlip(),
    "another colour": keras.layers.RandomHue(0.5, value_range=(0, 255)),
    "a crop of a tenth": keras.layers.RandomZoom((-0.7, -0.65)),
}
above.set_weights(imagenet)
parts = [pictures[:200], *[layer(pictures[:200], training=True) for layer in changes.values()]]
before, *after = (above.predict(lower(x), verbose=0).mean(axis=(1, 2)) for x in parts)
length = [np.linalg.norm(x, axis=1) for x in (before, *after)]
rows = []
for name, x, size in zip(changes, after, length[1:], strict=True):
    rows.append([name, float(np.mean(np.sum(before * x, axis=1) / length[0] / size))])
tlk.table(rows, ["ImageNet's features", "mean cosine with those before"], digits=2)

# %% [markdown] tags=["answer"]
# Not the colour: brown or blue is much of what tells these kinds apart, and a network that must
# find a blue spot's partner among brown ones learns to look past it. Nor a crop of a tenth, in
# which no lesion may be left. A flip is harmless, and moves the features least, so it also teaches
# least; a blur is what a camera does, too.

# %% [markdown] tags=["question"]
# ### Exercise 2: how much of the archive has a partner?
#
# Pairs of one lesion need lesions with several pictures. How many of the 3,600 pictures have a
# partner at all?

# %% [markdown] tags=["hint"]
# `np.unique(lesion, return_inverse=True, return_counts=True)`.

# %% tags=["answer"]
_, place, count = np.unique(lesion, return_inverse=True, return_counts=True)
tlk.table([[len(count), int(np.sum(count[place] > 1)), len(lesion)]],
          ["lesions", "pictures with a partner", "pictures"])  # fmt: skip

# %% [markdown] tags=["answer"]
# 2,556 of 3,600; the others are their own partner and teach what views teach. An archive in which
# every lesion was seen once has only views to offer.

# %% [markdown]
# ## What to remember
#
# - Pretraining on your own pictures has to beat the same time spent otherwise. Always run
#   fine-tuning with as many more steps, and pretraining on random pairs.
# - What counts is what the pairs have in common: where labels were few, pictures of one thing taught
#   much and views of one picture next to nothing; random pairs ruin the network.
# - Before you pretrain, whiten: the same pairs, a closed form, no step of training.
#
# **Then:** each block at its own rate and time, [chapter 10.4](10_4_layerwise_schedules.ipynb).
