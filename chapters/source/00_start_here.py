# %% [markdown]
# # 0 · Start here: your own photographs in fifteen lines
#
# **The question.** You have a folder of photographs, a few dozen of each kind, and want a program
# that names new ones. Can that be had from so few, on a laptop?
#
# **The promise.** In a minute and a half on two cores you take a network that has seen a million
# photographs, teach it the kinds in a folder in two stages, look at its mistakes, save it, and have
# it name a photograph. Then you put your own folder in. *(No internet needed.)*

# %% [markdown]
# ## What the network sees already
#
# The network is EfficientNet-Lite0, trained on ImageNet: photographs of a thousand kinds of things.
# Here are two that it was not trained on; they come with scikit-learn. What does it say?

# %% alt="Two photographs: a pavilion with curved roofs above a lake, and a large orange dahlia."
import tlkeras as tlk

import numpy as np
from sklearn.datasets import load_sample_image

photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
squares = np.stack([photograph[:, 106:533] for photograph in photographs])
tlk.plots.strips({"china.jpg and flower.jpg": squares}, columns=2)

# %% tags=["nbval-check-output"]
from keras_hub.utils import decode_imagenet_predictions

classifier = tlk.load_classifier("efficientnet_lite0")
guesses = decode_imagenet_predictions(classifier.predict(squares, verbose=0), top=1)
rows = [[name, 100 * float(probability)] for [(name, probability)] in guesses]
tlk.table(rows, ["first guess", "probability, %"], digits=-1)

# %% [markdown]
# A palace, says a network that must choose among a thousand words. The flower is a dahlia, and
# ImageNet has no dahlia: the nearest word is *daisy*, and the network is far from sure. But to say
# daisy it must have seen petals around a middle.
#
# ## The idea
#
# Whoever can draw learns to draw horses in an afternoon. Light, outline and perspective are there
# already; only the horse is new. A network's lower layers, its
# **[backbone](glossary.md#backbone)**, have learned edges, textures and parts from ImageNet. What
# names the thousand kinds, its **[head](glossary.md#head)**, is the last layer alone. So keep the
# backbone, put on a new head with *your* kinds, and train that: **[transfer
# learning](glossary.md#transfer-learning)**.
#
# ## A folder of photographs
#
# It has a folder for each kind, and its name is the kind's: `photographs/Sandal/017.png`. Ours is
# written on the spot, from `clothes`: real product photographs, small and grey, 30 of each kind.
# For your own, leave out this cell and write their place instead of `photographs` below.

# %% tags=["plumbing"]
import os
import tempfile
from pathlib import Path

import keras

SEED = 0  # other photographs, other first weights
setting = tlk.setting("00")
os.chdir(tempfile.mkdtemp())  # what this chapter writes goes where it disturbs nothing
source = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
for number, (pixels, label) in enumerate(zip(*source.arrays("train"), strict=True)):
    place = Path("photographs") / source.classes[label].replace("/", " or ")
    place.mkdir(parents=True, exist_ok=True)
    keras.utils.save_img(place / f"{number:03}.png", pixels, scale=False)

# %% alt="Ten small grey product photographs in a row of folders: boot, bag, coat, dress, and so on."
size = setting.image_size
task = tlk.load_task("photographs", image_size=size, verbose=0)
task.show(rows=2, columns=5)

# %%
counts = [[split, count] for split, count in task.counts.items()]
tlk.table(counts, ["part of the folder", "photographs"])

# %% [markdown]
# `tlk.load_task` has divided the folder: the network learns from *train*, you choose by
# *validation*, and *test* is kept for the end.
#
# ## By hand, in plain Keras
#
# **Stage one** trains the new head alone. The backbone is **frozen**: it is used and does not
# change.

# %%
keras.utils.set_random_seed(SEED)
backbone = tlk.load_backbone(setting.backbone, size)  # elsewhere: one of keras.applications
backbone.trainable = False
layers = keras.layers
new = [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(len(task.classes))]
model = keras.Sequential([backbone, *new])

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.AdamW(3e-3), loss, metrics=["accuracy"])
history = model.fit(task.train, epochs=6, verbose=0)

