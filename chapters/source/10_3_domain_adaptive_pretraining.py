# %% [markdown]
# # 10.3 · Domain-adaptive pretraining: learn the look first
#
# **The question.** You have thousands of images from your own domain and labels for only a few of
# them. Is it worth the time to train the network on all of them first, without labels?
#
# **The promise.** In about a minute on two cores you write the loss of contrastive learning in
# plain Keras and continue training an ImageNet network on unlabelled images. You can then check,
# with the controls that papers often leave out, whether that was better than spending the same time
# otherwise. *(Section 1.10 of the course; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
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
# Before you start a job in an unfamiliar town, you spend a week walking through it without a map or
# a guide. Nobody tells you what the houses are. But you notice that the same house looks different
# in the morning, in the rain and from behind, and you learn which differences to ignore.
#
# **[Self-supervised](glossary.md#self-supervised)** learning turns this into an exercise: two
# images should get similar [features](glossary.md#feature) if they show the same thing, and
# different features if they do not. No label is needed to know which images show the same thing.
# They can be two random changes of one image (its **[views](glossary.md#view)**), or two images of
# the same spot on a patient, taken at two visits. **Domain-adaptive pretraining** does this on
# images of the *target*, starting from ImageNet weights, before
# [fine-tuning](glossary.md#fine-tuning). It is meant for fields such as X-rays, where images are
# plentiful and labels expensive. (In [chapter 8.8](08_08_self_supervised.ipynb) the network starts
# from random weights.)
#
# The lesions here are **synthetic and have no medical validity**. We use 3,600 images without
# labels.

# %%
task = tlk.load_task(setting.task, image_size=setting.image_size)
images, lesion = task.arrays("train", "image", "lesion")
change = keras.Sequential([
    keras.layers.RandomFlip(),
    keras.layers.RandomRotation(0.5, "reflect"),
    keras.layers.RandomZoom((-0.4, 0.0), fill_mode="reflect"),
    keras.layers.RandomBrightness(0.15),
    keras.layers.RandomContrast(0.3),
])  # fmt: skip

# %% tags=["plumbing"] alt="Three rows of synthetic lesions: five images; a view of each, turned, zoomed and with other light; and another image of the same lesion, with other hairs, light and angle."
keras.utils.set_random_seed(SEED)
several = [np.flatnonzero(lesion == number) for number in np.unique(lesion)]
several = np.array([those[:2] for those in several if len(those) > 1])[:5]
rows = {
    "an image": images[several[:, 0]],
    "a view of it": change(images[several[:, 0]], training=True),
    "the same lesion": images[several[:, 1]],
}
tlk.plots.strips(rows, columns=5, title="Two ways to see the same again (synthetic)")

# %% [markdown]
# ## By hand: contrastive learning on top of ImageNet
#
# To save time, the lower and middle blocks stay [frozen](glossary.md#freeze), and only the top
# block learns. The outputs of the frozen blocks are computed once, for two views of each of 1,200
# images. All of these show lesions of which there are several images.
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
def lower(given):
    return below.predict(np.asarray(given), batch_size=100, verbose=0)


again = np.flatnonzero(np.bincount(lesion)[lesion] > 1)  # not the only image of their lesion
some = again[np.argsort(lesion[again], kind="stable")][:1200]
first, second = (lower(change(images[some], training=True)) for _ in range(2))

