# %% [markdown]
# # 9 · Pitfalls: what goes wrong, how to see it, what to do
#
# **The question.** Training went wrong without any error message. What was it?
#
# **The promise.** In about a minute on two cores you make five well-known mistakes on purpose. You
# see each one on its curve, check for it in a few lines, and fix it. Afterwards you can read a bad
# curve yourself, and have a doctor that reads it with you. *(Section 1.9 of the course; no internet
# needed.)*

# %% [markdown]
# ## The idea
#
# A mechanic listens to the engine before opening the hood. A training run also has its telltale
# sounds: two losses that drift apart, a drop where layers were unfrozen, a curve that flattens out
# too low. Here are five symptoms and what they usually mean:
#
# | you see | probable cause | what to do |
# |---|---|---|
# | training loss falls, validation does not improve | **[overfitting](glossary.md#overfitting)**: the network memorises the images | more regularisation or dropout, fewer unfrozen layers |
# | accuracy drops when layers are unfrozen | the learning rate is too high for pretrained layers | a lower rate for them; the head's can stay higher |
# | training is unstable with small batches | **[BatchNorm](glossary.md#batchnorm)** computes its statistics from too few images | freeze BatchNorm, or use GroupNorm or LayerNorm |
# | the model no longer knows what it knew | **[forgetting](glossary.md#catastrophic-forgetting)**: pretrained weights are overwritten | unfreeze step by step, or use a lower rate |
# | training the head alone does not improve accuracy | the data are too far from the source | unfreeze more |
#
# For four of them we use the ImageNet network and ten labelled photographs of each class of
# clothes.

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("09")
tlk.accelerate(quiet=True)
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
train, validation = task.arrays("train"), tuple(x[:200] for x in task.arrays("validation"))

# %%
cache = tlk.FeatureCache()  # every run trains the same head first, on features computed once
head = tlk.Stage("head", tlk.policies.head_only(), learning_rate=3e-3, epochs=5)
last = tlk.policies.last_blocks(1)


def fit(*stages):
    keras.utils.set_random_seed(SEED)
    backbone = tlk.load_backbone(setting.backbone, setting.image_size)
    model, plan = tlk.add_head(backbone, len(task.classes)), tlk.Plan([head, *stages])
    options = {"cache": cache, "seed": SEED, "batch_size": 16, "verbose": 0}
    return tlk.fit_stages(model, plan, train, validation, **options)


# %% tags=["plumbing"]
def about(value, low, high):
    """Say what holds for other draws, too; show the number only if it lies in between."""
    if value < low:
        return f"less than {low}"
    return f"more than {high}" if value > high else value


# %% [markdown]
# ## 1. It memorises the training images
#
# First train the [head](glossary.md#head), then the last [block](glossary.md#block) with it, for
# many epochs. That is 2.7 million parameters learning from a hundred images.

# %% alt="Two panels. Training loss falls to zero; validation loss is lowest in epoch 4, rises to about 1.8 in epoch 10 and ends at 1.5. Training accuracy reaches 1, validation accuracy stays at about 0.7."
by_heart = fit(tlk.Stage("tune", last, learning_rate=2e-4, epochs=8))
by_heart.plot()

# %% [markdown]
# Check what `fit` returns: in which epoch was validation at its best, and what did training do
# after that?

# %%
loss, val_loss = (np.array(by_heart.history[name]) for name in ("loss", "val_loss"))
best = int(np.argmin(val_loss))
print(f"best validation loss {val_loss[best]:.2f} in epoch {best + 1} of {len(loss)}; since then "
      f"training {loss[best]:.2f} -> {loss[-1]:.2f}, validation -> {val_loss[-1]:.2f}")  # fmt: skip

# %%
by_heart.diagnose()

# %% [markdown]
# The best epoch is one in which only the head learned. The block that was unfrozen later fits the
# hundred training images better, but no others. (Validation accuracy changes by less than 200
# images can resolve.) So let fewer layers learn: here is the same stage at the same rate, for the
# head alone.

# %%
steady = fit(tlk.Stage("tune", tlk.policies.head_only(), learning_rate=2e-4, epochs=8))
losses = {"the last block, too": by_heart, "the head alone": steady}
losses = {name: run.history["val_loss"][5:] for name, run in losses.items()}
rows = [[name, max(stage), stage[-1]] for name, stage in losses.items()]
tlk.table(rows, ["what learns", "highest validation loss", "at the end"], digits=2)

# %% tags=["nbval-check-output"]
gap = about(rows[0][1] - rows[1][1], 0, 0.1)
tlk.table([["with the last block it rises higher by", gap]], ["validation loss", "difference"])

