# %% [markdown]
# # 0 · Start here: your own photographs in fifteen lines
#
# **The question.** You have a folder of photographs, a few dozen per class, and want a program
# that recognises new ones. Are so few images enough, and will it run on a laptop?
#
# **The promise.** In about a minute on two cores you take a network that was trained on a million
# photographs, train it on the classes in a folder in two stages, look at its mistakes, save it,
# and let it classify a photograph. Then you swap in your own folder. *(No internet needed.)*

# %%
import tlkeras as tlk

SEED = 0  # change it for another draw of photographs and other first weights
FOLDER = "photographs"  # or the full path of your own folder
setting = tlk.setting("00")

# %% [markdown]
# ## What the network already sees
#
# The network is EfficientNet-Lite0, trained on ImageNet: photographs of a thousand kinds of
# things. Here are two photographs that come with scikit-learn and were not part of its training.
# What does the network say about them?

# %% alt="Two photographs: a pavilion with curved roofs above a lake, and a large orange dahlia."
import numpy as np
from sklearn.datasets import load_sample_image

photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
squares = np.stack([photograph[:, 106:533] for photograph in photographs])
tlk.plots.strips({"china.jpg and flower.jpg": squares}, columns=2)

# %% tags=["nbval-check-output"]
from keras_hub.utils import decode_imagenet_predictions

classifier = tlk.load_classifier("efficientnet_lite0")
guesses = decode_imagenet_predictions(classifier.predict(squares, verbose=0), top=1)
rows = []
for guess in guesses:
    name, probability = guess[0]
    rows.append([name, 100 * float(probability)])
tlk.table(rows, ["first guess", "probability (%)"], digits=-1)

# %% [markdown]
# The network has to pick one of a thousand labels, and it picks *palace* for the pavilion. The
# flower is a dahlia, which is not an ImageNet class. The closest label is *daisy*, and the network
# is far from sure. But to say daisy at all, it must have seen petals around a centre.
#
# ## The idea
#
# If you can already draw, you can learn to draw horses in an afternoon. You know about light,
# outline and perspective; only the horse is new. It is the same with a network. Its lower layers,
# the **[backbone](glossary.md#backbone)**, have learned edges, textures and parts from ImageNet.
# Only the last layer, the **[head](glossary.md#head)**, is specific to the thousand ImageNet
# classes. So keep the backbone, add a new head for *your* classes, and train that: this is
# **[transfer learning](glossary.md#transfer-learning)**.
#
# ## A folder of photographs
#
# The folder has one subfolder per class, named after the class: `photographs/Sandal/017.png`. To
# have something to work with, the next cell writes such a folder from the task `clothes`, 30
# images per class. Do not expect phone pictures: these are real product photographs, but tiny
# ones, the 28x28 grey thumbnails of [Fashion-MNIST](https://arxiv.org/abs/1708.07747), enlarged to
# 64x64 for the network. (With `TLKERAS_PROFILE=online` the folder holds downloaded photographs of
# cats and dogs instead.) To use your own photographs, set `FOLDER` in the first cell to the full
# path of your folder, and run everything again.

# %% tags=["plumbing"]
import os
import tempfile
from pathlib import Path

import keras

os.chdir(tempfile.mkdtemp())  # everything this chapter writes goes to a temporary folder
source = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
for number, (pixels, label) in enumerate(zip(*source.arrays("train"), strict=True)):
    place = Path("photographs") / source.classes[label].replace("/", " or ")
    place.mkdir(parents=True, exist_ok=True)
    keras.utils.save_img(place / f"{number:03}.png", pixels, scale=False)

# %% alt="Ten small grey product photographs in two rows of five, each with its class: ankle boot, bag, coat, dress, and so on."
size = setting.image_size
task = tlk.load_task(FOLDER, image_size=size, verbose=0)
task.show(rows=2, columns=5)

# %%
counts = [[split, count] for split, count in task.counts.items()]
tlk.table(counts, ["part of the folder", "images"])

# %% [markdown]
# `tlk.load_task` has split the folder: the network learns from *train*, you make choices on
# *validation*, and *test* is kept for the end.
#
# ## By hand, in plain Keras
#
# **Stage one** trains only the new head. The backbone is **frozen**: it computes its outputs, but
# its weights do not change.

# %%
keras.utils.set_random_seed(SEED)
backbone = tlk.load_backbone(setting.backbone, size)  # elsewhere: one of keras.applications
backbone.trainable = False
layers = keras.layers
new = [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(len(task.classes))]
model = keras.Sequential([backbone, *new])

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.AdamW(3e-3), loss, metrics=["accuracy"])
history = model.fit(task.train, epochs=8, verbose=0)