# %% [markdown]
# Each view becomes a short vector: its features are averaged over the image and passed through two
# Dense layers (the *projection*), which are discarded after pretraining. The **loss** works like a
# quiz ([Chen and others 2020](https://arxiv.org/abs/2002.05709), SimCLR). Given the first view of
# one image and the second views of all 48 images in the batch, which of the 48 is its partner? The
# answer is a vector of cosine similarities divided by a [temperature](glossary.md#temperature), and
# the loss is the usual cross-entropy of a classifier with 48 classes.


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
# Guessing would give the logarithm of 48, which is 3.9. Has the network learned anything useful? We
# fit a [linear probe](glossary.md#linear-probe) on five labels per class, before and after.


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
# ## The same with the library: images of one lesion
#
# `contrastive.SimCLR` is such a model. Given a layer that changes images, it makes the views
# itself, and it monitors [collapse](glossary.md#collapse). `contrastive.Pairs` draws two images of
# the same thing: an image archive also knows which of its images show the same lesion. (A caveat:
# two images of one lesion have the same class, so the pairs carry some information about classes,
# though they do not say which class it is.)

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
# *partners* is the mean cosine of two images of one lesion and should rise. *others* is that of any
# two images and must not rise. What does the probe say?

# %%
tlk.table(list(found.items()), ["five labels per class, one draw", "balanced accuracy, %"])

# %% [markdown]
# In this run both kinds of pretraining help. But the run is too small to draw conclusions from:
# 1,200 images, two epochs, five labels per class, a single draw. So we turn to stored results.
#
# ## The experiment: is it worth its time?
#
# We stored three runs, each with its own pretraining on pairs from all 3,600 images (60 steps, 16
# seconds on one core) and its own [draw](glossary.md#draw) of labels. After pretraining, the top
# block and a new head are fine-tuned on the labels for 40 steps, at the learning rate that was best
# without pretraining. There are **three controls**: fine-tuning at once, without pretraining;
# fine-tuning at once for 220 steps, so that as many images pass through the network as in
# pretraining and fine-tuning together; and pretraining on *random pairs*, which is as much training
# but teaches nothing true. We also ran pretraining followed by 220 steps of fine-tuning.

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
    scores[f"{count} labels per class"] = {label: there[name] for name, label in names.items()}

# %% alt="Bars of balanced accuracy. 5 labels per class: fine-tuning at once 42 percent, random pairs first 29, views first 42, lesion pairs first 47, at once with 220 steps 43, lesion pairs first and 220 steps 48. 30 labels: 48, 23, 46, 56, 67, 68."
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
# **With five labels per class**, pairs of one lesion help in each of three draws: by 1 to 10 points
# after 40 steps, and by 4 to 6 points if both take 220 steps. More steps alone bring less than a
# point, and views bring nothing. **With thirty labels per class**, pretraining on pairs is 3 to 13
# points ahead after 40 steps. Without the control, that would be a fine result to report. But
# spending as many images on *fine-tuning* gains 12 to 25 points, and when both take 220 steps,
# pretraining ties with no pretraining (1 ± 2 points). So here it saved steps, not labels.
#
# (40 steps from a random head at one learning rate are hardly the best way to fine-tune; [chapter
# 6](06_unfreezing.ipynb) trains the head first. With 30 labels per class, one of the three draws of
# "at once" is 13 points below the other two.)
#
# ## Where it fails, and what is cheaper
#
# **The network learns whatever the pairs have in common.** The values that the library monitors
# show what random pairs do:

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
# Random partners have nothing in common, so the quiz cannot be solved, and the network gives up:
# its output is the same for every image ([collapse](glossary.md#collapse)). So look at *cosine of
# others* first.
#
# **A closed-form method does the same.** [Chapter 4](04_strategies.ipynb) divided the features by
# how much they vary within a lesion (**whitening**). This also learns from images of the same
# lesion, but without any training steps. Here is a linear probe on frozen features, with the same
# labels:

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
tlk.table(rows, "probe (%), labels per class", digits=0)

