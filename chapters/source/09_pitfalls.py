# %% [markdown]
# # 9 · Pitfalls: what goes wrong, how to see it, what to do
#
# **The question.** Training went wrong, and nothing said so. What was it?
#
# **The promise.** In about a minute on two cores you make five well-known mistakes on purpose, see
# each on its curve, check for it in a few lines, and mend it. Afterwards you can read a bad curve,
# and have a doctor that reads it with you. *(Section 1.9 of the course; no internet needed.)*
#
# ## The idea
#
# A mechanic listens to the engine before she opens it. A training run has its sounds, too: two
# losses that part, a drop where a layer was unfrozen, a curve that goes flat too low. Five of them,
# and what they usually mean:
#
# | you see | probably | then |
# |---|---|---|
# | training loss falls, validation does not improve | **[overfitting](glossary.md#overfitting)**: the images are learned by heart | more regularisation or dropout, fewer unfrozen layers |
# | accuracy drops when layers are unfrozen | the rate is too high for pretrained layers | a lower one for them; the head's may stay higher |
# | training is unstable with small batches | **[BatchNorm](glossary.md#batchnorm)** takes its statistics from too few images | freeze BatchNorm, or use GroupNorm or LayerNorm |
# | the model no longer knows what it knew | **[forgetting](glossary.md#catastrophic-forgetting)**: pretrained weights are overwritten | unfreeze step by step, or a lower rate |
# | the head alone does not improve | the data are too far from the source | unfreeze more |
#
# ImageNet's network and ten labelled photographs of each kind of clothes will do for four of them.

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras  # isort: skip
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("09")
tlk.accelerate(quiet=True)
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
train, validation = task.arrays("train"), tuple(x[:200] for x in task.arrays("validation"))

# %%
cache = tlk.FeatureCache()  # every run begins with the same head; its features are kept
head = tlk.Stage("head", tlk.policies.head_only(), learning_rate=3e-3, epochs=5)
last = tlk.policies.last_blocks(1)


def fit(*stages):
    keras.utils.set_random_seed(SEED)
    backbone = tlk.load_backbone(setting.backbone, setting.image_size)
    model, plan = tlk.add_head(backbone, len(task.classes)), tlk.Plan([head, *stages])
    options = {"cache": cache, "seed": SEED, "batch_size": 16, "verbose": 0}
    return tlk.fit_stages(model, plan, train, validation, **options)


# %% [markdown]
# ## 1. It learns by heart
#
# The [head](glossary.md#head) first, then the last [block](glossary.md#block) with it, for many
# epochs: 2.7 million numbers learn from a hundred images.

# %% alt="Two panels. Training loss falls to zero; validation loss is least in epoch 4, rises to almost 2 in epoch 11 and ends at 1.3. Training accuracy reaches 1, validation accuracy stays at about 0.7."
by_heart = fit(tlk.Stage("tune", last, learning_rate=2e-4, epochs=8))
by_heart.plot()

# %% [markdown]
# The check, on what `fit` returns: in which epoch was validation at its best, and what did training
# do afterwards?

# %%
loss, val_loss = (np.array(by_heart.history[name]) for name in ("loss", "val_loss"))
best = int(np.argmin(val_loss))
print(f"best validation loss {val_loss[best]:.2f} in epoch {best + 1} of {len(loss)}; since then "
      f"training {loss[best]:.2f} -> {loss[-1]:.2f}, validation -> {val_loss[-1]:.2f}")  # fmt: skip

# %%
by_heart.diagnose()

# %% [markdown]
# The best epoch is one of the head's: the block that was unfrozen then fits the hundred images
# better, and no others. (Validation accuracy goes up and down by less than 200 images can tell.)
# Fewer unfrozen layers, then: the same stage at the same rate, for the head alone.

# %%
steady = fit(tlk.Stage("tune", tlk.policies.head_only(), learning_rate=2e-4, epochs=8))
losses = {"the last block, too": by_heart, "the head alone": steady}
losses = {name: run.history["val_loss"][5:] for name, run in losses.items()}
rows = [[name, max(stage), stage[-1]] for name, stage in losses.items()]
tlk.table(rows, ["what learns", "highest validation loss", "at the end"], digits=2)

# %% tags=["nbval-check-output"]
print("with the block frozen it never rises as high:", rows[0][1] - rows[1][1] > 0.1)