# %% [markdown]
# **Stage two** opens the backbone and goes on a hundred times slower, so that it adapts and does
# not forget. Two lines are easily left out: BatchNorm layers keep what they learned from ImageNet,
# and `compile` comes again, because it is what reads the flags ([chapter 6](06_unfreezing.ipynb)).

# %%
backbone.trainable = True
for block in tlk.find_blocks(backbone):
    for layer in block.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
model.compile(keras.optimizers.AdamW(3e-5), loss, metrics=["accuracy"])
model.fit(task.train, epochs=2, verbose=0)
model.save("by_hand.keras")
right = model.evaluate(task.validation, verbose=0)[1]
print(f"{right:.0%} of the validation photographs are named rightly.")

# %% [markdown]
# Guessing would name one of ten. That was all: load, freeze, compile, fit; unfreeze, compile again,
# fit slowly; save.
#
# ## The same with tlkeras
#
# A **plan** holds both stages. `tlk.fit_stages` sets the flags, keeps BatchNorm, compiles before
# every stage, and computes the outputs of what is frozen only once.

# %%
keras.utils.set_random_seed(SEED)
model = tlk.add_head(tlk.load_backbone(setting.backbone, size), classes=len(task.classes))
plan = tlk.recipes.two_stage(head_epochs=8, tune_epochs=3, head_lr=3e-3, tune_lr=3e-5)
run = tlk.fit_stages(model, plan, task.train, task.validation, seed=SEED, verbose=0)
folder = run.save("clothes_run", classes=task.classes)

# %% tags=["nbval-check-output"]
learned = [[stage.name, stage.learns.trainable_params] for stage in run.stages]
tlk.table(learned, ["stage", "numbers that learn"])

# %% [markdown]
# ## Look at the mistakes
#
# Now the test photographs, for the first time. A row is a kind, a column is what it was taken for.

# %% alt="A table of ten kinds against ten answers; most test photographs lie on the diagonal, and the mistakes are among shirts, tops, pullovers, coats and dresses."
found = tlk.interpret(run, task, examples=4)
found.plot()

# %% alt="The photographs it got most wrong, each with its kind and the answer, beside a map of where the network looked."
found.plot_examples()

# %% [markdown]
# What do the wrong answers have in common? About half of them are garments with sleeves, taken for
# one another, as people mix them up at this size. So more photographs of *those* would help most,
# or fewer kinds. Once you change a network by what test photographs show, they test nothing any
# more: for that, look at validation.
#
# ## Use it
#
# What was saved is all that is needed, in another program, on another day.

# %%
reader = tlk.load_run("clothes_run")
new_ones = sorted(Path("photographs").glob("*/*.png"))[::60]
said = tlk.predict(reader, new_ones)
rows = [[str(file), *said.ranked(number)[0]] for number, file in enumerate(new_ones)]
tlk.table(rows, ["photograph", "answer", "probability"], digits=2)

# %% [markdown]
# (Most of these five were among those it learned from: that it is right and sure proves nothing.)
# In a terminal it is `tlkeras fit photographs/` and `tlkeras predict runs/... photo.jpg`.
#
# ## Is it ImageNet that helps?
#
# Or would any network do? The control is the same network with random weights. Both stay frozen,
# and a linear classifier reads their outputs, or the bare pixels. The score is **[balanced
# accuracy](glossary.md#balanced-accuracy)**, the share found of each kind, averaged; from five
# random choices, or **[draws](glossary.md#draw)**, of labelled photographs, measured before.

# %% tags=["plumbing"] alt="Line plot, balanced accuracy on clothes against labelled photographs a kind. ImageNet: 72, 77 and 81 % at 5, 10 and 30. Pixels: 65, 72 and 75 %. Untrained network: 54, 61 and 67 %."
few = {"labels_per_class": [5, 10, 30]}
weights = {"preset": ["efficientnet_lite0", ""], "method": ["frozen", "pixels", "random"]}
stored = tlk.results("tasks", task="clothes", **weights, **few)
scores = stored.scores("method", "labels_per_class", scale=100)
lines = {"ImageNet": scores["frozen"], "pixels": scores["pixels"], "untrained": scores["random"]}
title = "Clothes: what ImageNet taught is worth more than the shape of the network"
tlk.plots.curves(lines, x="labelled photographs of each kind", title=title, log=True)

