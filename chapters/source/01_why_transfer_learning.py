# %% [markdown]
# # 1 · Why transfer learning: five labels per class
#
# **The question.** A network has learned to recognise cats, dogs and buses in photographs. You
# have a few images of something quite different. Is what the network knows of any use to you?
#
# **The promise.** In a minute on two cores you use a pretrained network as a feature extractor,
# train a classifier on its features with 35 labelled images, and measure what that saves in
# labels, compute and time. You also learn about three cheap rivals that show when it saves
# nothing.

# %%
import tlkeras as tlk
import keras
import numpy as np

SEED = 0  # change it for another draw of labels and another run
setting = tlk.setting("01")

# %% [markdown]
# ## From cats to cancer
#
# Someone who has sorted a million photographs has learned to see: where an object ends, whether it
# is rough or smooth, round or ragged. Show that person a stack of skin images with a few examples
# of each class, and all that is left to learn is the names.
#
# Networks are used in the same way every day: a network that learned cats and buses from everyday
# photographs is reused to find tumours in scans. **[Transfer
# learning](glossary.md#transfer-learning)** takes what was learned on one task, where examples
# were plentiful, to another task, where they are few.
#
# Our network, `efficientnet_lite0`, was trained on **ImageNet**: 1.28 million photographs of a
# thousand kinds of things. It has never seen anything like our next task, `lesions`: seven classes
# of marks on skin. They are **synthetic**: a program draws them, and nothing here says anything
# about real skin. You have five labelled images per class.

# %% alt="A row of seven small synthetic images of skin, one per class: akiec, bcc, bkl, df, mel, nv, vasc. They differ in colour, border and texture."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
task.show(rows=1, columns=7)

# %% [markdown]
# ## By hand, in plain Keras
#
# A network without its last layer, the one that named cats and buses, is called the
# **[backbone](glossary.md#backbone)**. Its layers are grouped into
# **[blocks](glossary.md#block)**. The last block is still specialised on cats and buses, so we
# stop one block earlier (chapter 2 shows how to find the right place). The output there is a small
# map with 112 channels. Averaged over the map, these are the **[features](glossary.md#feature)**
# of an image. Nothing in the backbone is trained: it is **[frozen](glossary.md#freeze)**. (To cut
# a network from `keras.applications`, use `keras.Model(network.input,
# network.get_layer(NAME).output)`.)


# %%
def features_of(network):
    """Return a model that outputs features: the network without its last block, averaged."""
    blocks = tlk.find_blocks(network)
    backbone = blocks.split(blocks.names[-2])[0]
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, pooled)


# %%
network = tlk.load_backbone(setting.backbone, setting.image_size)
extractor = features_of(network)
images, labels = task.arrays("train")[:2]
features = extractor.predict(images, 64, verbose=0)
print(f"{images[0].size:,} pixel values per image, {features.shape[1]:,} features")

# %% [markdown]
# On these features we train the simplest classifier there is: scikit-learn's logistic regression,
# with all features brought to the same scale first. Its regularisation strength, `C=0.01`, was
# chosen on validation images.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
classifier.fit(features, labels)
print(f"{classifier[-1].coef_.size + 7} trained parameters")

# %% [markdown]
# Now for new images. In the test set some classes are 50 times as frequent as others. So we take
# at most fifty images per class and score with **[balanced
# accuracy](glossary.md#balanced-accuracy)**: the share of each class that is recognised, averaged
# over the classes. Guessing gives one in seven, 14 %.

# %% tags=["plumbing"]
test_images, truth = task.arrays("test")[:2]
places = np.concatenate([np.flatnonzero(truth == label)[:50] for label in np.unique(truth)])
test_images, truth = test_images[places], truth[places]

# %%
from sklearn.metrics import balanced_accuracy_score

test_features = extractor.predict(test_images, 97, verbose=0)
predicted = classifier.predict(test_features)
right = balanced_accuracy_score(truth, predicted)
print(f"{len(labels)} labels; {100 * right:.0f} % balanced accuracy on {len(truth)} new images")

# %% tags=["plumbing"] alt="Fourteen synthetic skin images, two per class, each with the predicted class above it and a cross where that is wrong; nine of the fourteen are classified correctly."
shown = np.concatenate([np.flatnonzero(truth == label)[:2] for label in np.unique(truth)])
names = [f"{task.classes[predicted[i]]}{' ✗' * int(predicted[i] != truth[i])}" for i in shown]
title = f"{task.name}: predictions for new images ({task.note or 'real'})"
tlk.plots.samples(test_images[shown], range(len(shown)), names, columns=7, title=title)