# %% [markdown]
# The other cure is to stop in time: `fit_stages` ends each stage at its epoch of least validation
# loss, as `keras.callbacks.EarlyStopping(restore_best_weights=True)` does in `fit`. Then come more
# images, and augmentation, dropout and weight decay, as in recipes B and C of [chapter
# 7](07_choosing_layers.ipynb).
#
# ## 2. It breaks when layers are unfrozen
#
# The same at 1e-2, a [learning rate](glossary.md#learning-rate) for heads; one epoch, in batches of
# two.

# %% alt="Two panels. In the one epoch of the second stage the loss jumps from below 1.5 to 25 in validation and 36 in training, and accuracy falls from 0.7 to 0.1."
tune = tlk.Stage("tune", last, learning_rate=1e-2, epochs=1, batch_size=2)  # 50 steps
hot = fit(tune)
hot.plot()

# %% [markdown]
# One step of AdamW moves a weight by about the rate, whatever the gradient, and a typical weight
# here is 0.08 ([chapter 7](07_choosing_layers.ipynb)): at 1e-2 a few steps replace what ImageNet
# taught. `run.diagnose()` says which stage it was, and a finding holds the plan that would mend it:

# %%
hot.diagnose()

# %%
cure = hot.diagnose()[0].apply(hot.plan)
gentle = fit(tune.replace(learning_rate=3e-5))  # a tenth is a first step; this is gentler
cure


# %% tags=["nbval-check-output"]
def first_epoch(run):
    """Validation before the second stage, and after its first epoch, in percent."""
    accuracy = 100 * np.array(run.history["val_accuracy"])
    return [max(accuracy[:5]), accuracy[5]]


before, after = first_epoch(hot)
print("at 1e-2 validation falls by more than 30 points:", before - after > 30)
print("at 3e-5 by less than 15:", first_epoch(gentle)[0] - first_epoch(gentle)[1] < 15)

# %% [markdown]
# ## 3. BatchNorm and small batches
#
# A [BatchNorm](glossary.md#batchnorm) layer that trains normalises every batch by the batch's own
# mean and variance, and keeps a running average for later use. Of two images these are mostly
# noise. All is as in the gentle run, but for `batchnorm="train"`.

# %% alt="Two panels. As the second stage begins with BatchNorm in training, the loss more than doubles and accuracy falls from 0.7 to 0.2 in validation, and below that in training."
noisy = fit(tune.replace(learning_rate=3e-5, batchnorm="train"))
noisy.plot()

# %%
noisy.diagnose()

# %% [markdown]
# From the curve alone this looks like symptom 2. What tells them apart is the gentle run, in which
# BatchNorm was held and nothing else differs. In plain Keras that is `layer.trainable = False` on
# every `BatchNormalization`, before `compile`; here it is the default, `"frozen"`.

# %%
rows = [
    ["learn, batches of 2", *first_epoch(noisy)],
    ["frozen, batches of 2", *first_epoch(gentle)],
]
tlk.table(rows, ["BatchNorm's statistics", "validation before (%)", "after an epoch (%)"], digits=0)

# %% tags=["nbval-check-output"]
gap = first_epoch(gentle)[1] - first_epoch(noisy)[1]
print("frozen BatchNorm is ahead by more than 20 points:", gap > 20)

# %% [markdown]
# Where BatchNorm must learn (from scratch, say) and only small batches fit, swap it: **GroupNorm**
# normalises within each image, so a batch of one is as good as any ([Wu & He
# 2018](https://arxiv.org/abs/1803.08494)); LayerNorm takes all channels as one group. The swap is
# for networks that are still to be trained: pretrained weights expect the statistics that it throws
# away.

# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
swapped = tlk.to_groupnorm(backbone)
print(f"{len(backbone.layers[-1].weights) - len(swapped.layers[-1].weights)} statistics are gone")

# %% [markdown]
# ## 4. It forgets
#
# Does the network still know what it knew? Put ImageNet's old head back on the tuned backbone, and
# show it a photograph of a palace.

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
    """By how much of their size the kernels have moved, in percent."""
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
guesses = {row[0]: row[2] for row in rows}
print("a palace as it came:", guesses["as it came"] == "palace")
print("a palace when tuned at 3e-5:", guesses["tuned at 3e-5"] == "palace")
print("still one when tuned at 1e-2:", guesses["tuned at 1e-2"] == "palace")

# %% [markdown]
# Nobody asked for palaces; is it a loss? It is: edges, curves and textures make clothes, too, and
# at 1e-2 these are at chance as well. The lower rate is one cure; the other is to unfreeze step by
# step ([chapter 8.5](08_05_progressive_unfreezing.ipynb)). One photograph is an example, not a
# measurement: where the old task matters, measure it before and after, as [chapter
# 6](06_unfreezing.ipynb) does on a hundred classes of letters, over five draws.
#
# ## 5. The head alone is not enough
#
# A small network that reads printed letters is given handwritten digits behind blinds, synthetic
# stripes that invert them. Its features do not fit well, and a head can make up for a part of that
# only.

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
# Its cure is a longer plan: the same head stage, then the last block with it. The head is trained
# already, so only the new stage is left. The table has the best epoch of each.