# %% [markdown]
# **Stage two** unfreezes the backbone and continues at a hundredth of the learning rate, so that
# it adapts without forgetting. Two steps are easily forgotten. BatchNorm layers stay frozen, to
# keep what they learned from ImageNet. And the model has to be compiled again, because a change of
# `trainable` only takes effect with `compile` ([chapter 6](06_unfreezing.ipynb)).

# %%
backbone.trainable = True
for block in tlk.find_blocks(backbone):
    for layer in block.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
model.compile(keras.optimizers.AdamW(3e-5), loss, metrics=["accuracy"])
model.fit(task.train, epochs=3, verbose=0)
model.save("by_hand.keras")
by_hand = model.evaluate(task.validation, verbose=0)[1]
print(f"{by_hand:.0%} of the validation images are classified correctly.")

# %% [markdown]
# Guessing would get one in ten right. That was the whole workflow: load, freeze, compile, fit;
# unfreeze, compile again, fit slowly; save.
#
# ## The same with tlkeras
#
# A **plan** holds both stages. `tlk.fit_stages` sets the `trainable` flags, keeps BatchNorm
# frozen, compiles before every stage, and computes the outputs of the frozen layers only once.

# %%
keras.utils.set_random_seed(SEED)
model = tlk.add_head(tlk.load_backbone(setting.backbone, size), classes=len(task.classes))
plan = tlk.recipes.two_stage(head_epochs=8, tune_epochs=3, head_lr=3e-3, tune_lr=3e-5)
run = tlk.fit_stages(model, plan, task.train, task.validation, seed=SEED, verbose=0)
run.save("clothes_run", classes=task.classes)
reached = run.stages[-1].metrics["val_accuracy"]
print(f"Validation accuracy: {by_hand:.0%} by hand, {reached:.0%} with tlkeras.")

# %% [markdown]
# This is one run each, with the same stages, rates and numbers of epochs. With so few validation
# images, a difference of a few images is a tie. (`fit_stages` has also kept the best epoch of each
# stage, chosen on these same images, which flatters it a little.)

# %% tags=["nbval-check-output"]
learned = [[stage.name, stage.learns.trainable_params] for stage in run.stages]
tlk.table(learned, ["stage", "trained parameters"])

# %% [markdown]
# ## Look at the mistakes
#
# Now look at the test images, for the first time. Start with the scores and their 95 % intervals,
# which are wide with so few images.

# %%
found = tlk.interpret(run, task, examples=4)
found

# %% [markdown]
# In the confusion matrix, each row is the true class ("is"), each column the predicted class
# ("taken for").

# %% alt="A confusion matrix of ten true classes by ten predicted classes. Most test images lie on the diagonal; about half of the mistakes are among shirts, tops, pullovers and coats."
found.plot()

# %% alt="The images with the worst mistakes, each with its true and its predicted class, next to a map of where the network looked."
found.plot_examples()

# %% [markdown]
# What do the mistakes have in common? About half of them are garments with sleeves confused with
# one another, just as people confuse them at this size. So more images of *those* classes would
# help most, or fewer classes. But once you change a network because of what you saw on the test
# images, they are no longer a test. To decide on changes, look at the mistakes on validation
# images instead.
#
# ## Use it
#
# The saved folder contains everything you need to use the model later in another program.

# %%
reader = tlk.load_run("clothes_run")
files = sorted(Path(FOLDER).glob("*/*"))[::60]
answers = tlk.predict(reader, files)
rows = []
for number, file in enumerate(files):
    name, probability = answers.ranked(number)[0]  # the most probable class
    rows.append([str(file), name, probability])
tlk.table(rows, ["file", "predicted class", "probability"], digits=2)

# %% [markdown]
# (Most of these five were training images, so being right and confident proves nothing here.) On
# the command line, the same is `tlkeras fit photographs/` and `tlkeras predict runs/...
# photo.jpg`.
#
# ## Is it ImageNet that helps?
#
# Or would any network do? The control is the same network with random weights. Both networks stay
# frozen, and a linear classifier is trained on their outputs, or on the bare pixels. The score is
# **[balanced accuracy](glossary.md#balanced-accuracy)**: the share of each class that is
# recognised, averaged over classes. The results were measured in advance, on five random choices,
# or **[draws](glossary.md#draw)**, of the labelled images.