# %% [markdown]
# The other cure is to stop in time. `fit_stages` ends each stage at its epoch of lowest validation
# loss, as `keras.callbacks.EarlyStopping(restore_best_weights=True)` does in `fit`. After that come
# more images, and augmentation, dropout and weight decay, as in recipes B and C of [chapter
# 7](07_choosing_layers.ipynb).
#
# ## 2. It breaks when layers are unfrozen
#
# Now train the same last block at 1e-2, a [learning rate](glossary.md#learning-rate) that suits a
# head, for one epoch in batches of two.

# %% alt="Two panels. In the one epoch of the second stage the loss jumps from below 1.5 to about 37 in training and validation, and accuracy falls from 0.7 to 0.1."
tune = tlk.Stage("tune", last, learning_rate=1e-2, epochs=1, batch_size=2)  # 50 steps
hot = fit(tune)
hot.plot()

# %% [markdown]
# One step of AdamW moves a weight by about the learning rate, whatever the gradient, and a typical
# weight here is 0.08 ([chapter 7](07_choosing_layers.ipynb)). At 1e-2 a few steps replace what
# ImageNet taught. `run.diagnose()` says in which stage it happened, and a finding holds a changed
# plan that should fix it:

# %%
hot.diagnose()

# %%
cure = hot.diagnose()[0].apply(hot.plan)
cure

# %% [markdown]
# A cure has to be tried. We run the doctor's plan, which has a tenth of the rate, and next to it a
# much gentler rate of 3e-5.


# %%
def first_epoch(run):
    """Validation before the second stage, and after its first epoch, in percent."""
    accuracy = 100 * np.array(run.history["val_accuracy"])
    return [max(accuracy[:5]), accuracy[5]]


cured, gentle = fit(cure.stages[1]), fit(tune.replace(learning_rate=3e-5))
rates = {"1e-2": hot, "1e-3, the doctor's": cured, "3e-5": gentle}
rows = [[name, *first_epoch(run)] for name, run in rates.items()]
tlk.table(rows, ["learning rate", "validation before (%)", "after an epoch (%)"], digits=0)

# %% tags=["nbval-check-output"]
falls = [[name, about(before - after, 15, 30)] for name, before, after in rows]
tlk.table(falls, ["learning rate", "validation falls by (points)"], digits=0)

# %% [markdown]
# A tenth of the rate is not enough here: accuracy still falls by more than 30 points. The doctor
# finds the same symptom in this run, and the plan it then suggests has a rate of 1e-4. So apply a
# finding, train, diagnose again, and repeat until nothing is found. At 3e-5 nearly all of the
# accuracy is kept.
#
# ## 3. BatchNorm and small batches
#
# A [BatchNorm](glossary.md#batchnorm) layer that trains normalises every batch by the batch's own
# mean and variance, and keeps a running average of them for later use. With two images per batch
# these averages are mostly noise.
#
# By hand, in plain Keras: take a model with a trained head, let the BatchNorm layers of the last
# block train again, and call the model in training mode on 50 images, two at a time. There is no
# loss and no optimizer, so no weight learns anything.

# %%
model = steady.model  # a trained head on a frozen backbone
*_, network = model.layers[1].layers  # inside the backbone: EfficientNet without its preprocessing
found = [np.mean(model.predict(validation[0], verbose=0).argmax(axis=1) == validation[1])]
for layer in network.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.trainable = layer.name.startswith(("block6", "block7", "top"))
for first in range(0, 50, 2):
    model(train[0][first : first + 2], training=True)  # only the running averages move
found.append(np.mean(model.predict(validation[0], verbose=0).argmax(axis=1) == validation[1]))
print(f"validation before {found[0]:.0%}, after {found[1]:.0%}")

# %% [markdown]
# The same mistake in a training run: everything is as in the gentle run, except for
# `batchnorm="train"`.

# %% alt="Two panels. As the second stage begins with BatchNorm in training, the loss more than doubles and accuracy falls from 0.7 to 0.2 in validation, and below that in training."
noisy = fit(tune.replace(learning_rate=3e-5, batchnorm="train"))
noisy.plot()

# %%
noisy.diagnose()

# %% [markdown]
# From the curve alone this looks like symptom 2. The gentle run tells them apart: there BatchNorm
# was frozen, and nothing else differs. In plain Keras, set `layer.trainable = False` on every
# `BatchNormalization` before `compile`. In `tlkeras`, `"frozen"` is the default.

# %%
rows = [
    ["learn, batches of 2", *first_epoch(noisy)],
    ["frozen, batches of 2", *first_epoch(gentle)],
]
tlk.table(rows, ["BatchNorm's statistics", "validation before (%)", "after an epoch (%)"], digits=0)