# %% [markdown]
# The middle blocks are frozen, so pretraining did not change them. In the last block, above them,
# pairs of one lesion gain 11 points at five labels per class, 10 at ten, and 1 at thirty, which is
# a tie. Views gain 4 ± 4, 1 ± 2 and **-6** ± 4 points. Random pairs lose 1, 4 and 11. But whitening
# the *middle* features, which takes only the root of a matrix, reaches 53, 58 and 68 %. That ties
# with pretraining at five and ten labels and is ahead of it at thirty in two draws of three.
# Whitening by random pairs loses 2 to 3 points, so here too it is the lesions that help.
#
# A likely reason, which we did not measure: both methods learn to ignore whatever differs *between
# two images of one lesion*, such as light, angle and hairs. Whitening does only that. SimCLR
# changes 2.7 million weights to do it, with a few thousand images, and forgets other things learned
# from ImageNet. Views teach the network to ignore flips, zooms and brightness, which a network from
# ImageNet nearly ignores already. They do not teach it to ignore hairs, because no view moves them.
#
# ## What it costs
#
# On one core, pretraining took 16 seconds, 40 steps of fine-tuning 6 seconds, and 220 steps 27.
# (The 220 steps see as many images as pretraining and 40 steps together, but in smaller batches.)
# Passing two views of 3,600 images through the frozen blocks comes on top. Fitting a probe takes
# less than two seconds; whitening needs the root of one 112 by 112 matrix before that. Pretraining
# and fine-tuning train 2.7 million parameters, and AdamW stores two numbers for each. The probe has
# 8,967 parameters on the last block and 791 on the middle blocks. The stored outputs take 1,792
# numbers per view.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: what does a view keep?
#
# Which of these changes should you not make to an image of a lesion, and why: a flip, another
# colour, a crop of a tenth of the image, a blur?

# %% [markdown] tags=["hint"]
# The network learns to ignore whatever the two views do not share. To see how far a change moves
# the features, compute the mean cosine between features before and after it, over 200 images.

# %% tags=["answer"]
changes = {
    "flip": keras.layers.RandomFlip(),
    "another colour": keras.layers.RandomHue(0.5, value_range=(0, 255)),
    "a crop of a tenth": keras.layers.RandomZoom((-0.7, -0.65)),
}
above.set_weights(imagenet)
parts = [images[:200], *[layer(images[:200], training=True) for layer in changes.values()]]
before, *after = (above.predict(lower(x), verbose=0).mean(axis=(1, 2)) for x in parts)
length = [np.linalg.norm(x, axis=1) for x in (before, *after)]
rows = []
for name, x, size in zip(changes, after, length[1:], strict=True):
    rows.append([name, float(np.mean(np.sum(before * x, axis=1) / length[0] / size))])
tlk.table(rows, ["ImageNet's features", "mean cosine with those before"], digits=2)

# %% [markdown] tags=["answer"]
# Do not change the colour: brown or blue is much of what tells these classes apart, and a network
# that has to match a blue spot with a recoloured view of it learns to ignore colour. Do not crop to
# a tenth either: there may be no lesion left in the crop. A flip is harmless; it moves the features
# least, so it also teaches least. A blur is fine, because cameras blur too.

# %% [markdown] tags=["question"]
# ### Exercise 2: how much of the archive has a partner?
#
# Pairs of one lesion need lesions with several images. How many of the 3,600 images have a partner
# at all?

# %% [markdown] tags=["hint"]
# Use `np.unique(lesion, return_inverse=True, return_counts=True)`.

# %% tags=["answer"]
_, place, count = np.unique(lesion, return_inverse=True, return_counts=True)
tlk.table([[len(count), int(np.sum(count[place] > 1)), len(lesion)]],
          ["lesions", "images with a partner", "images"])  # fmt: skip

# %% [markdown] tags=["answer"]
# 2,556 of 3,600. The others are their own partner and teach what views teach. An archive with only
# one image of each lesion has only views to offer.

# %% [markdown]
# ## What to remember
#
# - Pretraining on your own images has to beat spending the same time on fine-tuning. Always run two
#   controls: fine-tuning with correspondingly more steps, and pretraining on random pairs.
# - What counts is what the pairs have in common. With few labels, pairs of images of the same thing
#   taught much, and views of one image next to nothing. Random pairs ruin the network.
# - Before you pretrain, try whitening: it uses the same pairs in closed form, without any training.
#
# **Then:** a learning rate schedule for each block, [chapter 10.4](10_4_layerwise_schedules.ipynb).