# %% [markdown]
# ## The same with tlkeras
#
# `add_head` puts a new last layer, the **[head](glossary.md#head)**, on the backbone. `fit_stages`
# trains it according to a plan, which has only one stage here. It computes the frozen features
# once, as you just did, checks that this is exact, and leaves you with a complete Keras model that
# takes images.

# %%
backbone = tlk.find_blocks(network).split("block4-5")[0]
model = tlk.add_head(backbone, classes=len(task.classes))
plan = tlk.recipes.head_only(epochs=30, head_lr=1e-2)
tlk.fit_stages(model, plan, (images, labels), seed=SEED, verbose=0)

# %%
guesses = model.predict(test_images, 97, verbose=0).argmax(axis=1)
print(f"{100 * balanced_accuracy_score(truth, guesses):.0f} % balanced accuracy")

# %% [markdown]
# ## Three rivals
#
# Is that good? A score alone does not tell. Each of three rivals answers one doubt:
#
# - **pixels**: would the same classifier do as well without any network?
# - **the same network untrained**, with random weights (one draw of them): is it the architecture
#   of the network, or what it has *learned*?
# - **from scratch**: would a network trained only on your labels do as well? That one takes
#   longer; it follows below.
#
# The first two run here, on the same ten random choices, or **[draws](glossary.md#draw)**, of five
# labels per class.

# %%
drawable = tlk.load_task(setting.task, 14, SEED, setting.image_size).arrays("train")[:2]
keras.utils.set_random_seed(SEED)
blank = tlk.load_backbone(setting.backbone, setting.image_size, weights=None)
untrained = features_of(blank)


def as_pixels(images):
    """Return every image at 16 x 16 pixels, flattened to one row."""
    small = keras.ops.image.resize(images, (16, 16), antialias=True)
    return np.asarray(small).reshape(len(images), -1)


# %%
rivals = {
    "ImageNet": [extractor.predict(x, 97, verbose=0) for x in (drawable[0], test_images)],
    "the same, untrained": [
        untrained.predict(x, 97, verbose=0) for x in (drawable[0], test_images)
    ],
    "pixels": [as_pixels(x) for x in (drawable[0], test_images)],
}


# %%
def score(name, draw):
    """Return balanced accuracy in % with five labels per class; `draw` chooses them."""
    rows, new_rows = rivals[name]
    rng = np.random.default_rng([SEED, draw])
    members = [rng.permutation(np.flatnonzero(drawable[1] == label)) for label in range(7)]
    drawn = np.concatenate([places[: setting.labels_per_class] for places in members])
    classifier.fit(rows[drawn], drawable[1][drawn])
    return 100 * balanced_accuracy_score(truth, classifier.predict(new_rows))


scores = {name: [score(name, draw) for draw in range(10)] for name in rivals}
tlk.table(scores, "features of")

# %% tags=["plumbing", "nbval-check-output"]
means = {name: np.mean(draws) for name, draws in scores.items()}
lead = means["ImageNet"] - max(means["the same, untrained"], means["pixels"])
rows = [("ImageNet's lead over its better rival", "more than 7" if lead > 7 else lead)]
tlk.table(rows, ["balanced accuracy, ten draws", "points"])

# %% [markdown]
# So what helps is what the network has **learned**: with random weights, the same layers do no
# better than bare pixels, within the spread. And it learned this from cats and buses.
#
# This matters because three things are scarce: labels, compute and time.
#
# ## Labels are scarce
#
# No hospital has a million scans on which experts have marked every tumour. How many labels is the
# backbone worth? From here on, the scores of the rivals were measured in advance, on five draws
# each and all test images. The features come from the block that works best on validation images,
# at 96 pixels instead of 64. For training from scratch you see the **strongest** network of the
# course, which is a smaller one: with five labels, `efficientnet_lite0` from scratch reaches only
# 18 % on lesions and 33 % on clothes.

# %% tags=["plumbing"]
STRONGEST = {"lesions": "glyph_resnet_small", "clothes": "glyph_resnet"}  # the best from scratch
LABELS = [5, 10, 30]


def stored(task, method, preset=""):
    """Return scores in % by labels per class, from data/results/tasks.csv."""
    found = tlk.results("tasks", task=task, method=method, preset=preset, labels_per_class=LABELS)
    return found.scores("labels_per_class", scale=100)