# %% tags=["nbval-check-output"]
gap = about(first_epoch(gentle)[1] - first_epoch(noisy)[1], 0, 20)
tlk.table([["frozen is ahead by", gap]], ["BatchNorm's statistics", "points"], digits=0)

# %% [markdown]
# If BatchNorm has to learn (when training from scratch, say) and only small batches fit in memory,
# replace it. **GroupNorm** normalises within each image, so even a batch of one will do ([Wu & He
# 2018](https://arxiv.org/abs/1803.08494)); LayerNorm treats all channels as one group. Do this only
# in networks that are still to be trained: pretrained weights expect the statistics that the
# replacement throws away.

# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
swapped = tlk.to_groupnorm(backbone)
print(f"{len(backbone.layers[-1].weights) - len(swapped.layers[-1].weights)} statistics are gone")

# %% [markdown]
# ## 4. It forgets
#
# Does the network still know what it knew? Put the original ImageNet head back on the tuned
# backbone and show it a photograph of a palace.

# %%
from keras_hub.utils import decode_imagenet_predictions
from sklearn.datasets import load_sample_image

palace = load_sample_image("china.jpg")[None, :, 106:533]
classifier = tlk.load_classifier(setting.backbone)


def says(weights):
    classifier.get_layer("efficient_net_backbone").set_weights(weights)
    guesses = classifier.predict(palace, verbose=0)
    [[(name, share)]] = decode_imagenet_predictions(guesses, top=1)
    return [name, 100 * float(share)]


# %%
def moved(weights):
    """How far the kernels have moved, in percent of their size."""
    kernels = [(a, b) for a, b in zip(start, weights, strict=True) if a.ndim == 4]
    way = sum(np.sum((a - b) ** 2) for a, b in kernels)
    return 100 * np.sqrt(way / sum(np.sum(a**2) for a, b in kernels))


# %%
start = backbone.layers[-1].get_weights()
tuned = {"tuned at 3e-5": gentle, "tuned at 1e-2": hot}
kept = {"as it came": start}
kept |= {name: run.model.layers[1].layers[-1].get_weights() for name, run in tuned.items()}
rows = [[name, moved(weights), *says(weights)] for name, weights in kept.items()]
tlk.table(rows, ["backbone", "moved (%)", "first guess", "its share (%)"])

# %% tags=["nbval-check-output"]
seen = [[row[0], row[2] if row[2] == "palace" else "something else"] for row in rows]
tlk.table(seen, ["backbone", "the photograph of a palace shows"])

# %% [markdown]
# Our task has no palaces, so is this a loss? Yes: clothes are also made of edges, curves and
# textures, and at 1e-2 accuracy on clothes is at chance as well. One cure is the lower rate; the
# other is to unfreeze step by step ([chapter 8.5](08_05_progressive_unfreezing.ipynb)). One
# photograph is an example, not a measurement. Where the old task matters, measure it before and
# after, as [chapter 6](06_unfreezing.ipynb) does on a hundred classes of letters, over five draws.
#
# ## 5. The head alone is not enough
#
# A small network trained on printed letters gets handwritten digits behind blinds, synthetic
# stripes that invert them. Its features do not fit them well, and a head can make up for only part
# of that.

# %%
digits = tlk.load_task("digits", 30, SEED, 32)
stripes = (128 + 127 * np.sin(1.3 * np.arange(32)))[:, None, None]
behind = [(np.abs(x - stripes), y) for x, y in map(digits.arrays, ("train", "validation"))]

# %% alt="Two panels for a head alone: validation accuracy rises to about 0.7 in thirty epochs, and in sixty more goes up and down between 0.7 and 0.84; training accuracy is lower, for it is measured with dropout."
keras.utils.set_random_seed(SEED)
letters = tlk.add_head(tlk.load_backbone("glyph_resnet_small", 32), len(digits.classes))
plateau = tlk.fit_stages(letters, tlk.recipes.head_only(90, 1e-2), *behind, seed=SEED, verbose=0)
plateau.plot()

# %%
plateau.diagnose()

# %% [markdown]
# The suggested cure is a longer plan: the same head stage, and then the last block with it. The
# head is already trained, so only the new stage is left to run. The table shows the best epoch of
# each.

# %%
longer = plateau.diagnose()[0].apply(plateau.plan)
new_stage = tlk.Plan([longer.stages[1].replace(epochs=8)])
more = tlk.fit_stages(letters, new_stage, *behind, seed=SEED, verbose=0)
reached = [100 * max(run.history["val_accuracy"]) for run in (plateau, more)]
tlk.table([["head alone", reached[0]], ["and the last block", reached[1]]], ["what learns", "%"])

# %% tags=["nbval-check-output"]
added = about(reached[1] - reached[0], 0, 3)
tlk.table([["the last block adds", added]], ["validation", "points"], digits=0)

