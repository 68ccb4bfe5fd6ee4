# %% [markdown]
# # 8.7 · Multi-task transfer: one network, three answers
#
# **The question.** What is it, is it malignant, where does it end? Can one network answer all
# three, and do the three tasks improve one another?
#
# **The promise.** In about a minute on two cores you build a network with three outputs in plain
# Keras, train it although some labels are missing, and weight its losses in two ways. You also
# learn which second task helps a first one, and which makes no difference. *(Section 1.8 of the
# course, number 7; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np
from keras import layers

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_07")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# A flat is for sale. A surveyor wants its size, an agent its price, a painter its walls. Each of
# them could walk through it and take notes. Or one person walks through once, and all three read
# the same notes. The notes are the [features](glossary.md#feature) of a **shared** network, the
# readers are [heads](glossary.md#head), and this is **[multi-task
# learning](glossary.md#multi-task-learning)** ([Caruana
# 1997](https://doi.org/10.1023/A:1007379606734)). It is for related questions about the same
# images, especially if labels for one of them are few.
#
# It obviously saves two walks. Whether the tasks also reinforce one another, so that the notes get
# *better* because three people use them, is what we measure.
#
# The images are lesions: **synthetic, of no medical validity**. Each has one of seven types, is
# benign or malignant, and has a **mask** that marks the pixels inside its boundary. Only 30 images
# of each type have the type label. The other two labels are known for all 610 images.

# %%
task = tlk.load_task(setting.task, image_size=setting.image_size)
names = ("image", "label", "malignant", "mask")
images, types, malignant, masks = task.arrays("train", *names)
rng = np.random.default_rng(SEED)
by_type = [np.flatnonzero(types == number) for number in range(len(task.classes))]
expert = [rng.choice(those, setting.labels_per_class, replace=False) for those in by_type]
expert = np.concatenate(expert)

# %% tags=["plumbing"]
others = np.setdiff1d(np.arange(len(types)), expert)
chosen = np.concatenate([expert, rng.choice(others, 400, replace=False)])
images, types, malignant, masks = (x[chosen] for x in (images, types, malignant, masks))
known = np.arange(len(chosen)) < len(expert)
validation = task.arrays("validation", *names)
new, new_types, new_malignant, new_masks = (x[::2] for x in validation)

# %% alt="A row of eight small synthetic skin lesions, brown or red spots on skin; below each the same spot in white on black."
rows = {"images": images[::30], "masks": 255 * np.squeeze(masks[::30])}
tlk.plots.strips(rows, columns=8, title="Synthetic lesions, and where they are")

# %% [markdown]
# ## By hand: maps at three depths
#
# A deep layer knows much about *what* and little about *where*: its map is only four by four. A
# boundary also needs a shallow layer. `tlk.find_blocks` finds where a network can be cut, and the
# part between two cuts is a model of its own. The network stays [frozen](glossary.md#freeze), so
# every [map](glossary.md#feature-map) is computed once and stored.

# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
blocks = tlk.find_blocks(backbone)
bottom = blocks.split("block2")[0]
middle = keras.Model(blocks["block2"].cut, blocks["block3"].cut)
top = keras.Model(blocks["block3"].cut, blocks["block4-5"].cut)


def three_maps(x):
    first = bottom.predict(x, verbose=0)
    second = middle.predict(first, verbose=0)
    return [first, second, top.predict(second, verbose=0)]


maps, new_maps = three_maps(images), three_maps(new)
[found.shape for found in maps]

# %% [markdown]
# ## By hand: one model, three outputs
#
# All tasks read the layer named `shared`; it is the only place where they can influence one
# another. Two heads average over all positions. The third upsamples to 16 by 16, where the shallow
# map is added so that it sees edges, and then to 64 by 64. (This is the idea of the *U-Net*:
# [Ronneberger, Fischer and Brox 2015](https://arxiv.org/abs/1505.04597).)


# %%
def shared_part():
    inputs = [keras.Input(found.shape[1:]) for found in maps]
    scaled = [layers.BatchNormalization()(x) for x in inputs]
    deep = layers.UpSampling2D(2)(layers.Conv2D(32, 1)(scaled[2]))
    both = layers.Concatenate()([deep, scaled[1]])
    shared = layers.Conv2D(48, 3, padding="same", activation="relu", name="shared")(both)
    return inputs, scaled[0], shared


def mask_head(shared, shallow):
    x = layers.UpSampling2D(2)(layers.Conv2D(16, 1)(shared))
    x = layers.Concatenate()([x, shallow])
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.UpSampling2D(4, interpolation="bilinear")(layers.Conv2D(1, 1)(x))
    return layers.Reshape((setting.image_size, setting.image_size))(x)