# %%
longer = plateau.diagnose()[0].apply(plateau.plan)
new_stage = tlk.Plan([longer.stages[1].replace(epochs=8)])
more = tlk.fit_stages(letters, new_stage, *behind, seed=SEED, verbose=0)
reached = [100 * max(run.history["val_accuracy"]) for run in (plateau, more)]
tlk.table([["head alone", reached[0]], ["and the last block", reached[1]]], ["what learns", "%"])

# %% tags=["nbval-check-output"]
print("the last block adds more than three points:", reached[1] - reached[0] > 3)

# %% [markdown]
# ## The same with tlkeras: a doctor
#
# `run.diagnose()` reads the curves for these and a few more: a loss that is no number, an end that
# came too early. With data it sees more, for the price of predicting them: a class that is never
# predicted, labels that do not belong to their images, images of validation that were trained on.
# It is in every report of `tlkeras fit`. A finding is a suspicion, with its evidence.

# %% [markdown]
# How often is it right? Twelve faults were made on purpose, and four ways of training without one,
# on three tasks and two draws each (but for the head alone on `clothes`, which letters do not fit:
# 22 healthy runs):

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
# 71 of 72 faults were found, and one healthy run of 22 was called unfinished. The thresholds were
# set while looking at `digits`; on the two other tasks, `glyphs/digits` (synthetic) and `clothes`,
# it is 47 of 48, and one of 14. Two draws are few: read these as "nearly all" and "seldom". A fault
# often shows more than one symptom; the table asks for the one that names it.
#
# ## Where it fails
#
# The doctor reads symptoms, not causes. A drop at unfreezing looks the same whether the rate or
# BatchNorm did it; it goes by what the plan says. Faults that leave good curves are invisible: the
# same person's photographs in training and validation, a caption in the corner that gives the class
# away. And its thresholds are rules of thumb: on 200 validation images a share is uncertain by six
# points or so, and a drop of three may be chance. There it is silent.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: when would Keras have stopped?
#
# `keras.callbacks.EarlyStopping(patience=2)` watches `val_loss` in the second stage of symptom 1
# (from epoch 6 on). After which epoch would it have stopped, and which weights would the model have
# without `restore_best_weights=True`?

# %% [markdown] tags=["hint"]
# It stops after two epochs in a row that are no better than the best so far.

# %% tags=["answer"]
epoch, waited, best = 5, 0, np.inf
while waited < 2 and epoch < len(val_loss):
    value = val_loss[epoch]
    waited, best = (0, value) if value < best else (waited + 1, best)
    epoch += 1
print(f"it stops after epoch {epoch}, at {value:.2f}; the best was {best:.2f}")

# %% [markdown] tags=["answer"]
# Two epochs after the best one, and with the weights of the last, which are no better:
# `restore_best_weights` is off by default. `fit_stages` keeps the best epoch of every stage.

# %% [markdown] tags=["question"]
# ### Exercise 2: who is right?
#
# A colleague has 30 validation images and says that model B, with 24 right, beats model A, with 21.
# What do you say?

# %% [markdown] tags=["hint"]
# The interval of a share: `1.96 * np.sqrt(p * (1 - p) / n)`.

# %% tags=["answer"]
share = np.array([21, 24]) / 30
half = 1.96 * np.sqrt(share * (1 - share) / 30)
rows = [[name, 100 * s, 100 * h] for name, s, h in zip("AB", share, half, strict=True)]
tlk.table(rows, ["model", "right (%)", "±"], digits=0)

# %% [markdown] tags=["answer"]
# That nobody can tell: 70 ± 16 and 80 ± 14, so the ten points between them are less than either ±. To
# see a difference of ten points takes some 300 images, or the same comparison over several draws.

# %% [markdown]
# ## What to remember
#
# - Look at the two losses, at the epoch where layers were unfrozen, and at how high training gets.
#   Where that does not decide, change one thing and run again.
# - Small batches and BatchNorm do not go together: freeze it, or swap it before training.
# - A cure is a changed plan, trained again and compared.
#
# **Then:** small modules that learn in the place of a network, [chapter 10.1](10_1_adapters.ipynb);
# or at once what to try first, [chapter 11](11_decision_guide.ipynb).