# %% [markdown]
# ## The same with tlkeras: a doctor
#
# `run.diagnose()` reads the curves for these symptoms and a few more, such as a loss that is not a
# number or training that ended too early. If you pass the data, it also looks at predictions (which
# takes time) and finds a class that is never predicted, labels that do not belong to their images,
# and validation images that were used in training. Every report of `tlkeras fit` includes it. A
# finding is a suspicion with its evidence.

# %% [markdown]
# How often is it right? We made twelve faults on purpose and trained in four ways without a fault,
# on three tasks with two draws each. (The head alone on `clothes` is left out of the healthy runs,
# because features from letters do not fit clothes. That leaves 22.)

# %% tags=["plumbing", "nbval-check-output"]
rows, false, healthy = [], 0, 0
stored = tlk.results("pitfalls")
for fault in dict.fromkeys(row["fault"] for row in stored):
    runs = stored.where(fault=fault).rows
    if not runs[0]["wanted"]:
        healthy, false = healthy + len(runs), false + sum(bool(row["found"]) for row in runs)
        continue
    hits = sum(row["wanted"] in row["found"] for row in runs)
    rows.append([fault, runs[0]["wanted"], f"{hits} of {len(runs)}"])
rows.append(["none, in four ways", "any symptom", f"{false} of {healthy}"])
tlk.table(rows, ["what was done", "symptom looked for", "found"], note=stored.note)

# %% [markdown]
# It found 71 of 72 faults, and called one of 22 healthy runs unfinished. The thresholds were set
# while looking at `digits`. On the other two tasks, `glyphs/digits` (synthetic) and `clothes`, it
# found 47 of 48 faults and raised one false alarm in 14 runs. Two draws are few, so read these as
# "nearly all" and "seldom". A fault often shows more than one symptom; the table asks for the one
# that names the fault.
#
# ## Where it fails
#
# The doctor reads symptoms, not causes. A drop at unfreezing looks the same whether the learning
# rate or BatchNorm caused it, so it goes by what the plan says. Faults that leave good curves are
# invisible to it: photographs of the same person in training and validation, or a caption in the
# corner that gives the class away. And its thresholds are rules of thumb. With 200 validation
# images, an accuracy is uncertain by six points or so, and a drop of three may be chance; in such
# cases it reports nothing.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: when would Keras have stopped?
#
# `keras.callbacks.EarlyStopping(patience=2)` monitors `val_loss` in the second stage of symptom 1
# (from epoch 6 on). After which epoch would it have stopped? Which weights would the model have
# without `restore_best_weights=True`?

# %% [markdown] tags=["hint"]
# It stops after two consecutive epochs that are no better than the best so far.

# %% tags=["answer"]
epoch, waited, best = 5, 0, np.inf
while waited < 2 and epoch < len(val_loss):
    value = val_loss[epoch]
    waited, best = (0, value) if value < best else (waited + 1, best)
    epoch += 1
print(f"it stops after epoch {epoch}, at {value:.2f}; the best was {best:.2f}")

# %% [markdown] tags=["answer"]
# It stops two epochs after the best one, and keeps the weights of the last epoch, which are no
# better: `restore_best_weights` is off by default. `fit_stages` keeps the best epoch of every
# stage.

# %% [markdown] tags=["question"]
# ### Exercise 2: who is right?
#
# A colleague has 30 validation images and says that model B, with 24 right, is better than model A,
# with 21. What do you say?

# %% [markdown] tags=["hint"]
# For a share `p` of `n` images, the half-width of the 95 % interval is
# `1.96 * np.sqrt(p * (1 - p) / n)`.

# %% tags=["answer"]
share = np.array([21, 24]) / 30
half = 1.96 * np.sqrt(share * (1 - share) / 30)
rows = [[name, 100 * s, 100 * h] for name, s, h in zip("AB", share, half, strict=True)]
tlk.table(rows, ["model", "right (%)", "± (95 % interval)"], digits=0)

# %% [markdown] tags=["answer"]
# Nobody can tell: the results are 70 ± 16 and 80 ± 14 (95 % intervals), so the ten points between
# them are less than either interval's half-width. To see a difference of ten points you need some
# 300 images, or the same comparison over several draws.

# %% [markdown]
# ## What to remember
#
# - Look at the two losses, at the epoch where layers were unfrozen, and at how high training
#   accuracy gets. If that does not decide, change one thing and run again.
# - Small batches and BatchNorm do not go together: freeze BatchNorm, or replace it before training.
# - A cure is a changed plan, trained again and compared.
#
# **Then:** small modules that are trained in place of the network's own weights, [chapter
# 10.1](10_1_adapters.ipynb); or go straight to what to try first, [chapter
# 11](11_decision_guide.ipynb).