# %%
def new_model(tasks):
    inputs, shallow, shared = shared_part()
    average = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(shared))
    heads = {"malignant": layers.Dense(1)(average), "mask": mask_head(shared, shallow)}
    heads["type"] = layers.Dense(len(task.classes))(average)
    return keras.Model(inputs, {name: heads[name] for name in tasks})


# %% [markdown]
# Each output has its own loss, by name. Where a label is missing, the sample weight is 0, and the
# other weights are raised so that they average 1. (A mask has one loss value per row of pixels, so
# its weights need `[:, None]`: one weight for all rows of an image. Without it you get an error or,
# with batches of 64, silently wrong weights.)

# %%
right_or_wrong = keras.losses.BinaryCrossentropy(from_logits=True)
losses = {"malignant": right_or_wrong, "mask": right_or_wrong}
losses["type"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
truth = {"type": types, "malignant": malignant[:, None], "mask": np.squeeze(masks)}
ones = np.ones(len(types))
missing = {"type": known / known.mean(), "malignant": ones, "mask": ones[:, None]}


# %%
def train(tasks, loss_weights=None, epochs=8):
    keras.utils.set_random_seed(SEED)
    model = new_model(tasks)
    here = {name: losses[name] for name in tasks}
    model.compile(keras.optimizers.Adam(2e-3), here, loss_weights=loss_weights)
    y = {name: truth[name] for name in tasks}
    weights = {name: missing[name] for name in tasks}
    model.fit(maps, y, 64, epochs=epochs, sample_weight=weights, verbose=0)
    return model


# %% [markdown]
# Each output also has its own score. For the type it is **[balanced
# accuracy](glossary.md#balanced-accuracy)**, because most lesions are moles. For malignant it is
# **AUC**: given one malignant and one benign image, how often does the malignant one get the higher
# output? 50 % is chance. For the mask it is **[Dice and IoU](glossary.md#dice-and-iou)**, which
# measure how well two masks overlap. In Keras, use `keras.metrics.AUC` and `BinaryIoU`; Dice is 2
# IoU / (1 + IoU).


# %% tags=["plumbing"]
def scores(model):
    answers, found = model.predict(new_maps, verbose=0), {}
    if "type" in answers:
        right = answers["type"].argmax(axis=1) == new_types
        found["type"] = np.mean([right[new_types == one].mean() for one in np.unique(new_types)])
    if "malignant" in answers:
        auc = keras.metrics.AUC(from_logits=True)
        found["malignant, AUC"] = float(auc(new_malignant[:, None], answers["malignant"]))
    if "mask" in answers:
        iou = keras.metrics.BinaryIoU(target_class_ids=[1], threshold=0.0)
        found["mask, IoU"] = float(iou(np.squeeze(new_masks), answers["mask"]))
        found["mask, Dice"] = 2 * found["mask, IoU"] / (1 + found["mask, IoU"])
    return {name: 100 * score for name, score in found.items()}


# %%
TASKS = ("type", "malignant", "mask")
together = train(TASKS)
results = {"one network": scores(together)}
for name in ("type", "mask"):
    results[f"{name} alone"] = scores(train([name]))
tlk.table(results, "a single draw, %")

# %% alt="Three rows of eight small images: synthetic lesions, their true masks, and the masks that the network drew, which are alike but smoother."
drawn = together.predict([found[:8] for found in new_maps], verbose=0)["mask"] > 0
rows = {"new images": new, "true masks": 255 * np.squeeze(new_masks), "drawn": 255 * drawn}
tlk.plots.strips(rows, columns=8, title="A network made for classes draws boundaries (synthetic)")

# %% [markdown]
# One network gives all three answers. (Here the pixels of all images are counted together. The
# stored results below are means over images, and come from networks trained on six times as many
# images.)
#
# ## What does not meet does not help
#
# Only a part that is shared and trained can carry anything from one task to another. To see that,
# put two heads directly on the frozen maps. Train the type next to a `malignant` with loss weight
# 0, then next to one with weight 1. Then do the same behind one shared layer that is trained:


# %%
def kernel_of_type(hidden, counts):
    keras.utils.set_random_seed(SEED)
    x = keras.Input((top.output.shape[-1],))
    read = layers.Dense(16, "relu")(x) if hidden else x
    of_type, of_malignant = layers.Dense(len(task.classes)), layers.Dense(1)
    model = keras.Model(x, [of_type(read), of_malignant(read)])
    both = [losses["type"], losses["malignant"]]
    model.compile("adam", both, loss_weights=[1.0, counts])
    model.fit(maps[2].mean(axis=(1, 2)), [types, malignant[:, None]], 64, epochs=2, verbose=0)
    return of_type.get_weights()[0]


# %% tags=["plumbing", "nbval-check-output"]
rows = []
for name, hidden in {"nothing trainable": False, "a trainable layer": True}.items():
    change = np.abs(kernel_of_type(hidden, 0.0) - kernel_of_type(hidden, 1.0)).max()
    rows.append([name, "yes" if change > 1e-4 else "no"])
tlk.table(rows, ["between frozen network and heads", "does malignant change the head of type?"])

# %% [markdown]
# Heads directly on a frozen network do not influence each other: train each of them when and how
# you like, and let one pass through the network feed them all. *Sharing* begins with a part that
# learns from several losses.
#
# ## By hand: weights that are learned
#
# How much should each loss count? By default each counts 1. [Kendall, Gal and Cipolla
# 2018](https://arxiv.org/abs/1705.07115) let the network learn it. Each task gets a parameter *s*,
# and its loss *L* becomes *exp(-s) L + s*. A task with a large loss, which is *uncertain*, gets a
# large *s* and counts less; the added *s* keeps it from growing without limit. These parameters
# live in a layer that passes its inputs on unchanged:


# %%
class LogVariances(layers.Layer):
    def __init__(self, count):
        super().__init__()
        self.s = self.add_weight(shape=(count,), initializer="zeros")

    def call(self, outputs):
        return outputs

    def weigh(self, index, loss):
        def weighed(truth, answers):
            s = 10 * self.s[index]  # so that it moves ten times as fast as other parameters
            return keras.ops.exp(-s) * loss.call(truth, answers) + s

        return weighed


# %%
keras.utils.set_random_seed(SEED)
plain = new_model(TASKS)
learned = LogVariances(len(TASKS))
weighed = {name: learned.weigh(index, losses[name]) for index, name in enumerate(TASKS)}
model = keras.Model(plain.inputs, learned(plain.output))
model.compile(keras.optimizers.Adam(2e-3), weighed)
model.fit(maps, truth, 64, epochs=8, sample_weight=missing, verbose=0)
results["one network, learned weights"] = scores(model)

# %% tags=["plumbing"]
counts = np.exp(-10 * keras.ops.convert_to_numpy(learned.s))
tlk.table(list(zip(TASKS, counts, strict=True)), ["task", "weight of its loss after 8 epochs"])

# %% [markdown]
# ## The experiment: do the tasks help one another?
#
# The stored results are five [draws](glossary.md#draw) of the same model on the same frozen
# network. Masks and `malignant` are known for all 3,600 images, types for 30 or only 5 per class.
# Every run took 150 steps with the same images in the same order, and half of every batch has a
# type. So the type is learned from exactly the same images, whichever tasks are trained with it.

# %% tags=["plumbing"] alt="Bars of balanced accuracy for the type. With 30 type labels per class: alone 64 percent, with the mask 64, with malignant 65, with both 65. With 5: alone 44, with the mask 44, with malignant 47."
stored = tlk.results("multitask", part="heads", weighting="1:1:1")
trained_with = {
    "type": "type alone",
    "type+mask": "with the mask",
    "type+malignant": "with malignant",
    "type+malignant+mask": "with both",
}
types_from, gains = {}, {name: {} for name in list(trained_with.values())[1:]}
for number in (30, 5):
    found = stored.where(labels=number).scores("tasks", value="type", scale=100)
    there = {name: found[key] for key, name in trained_with.items() if key in found}
    types_from[f"{number} type labels per class"] = there
    for name in list(there)[1:]:
        gains[name][f"{number} per class"] = there[name] - there["type alone"]
title = "Masks do nothing for the type; malignant helps it where types are few"
tlk.plots.bars(types_from, "type: balanced accuracy (%)", title)

# %% tags=["nbval-check-output"]
tlk.table(gains, "points for the type, draw by draw", note=stored.note)

# %% [markdown]
# 3,600 masks do nothing for the type: less than a point in any draw with 30 types per class, and a
# tie with 5 per class. `malignant` gains one point with 30, less than the spread of the scores, and
# three points with 5 (one to six, over the five draws). That is no surprise: `malignant` *follows*
# from the type, so its labels carry information about images without a type label, while a boundary
# says next to nothing about the type. So before you add a task, ask: if I knew its answer, could I
# guess the first one better? (What tasks do to each other when the network itself is fine-tuned was
# not measured.)
#
# ## One network, or three?
#
# What do the three tasks gain or lose when they share a network? Three models take longer to train,
# so one row gives the shared one half as many steps more, which takes nearly as long as the three.
# The core was busy, so compare the seconds only with each other; `malignant` is AUC.

# %% tags=["plumbing"]
three = "type+malignant+mask"
thirty = tlk.results("multitask", labels=30)
ways = {
    "one each": [("heads", name, "1:1:1") for name in TASKS],
    "together": [("heads", three, "1:1:1")],
    "together, equal time": [("equal cost", three, "1:1:1")],
    "together, learned weights": [("heads", three, "uncertainty")],
}


def measured(way):
    found = {"seconds": 0}
    for part, name, weighting in way:
        there = thirty.where(part=part, tasks=name, weighting=weighting)
        for column in ("type", "malignant", "dice", "iou"):
            draws = [100 * float(row[column] or "nan") for row in there]
            if np.isfinite(draws).all():
                found[column] = np.array(draws)
        found["seconds"] = found["seconds"] + np.array([row["seconds"] for row in there])
    return found


# %% tags=["plumbing", "nbval-check-output"]
shown = {way: measured(parts) for way, parts in ways.items()}
tlk.table(shown, "seconds of one core; test, %")

# %% [markdown]
# Type and malignant are ties (with equal time, malignant is half a point ahead of the shorter
# training in each of three draws). The mask alone is one point of Dice better, in every draw, and
# longer training (three draws) does not change that much. A likely reason: together, the mask has
# to share 48 channels with two other tasks. Learned weights recover more than half of that, at no
# cost to the type beyond the spread.
#
# One model trains in two thirds of the time of three, with 38,841 trainable parameters instead of
# 108,377. On a *frozen* network that is all it saves, because one pass through it can feed three
# models as well. Once the network itself is trained, three models are three networks, and each
# image takes three passes.
#
# ## Where it fails: one task starves another
#
# The losses are added, so the largest one dominates. Suppose somebody wants better masks and gives
# them a weight of 100:

# %% tags=["plumbing", "nbval-check-output"]
starved = measured([("heads", three, "1:1:100")])
lost = {"all weights 1": shown["together"], "mask weight 100": starved}
change = {name: starved[name] - shown["together"][name] for name in starved}
tlk.table(lost | {"difference, draw by draw": change}, "seconds of one core; test, %")

# %% [markdown]
# Dice gains one point and is level with the mask alone. The type loses four to six points in four
# of the five draws (and gains one in the fifth), and malignant loses one to five. No error is
# raised, and the total loss looks fine, because it is nearly all mask. So watch a score for every
# task, and compare it with a model trained on that task alone. (A mask loss that is *summed* over
# 4,096 pixels instead of averaged is the same mistake, 41 times as large.)
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: a mask without edges
#
# How much does the shallow 16 by 16 map help the mask? Build a mask model that sees only `shared`,
# 8 by 8.

# %% [markdown] tags=["hint"]
# Write `mask_head` again without its `Concatenate`; compile and fit as in `train(["mask"])`.


# %% tags=["answer"]
def without_edges(shared):
    x = layers.UpSampling2D(2)(layers.Conv2D(16, 1)(shared))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.UpSampling2D(4, interpolation="bilinear")(layers.Conv2D(1, 1)(x))
    return layers.Reshape((setting.image_size, setting.image_size))(x)


keras.utils.set_random_seed(SEED)
inputs, _, shared = shared_part()
coarse = keras.Model(inputs, {"mask": without_edges(shared)})
coarse.compile(keras.optimizers.Adam(2e-3), {"mask": losses["mask"]})
coarse.fit(maps, {"mask": truth["mask"]}, 64, epochs=8, verbose=0)
results["mask alone, without the shallow map"] = scores(coarse)
tlk.table(results, "a single draw, %")

# %% [markdown] tags=["answer"]
# One point of Dice, in a single draw: an 8 by 8 map knows where the lesion is, and the shallow one
# knows where it ends.

# %% [markdown] tags=["question"]
# ### Exercise 2: starve the type
#
# Make it happen here: give the mask a weight of 100 in `train`. What happens to the type?

# %% [markdown] tags=["hint"]
# `train(TASKS, {"type": 1.0, "malignant": 1.0, "mask": 100.0})`.

# %% tags=["answer"]
heavy = {"type": 1.0, "malignant": 1.0, "mask": 100.0}
rows = {"all weights 1": results["one network"], "mask weight 100": scores(train(TASKS, heavy))}
tlk.table(rows, "a single draw, %")

# %% [markdown] tags=["answer"]
# In this single draw the type loses ten points and malignant five, although both have the same
# labels and the same steps as before. The part they share is trained mostly for the mask.

# %% [markdown]
# ## What to remember
#
# - Several answers from one network take three dictionaries: of outputs, of losses, and of sample
#   weights, which are 0 where a label is missing.
# - A second task helps if its labels say something about the first; otherwise it makes no
#   difference or costs a little. Only what is shared *and* trained can carry anything from one task
#   to another.
# - Watch each task's own score and compare it with a model trained on that task alone: a task that
#   counts too much starves the others silently.
#
# **Then:** what a network can learn from images that have no label at all, [chapter
# 8.8](08_08_self_supervised.ipynb).