# %% tags=["nbval-check-output"]
stored.mean_by("method", "labels_per_class", scale=100, digits=0)

# %% [markdown]
# (*frozen* is ImageNet's network, *random* the untrained one.) With five photographs of each kind,
# ImageNet's network does what pixels do with ten; with ten, a little more than pixels do with
# thirty (77 ± 1 against 75 ± 1).
#
# ## Where it fails
#
# Handwritten digits are no photographs of things. The same measurement on `digits`, beside a
# network that was trained on printed letters:

# %% tags=["plumbing", "nbval-check-output"]
digits = {}
for name, preset, method in [
    ("ImageNet", "efficientnet_lite0", "frozen"),
    ("pixels", "", "pixels"),
    ("printed letters", "glyph_resnet", "frozen"),
]:
    stored = tlk.results("tasks", task="digits", preset=preset, method=method, **few)
    digits[name] = stored.scores("labels_per_class", scale=100)
tlk.table(digits, "learned from", digits=0, note="Measured as above.")

# %% [markdown]
# ImageNet is two to four points better than pixels here, and letters win clearly. A network helps
# with what resembles what it has seen ([chapter 1](01_why_transfer_learning.ipynb)).
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: a photograph of no kind at all
# What does your network say of the palace, `squares[0]`, and how sure is it? Guess before you run
# it.

# %% [markdown] tags=["hint"]
# `tlk.predict(reader, pixels)` takes an array, too, but of the network's size: make it smaller with
# `keras.ops.image.resize(squares[0].astype("float32"), (size, size))`. `.ranked(0)` of the answer
# lists kinds and probabilities.

# %% tags=["answer"]
palace = keras.ops.image.resize(squares[0].astype("float32"), (size, size))
answers = tlk.predict(reader, keras.ops.convert_to_numpy(palace))
tlk.table(answers.ranked(0), ["kind", "probability"], digits=2)

# %% [markdown] tags=["answer"]
# It names one of the ten kinds. The probabilities of the ten add up to 100 %, so some kind has to
# get them: a network has no word for "none of these". If such photographs can come, give it a
# folder of them, or refuse answers below a probability that you choose on validation.

# %% [markdown] tags=["question"]
# ### Exercise 2: fewer kinds
# Count shirts, T-shirts, pullovers and coats as one kind, without any training: calling a coat a
# shirt is then right. What share of the test photographs is right now, and what was it?

# %% [markdown] tags=["hint"]
# `found.matrix` is the table above: rows are truth, columns answers, in the order of `task.classes`.
# Right answers are its diagonal, `found.matrix.trace()`.

# %% tags=["answer"]
same = [task.classes.index(kind) for kind in ("Coat", "Pullover", "Shirt", "T-shirt or top")]
ten = found.matrix.trace()
within = found.matrix[np.ix_(same, same)]
seven = ten + within.sum() - within.trace()
rows = [["ten", 100 * ten / found.matrix.sum()], ["seven", 100 * seven / found.matrix.sum()]]
tlk.table(rows, ["kinds", "right, %"], digits=0)

# %% [markdown] tags=["answer"]
# Several points more, for nothing: a good part of the mistakes was made within these four. If what
# you need is only *which shelf*, ask for that. But fewer kinds are also easier to guess, so do not
# compare the two numbers as if the network had become better.

# %% [markdown]
# ## What to remember
#
# - Take a backbone that has seen photographs, put a new head on it, train the head, then all of it,
#   slowly.
# - After every change of a `trainable` flag: `compile`. BatchNorm keeps what it knows.
# - Look at the mistakes before you change anything; they say which photographs are missing.
#
# **Then:** [why it works, and when it does not](01_why_transfer_learning.ipynb).