def rivals_on(task):
    return {
        "ImageNet, frozen": stored(task, "frozen", "efficientnet_lite0"),
        "from scratch": stored(task, "scratch", STRONGEST[task]),
        "pixels": stored(task, "pixels"),
        "untrained": stored(task, "random", "efficientnet_lite0"),
    }


# %% alt="Line plot for lesions (synthetic), balanced accuracy against 5, 10 and 30 labels per class. ImageNet: 45, 54, 66 %. From scratch: 34, 44, 59 %. Untrained and pixels: 24 rising to 40 and 37 %."
title = "lesions (synthetic): ImageNet is ten points ahead with few labels"
tlk.plots.curves(rivals_on("lesions"), x="labels per class", log=True, title=title)

# %% [markdown]
# Now the same question on **real** photographs: `clothes`, ten classes of clothes, shoes and bags
# from an online shop, in grey and only 28 pixels on a side.

# %% alt="Two rows of ten small grey photographs of clothes, shoes and bags on black, with their class names."
tlk.load_task("clothes").show(rows=2, columns=10)

# %% alt="Line plot for clothes (real photographs), balanced accuracy against 5, 10 and 30 labels per class. ImageNet: 72, 77, 81 %. Pixels: 65, 72, 75 %. From scratch: 64, 71, 77 %. Untrained: 54, 61, 67 %."
title = "clothes (real): ten labels from ImageNet do the work of thirty from scratch"
tlk.plots.curves(rivals_on("clothes"), x="labels per class", log=True, title=title)

# %% [markdown]
# Read the plots sideways: to reach the same height, how many labels does each line need? The table
# shows pairs of scores that are **ties**: they differ by less than their spreads.

# %% tags=["plumbing", "nbval-check-output"]
imagenet = {task: stored(task, "frozen", "efficientnet_lite0") for task in STRONGEST}
scratch = {task: stored(task, "scratch", STRONGEST[task]) for task in STRONGEST}
everything = tlk.results("tasks", task="lesions", preset="glyph_resnet_small", method="scratch")
rows = [
    ("lesions", "5 labels", imagenet["lesions"][5], "10 labels", scratch["lesions"][10]),
    ("lesions", "30 labels", imagenet["lesions"][30], "all 3,600 images",
     everything.scores("labels_per_class", scale=100)[0]),
    ("clothes", "10 labels", imagenet["clothes"][10], "30 labels", scratch["clothes"][30]),
]  # fmt: skip
tlk.table(rows, ["task", "from ImageNet", "score", "from scratch", "score"], note=everything.note)

# %% [markdown]
# Thirty labels per class of lesion, 210 in all, do what 3,600 do from scratch. But that network
# saw those 3,600 images only six times each, and unchanged. Another network, which saw them 19
# times, rotated, flipped and in different light, reached 77 % (a single run, reported on the
# task's card), and frozen ImageNet features with the same 3,600 labels reach 74 %. **With all
# labels the lead is gone.** But few labels are what nearly everybody has.
#
# ## Compute is scarce
#
# From scratch, every step sends its images up through the network and back down. The way down
# costs about twice as much as the way up, so a training step costs **three passes** per image.
# With a frozen backbone each image goes up **once**, and all that is trained is a table of
# features by classes. Here is the same network both ways, on 35 labelled lesions; training from
# scratch took 200 steps of 16 images.

# %% tags=["plumbing"]
up, both_ways = len(images), 3 * 200 * 16
five = {"task": "lesions", "labels_per_class": 5, "preset": "efficientnet_lite0"}
frozen, scratch_runs = (tlk.results("tasks", method=how, **five) for how in ("frozen", "scratch"))
rows = [
    ("frozen, from ImageNet", up, [100 * run["score"] for run in frozen]),
    ("from scratch", both_ways, [100 * run["score"] for run in scratch_runs]),
]
tlk.table(rows, ["lesions, 5 labels", "image passes", "balanced accuracy (%)"])

# %% [markdown]
# That is some 270 times fewer passes, for more than twice the balanced accuracy. Of course
# somebody has paid for the backbone, with many passes over more than a million photographs. But
# they paid **once**, and everybody after them gets it for free. For large networks that is the
# whole point. The smallest Llama 2, with seven *billion* parameters, took 184,320 hours on A100
# GPUs ([Touvron and others, 2023](https://arxiv.org/abs/2307.09288)), which is 21 years on a
# single one. Hardly any organisation can pay for that, and none has to: a network nine times as
# large was adapted to a new task in 24 hours on one GPU ([Dettmers and others,
# 2023](https://arxiv.org/abs/2305.14314)).
#
# ## Time is scarce
#
# Compute is what you pay for, time is how long you wait. Here the clock starts before the network
# is loaded and stops when the new images are classified, again with 35 labels. From scratch we
# train the strongest network of the first line plot. It is small and works on images of 32 pixels
# on a side, so it is quick.