# %% tags=["plumbing"] alt="Line plot, balanced accuracy on clothes against labelled images per class. ImageNet: 72, 77 and 81 % at 5, 10 and 30. Pixels: 65, 72 and 75 %. Untrained network: 54, 61 and 67 %."
few = {"labels_per_class": [5, 10, 30]}
weights = {"preset": ["efficientnet_lite0", ""], "method": ["frozen", "pixels", "random"]}
stored = tlk.results("tasks", task="clothes", **weights, **few)
scores = stored.scores("method", "labels_per_class", scale=100)
lines = {"ImageNet": scores["frozen"], "pixels": scores["pixels"], "untrained": scores["random"]}
title = "Clothes: learning from ImageNet helps more than the architecture"
tlk.plots.curves(lines, x="labelled images per class", title=title, log=True)

# %% tags=["nbval-check-output"]
stored.mean_by("method", "labels_per_class", scale=100, digits=0)

# %% [markdown]
# (*frozen* is the ImageNet network, *random* the untrained one.) With five images per class, the
# ImageNet network does as well as pixels do with ten. With ten, it does a little better than
# pixels do with thirty (77 ± 1 against 75 ± 1).
#
# ## Where it fails
#
# Handwritten digits are not photographs of things. Here is the same measurement on `digits`, next
# to a network that was trained on printed letters:

# %% tags=["plumbing", "nbval-check-output"]
digits = {}
for name, preset, method in [
    ("ImageNet", "efficientnet_lite0", "frozen"),
    ("pixels", "", "pixels"),
    ("printed letters", "glyph_resnet", "frozen"),
]:
    stored = tlk.results("tasks", task="digits", preset=preset, method=method, **few)
    digits[name] = stored.scores("labels_per_class", scale=100)
tlk.table(digits, "features from", digits=0, note="Measured as above.")

# %% [markdown]
# ImageNet is only two to four points better than pixels here, and letters clearly win. A network
# helps with images that resemble those it was trained on ([chapter
# 1](01_why_transfer_learning.ipynb)).
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: a photograph of none of the classes
# What does your network say about the palace, `squares[0]`, and how sure is it? Guess before you
# run it.

# %% [markdown] tags=["hint"]
# `tlk.predict(reader, pixels)` also accepts an array, but it must have the network's input size.
# Resize it with `keras.ops.image.resize(squares[0].astype("float32"), (size, size))`. Calling
# `.ranked(0)` on the result lists classes and probabilities.

# %% tags=["answer"]
palace = keras.ops.image.resize(squares[0].astype("float32"), (size, size))
answers = tlk.predict(reader, keras.ops.convert_to_numpy(palace))
tlk.table(answers.ranked(0), ["class", "probability"], digits=2)

# %% [markdown] tags=["answer"]
# It names one of the ten classes. The ten probabilities add up to 100 %, so some class has to get
# them: the network has no answer for "none of these". If you expect such photographs, add a class
# for them, or reject answers below a probability that you choose on validation.

# %% [markdown] tags=["question"]
# ### Exercise 2: fewer classes
# Merge shirts, T-shirts, pullovers and coats into one class, without any training: calling a coat
# a shirt then counts as right. What share of the test images is right now, and what was it before?

# %% [markdown] tags=["hint"]
# `found.matrix` is the confusion matrix: rows are true classes, columns predicted classes, in the order
# of `task.classes`. The right answers are on its diagonal, `found.matrix.trace()`.

# %% tags=["answer"]
merged = ("Coat", "Pullover", "Shirt", "T-shirt or top")
same = [task.classes.index(name) for name in merged if name in task.classes]
ten = found.matrix.trace()
within = found.matrix[np.ix_(same, same)]
seven = ten + within.sum() - within.trace()
rows = [["ten", 100 * ten / found.matrix.sum()], ["seven", 100 * seven / found.matrix.sum()]]
tlk.table(rows, ["classes", "accuracy (%)"], digits=0)

# %% [markdown] tags=["answer"]
# Several points more at no cost, because a good part of the mistakes was made within these four
# classes. If all you need is *which shelf*, ask for that. But fewer classes are also easier to
# guess, so do not compare the two numbers as if the network had improved.

# %% [markdown]
# ## What to remember
#
# - Take a backbone that was trained on photographs, add a new head, and train first the head, then
#   the whole network at a small learning rate.
# - Compile after every change of a `trainable` flag. Keep BatchNorm frozen.
# - Look at the mistakes before you change anything; they show which images are missing.
#
# **Then:** [why it works, and when it does not](01_why_transfer_learning.ipynb).