# %% tags=["plumbing"]
def from_imagenet():
    extractor = features_of(tlk.load_backbone(setting.backbone, setting.image_size))
    classifier.fit(extractor.predict(images, 64, verbose=0), labels)
    return classifier.predict(extractor.predict(test_images, 97, verbose=0))


def from_scratch(steps=200):
    keras.utils.set_random_seed(SEED)
    small, new = (
        keras.ops.image.resize(x, (32, 32), antialias=True) for x in (images, test_images)
    )
    model = tlk.add_head(tlk.load_backbone("glyph_resnet_small", 32, None), len(task.classes))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(3e-3), loss)
    model.fit(small, labels, batch_size=16, epochs=steps // 3, verbose=0)
    return model.predict(new, 97, verbose=0).argmax(axis=1)


# %%
import time

rows = []
for name, classify in (("frozen, from ImageNet", from_imagenet), ("from scratch", from_scratch)):
    start = time.perf_counter()
    predicted = classify()
    seconds = time.perf_counter() - start
    rows.append((name, seconds, 100 * balanced_accuracy_score(truth, predicted)))
tlk.table(rows, ["one draw of 35 labels", "seconds", "balanced accuracy (%)"], digits=0)

# %% [markdown]
# Most of the time in the first row is spent on loading and set-up, so it hardly grows with more
# labels. The time in the second row grows with every image and every pass. (One draw, one machine:
# your times will differ.)
#
# ## Who gains
#
# Training from scratch is for a few large companies, which have the data, the machines and the
# months. With a backbone to start from, others can play: a research group anywhere, with one
# graphics card or none. A hospital with three hundred scans and a diagnosis for each. A teacher
# whose class should see a network work before the bell rings. A start-up that must know by Friday
# whether its idea holds. They need what you needed just now: a file with weights, a handful of
# labels, and a few seconds on two cores.
#
# ## Where it does not help
#
# You can only transfer what the source taught, and ImageNet taught little about pen strokes.
# `digits` is real handwriting. Next to the ImageNet network we put `glyph_resnet`, which has
# learned printed letters (no digits, and nothing handwritten).

# %% tags=["plumbing"] alt="Bars for real handwritten digits, balanced accuracy. With 5 labels: letters, frozen 96; ImageNet, frozen 87; from scratch 87; pixels 83 %. With 30 labels: letters 99, from scratch 98, ImageNet 96, pixels 93 %."
digits = {
    "letters, frozen": stored("digits", "frozen", "glyph_resnet"),
    "ImageNet, frozen": stored("digits", "frozen", "efficientnet_lite0"),
    "from scratch": stored("digits", "scratch", "glyph_resnet_small"),
    "pixels": stored("digits", "pixels"),
}
groups = {
    f"{count} labels per class": {name: draws[count] for name, draws in digits.items()}
    for count in (5, 30)
}
tlk.plots.bars(groups, title="digits (real): letters help, ImageNet hardly does")

# %% [markdown]
# With five labels, ImageNet ties with a small network from scratch; with thirty, it is behind. The
# right source, letters, is nine points ahead of ImageNet with five labels. And what about the
# other way round? Here is a table of sources and targets, with thirty labels per class:

# %% tags=["plumbing", "nbval-check-output"]
SOURCES = {"ImageNet": "efficientnet_lite0", "letters": "glyph_resnet"}
targets = ("lesions", "clothes", "digits")
table = {
    source: {target: stored(target, "frozen", preset)[30] for target in targets}
    for source, preset in SOURCES.items()
}
table["letters' network, untrained"] = {t: stored(t, "random", "glyph_resnet")[30] for t in targets}
table["pixels"] = {target: stored(target, "pixels")[30] for target in targets}
tlk.table(table, "frozen features of")

# %% [markdown]
# Letters are worth nothing on lesions: pixels do as well, and so, within two or three points, does
# the same network untrained. Chapter 2 finds out why. On digits ImageNet beats pixels, but letters
# beat ImageNet. **The right source matters**, and you can find out in seconds.
#
# On two large collections of real medical images, networks pretrained on ImageNet ended up hardly
# better than networks trained from scratch, though they got there sooner ([Raghu and others,
# 2019](https://arxiv.org/abs/1902.07208)): there were enough labels. So measure, and compare with
# pixels, with an untrained network and with a network from scratch.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: how many labels for half?
#
# You need 50 % balanced accuracy on `lesions`. How many labels per class does that take from
# ImageNet, from scratch, and with pixels? All the numbers are in the first line plot.

# %% [markdown] tags=["hint"]
# `rivals_on("lesions")` holds the data of the plot: for each line, the scores of the draws by
# number of labels. `np.interp(50, means, counts)` reads a curve backwards. Apply it to the
# logarithm of the counts. A line that ends below 50 has no answer, so report it as such.

# %% tags=["answer"]
needed = []
for name, curve in rivals_on("lesions").items():
    means = [draws.mean() for draws in curve.values()]
    count = f"{np.exp(np.interp(50, means, np.log(LABELS))):.0f}"
    needed.append((name, count if means[-1] >= 50 else "not reached with 30"))
tlk.table(needed, ["features", "labels per class for 50 %"])

# %% [markdown] tags=["answer"]
# About eight labels per class from ImageNet, and twice as many from scratch. Pixels and the
# untrained network end at 37 and 40 %: the answer is "not reached", and no number can replace it.
# If features do not show what is asked for, more labels do not repair them; they only bring out
# the little that is there.

# %% [markdown] tags=["question"]
# ### Exercise 2: one example of each
#
# Take ten labelled digits, one per class. What share of the test digits does a classifier get
# right with the features of `glyph_resnet`, and what share with pixels? Guess first.

# %% [markdown] tags=["hint"]
# `tlk.load_task("digits", labels_per_class=1)` draws them, and `tlk.load_backbone("glyph_resnet")`
# is the network (for images of 32 pixels). The rest is the same four lines as above. Use several
# draws, because a single example may be a lucky one.

# %% tags=["answer"]
letters = tlk.load_backbone("glyph_resnet", 32)
pool = keras.layers.GlobalAveragePooling2D()(letters.output)
views = {"letters": keras.Model(letters.input, pool), "pixels": as_pixels}
new, answers = (part[:200] for part in tlk.load_task("digits").arrays("test")[:2])
accuracies = {}
for name, view in views.items():
    rows = np.asarray(view(new))
    for draw in range(5):
        one = tlk.load_task("digits", 1, 5 * SEED + draw).arrays("train")[:2]
        classifier.fit(np.asarray(view(one[0])), one[1])
        accuracies.setdefault(name, []).append(100 * classifier.score(rows, answers))
tlk.table(accuracies, "one label per class, accuracy (%)", digits=0)

# %% [markdown] tags=["answer"]
# With the features learned from letters about eight in ten are right, with pixels about half. A
# digit has to be recognised wherever it stands and however it leans. Pixels know nothing about
# that, but a network that had to name bent and blurred letters has learned it. One labelled
# example is enough to *name* classes that the features already tell apart.

# %% [markdown] tags=["question"]
# ### Exercise 3: negatives
#
# Turn the test digits into negatives (`255 - images`), leave the labelled ones as they are, and
# use twenty labels per class. What do you expect from pixels, and from the features learned from
# letters?

# %% [markdown] tags=["hint"]
# Use `tlk.load_task("digits", 20, SEED)`, then proceed as in exercise 2: fit once, score twice. A
# positive and its negative have no pixel in common. The letters came in all colours, light on dark
# and dark on light.

# %% tags=["answer"]
few = tlk.load_task("digits", 20, SEED).arrays("train")[:2]
turned = []
for name, view in views.items():
    classifier.fit(np.asarray(view(few[0])), few[1])
    right = [classifier.score(np.asarray(view(x)), answers) for x in (new, 255 - new)]
    turned.append((name, 100 * right[0], 100 * right[1]))
tlk.table(turned, ["features", "accuracy (%)", "accuracy on negatives (%)"], digits=0)

# %% [markdown] tags=["answer"]
# Pixels do no better than guessing (10 %): nothing looks less like a black three than a white one.
# The features learned from letters still get most of them right. That a letter stays the same in
# any colour is knowledge too, and it is transferred. In chapter 2 that same knowledge does harm.

# %% [markdown]
# ## What to remember
#
# - **Transfer learning** takes what a network learned where examples were plentiful to a task
#   where they are few. A frozen backbone and a linear classifier are all it takes.
# - It saves labels, compute and time, most of all with few labels; with all labels the lead may be
#   gone.
# - It helps if the source taught what the target needs. Always compare with pixels, with the same
#   network untrained and with a network from scratch.
#
# **Then:** which part of a network to take, when to take nothing, and how: [chapter
# 2](02_what_is_transfer_learning.ipynb).
