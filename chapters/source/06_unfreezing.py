# %% [markdown]
# # 6 · Unfreezing: what happens when a network learns again
#
# **The question.** A pretrained network can stay as it is, learn a little, or learn all over.
# Which parts should learn on *your* data, in which order, and how fast?
#
# **What you will see.** A network that has only ever seen printed letters, no digits among them,
# reads handwritten digits almost without a mistake, and nothing in it had to change. Then the data
# change, it fails, and what you let it learn decides whether it recovers or forgets everything.
#
# *Section 1.6 of the course. About a minute and a quarter on two cores, no internet needed.*

# %%
import tlkeras as tlk

import keras
import numpy as np

# %% [markdown]
# ## The task and the network
#
# The digits are real handwriting, scanned at 8 × 8 pixels. Thirty labelled images of each digit
# are for training, and 800 that are never trained on are for the test.

# %%
task = tlk.load_task("digits", labels_per_class=30, seed=0)
images, labels = task.arrays("train")
first = [np.flatnonzero(labels == digit)[i] for i in range(2) for digit in range(10)]
tlk.plots.samples(images[first], labels[first], task.classes)

# %% [markdown]
# The **backbone** comes pretrained, the **head** on top of it is new. Seen from the bottom, the
# network is a row of blocks; these are what we freeze and unfreeze.


# %% tags=["nbval-check-output"]
def new_model(seed=0):
    keras.utils.set_random_seed(seed)
    return tlk.add_head(tlk.load_backbone("glyph_resnet"), classes=10)


model = new_model()
tlk.find_blocks(model)

# %% [markdown]
# ## Unfreezing is setting a flag
#
# Every Keras layer has a flag, `trainable`, and `fit` leaves alone whatever has it off. Switch off
# the backbone by hand, and count what is left to learn.

# %% tags=["nbval-check-output"]
backbone = model.layers[1]
start = [keras.ops.convert_to_numpy(weight) for weight in backbone.weights]  # for later
backbone.trainable = False
print("parameters in all:       ", model.count_params())
print("parameters left to learn:", sum(np.prod(w.shape) for w in model.trainable_weights))

# %% [markdown]
# One flag is easy; the right flags on every layer, again at every stage, are not. `tlk.freeze`
# takes a **policy**, sets them all, and returns a table of what learns.

# %% tags=["nbval-check-output"]
tlk.freeze(model, tlk.policies.last_blocks(1))

# %%
tlk.plots.blocks(model)

# %% [markdown]
# ## Option 1: only the head
#
# A new head is random, and its first gradients are noise. Sent through the backbone, that noise
# would be written over what the backbone knows, so the head learns first, alone, at a high rate.


# %%
def train(model, stages, data=task.train, validation=task.validation):
    return tlk.fit_stages(model, stages, data, validation, seed=0, verbose=0)


def accuracy(model, data):
    return model.evaluate(*data, verbose=0, return_dict=True)["accuracy"]


head_stage = tlk.Stage("head", tlk.policies.head_only(), learning_rate=1e-2, epochs=8)
run = train(model, [head_stage])
run.plot()

# %% tags=["nbval-check-output"]
near = accuracy(model, task.arrays("test"))
print("Reads more than 97 of 100 handwritten digits:", near > 0.97)

# %% [markdown]
# 2,570 numbers were learned, and 1.3 million stayed as they were. Digits are strokes, the backbone
# knows strokes, and for a target this near to its source there is little left to gain.
#
# ## A target that is far
#
# Now put the same digits behind blinds: stripes that invert them. It is a made-up shift, but an
# honest one, for the backbone has never seen stripes cross a stroke.

# %%
blinds = 128 + 127 * np.sin(1.3 * np.arange(32))


def far(split):
    x, y = task.arrays(split)
    return np.abs(x - blinds[:, None]).astype("float32"), y


far_train, far_validation, far_test = far("train"), far("validation"), far("test")
tlk.plots.samples(far_train[0][first], labels[first], task.classes)

# %% tags=["nbval-check-output"]
model = new_model()
runs = {"head only": train(model, [head_stage], far_train, far_validation)}
with_head = model.get_weights()
print("Now the head alone reads more than 90 of 100:", accuracy(model, far_test) > 0.9)

# %% [markdown]
# The head can only weigh features that the backbone gives it, and these no longer fit. Time to
# unfreeze.
#
# ## The other options
#
# Section 1.6 names three more choices, and each is a policy: **the top block too** (partial
# fine-tuning), **the middle** (where edges are familiar and shapes are not), and **everything**
# (full fine-tuning). Each goes on from the head just trained, at a rate 30 times smaller.

# %%
options = {
    "top block": tlk.policies.last_blocks(1),
    "middle blocks": tlk.policies.middle_blocks(),
    "all blocks": tlk.policies.all_blocks(),
}
for name, policy in options.items():
    model = new_model()
    model.set_weights(with_head)
    tune = tlk.Stage("tune", policy, learning_rate=3e-4, epochs=5)
    runs[name] = train(model, [tune], far_train, far_validation)

# %% [markdown]
# What became of each? Accuracy is on the test images. The **drift** is how far the backbone's
# weights moved, in percent of their size before.


# %%
def drift(model):
    now = [keras.ops.convert_to_numpy(weight) for weight in model.layers[1].weights]
    moved = sum(np.sum((w - w0) ** 2) for w, w0 in zip(now, start, strict=True))
    return 100 * np.sqrt(moved / sum(np.sum(w0**2) for w0 in start))


score = {name: accuracy(run.model, far_test) for name, run in runs.items()}
print(f"{'what learns':14} {'test':>7} {'parameters':>11} {'seconds':>8} {'drift':>7}")
for name, run in runs.items():
    learned, moved = run.stages[-1].learns.trainable_params, drift(run.model)
    print(f"{name:14} {score[name]:7.1%} {learned:11,} {run.seconds:8.1f} {moved:6.2f}%")

# %% tags=["nbval-check-output"]
print("Frozen means frozen, head only drifts by", drift(runs["head only"].model), "%")
print("The top block beats the head alone: ", score["top block"] > score["head only"])
print("All blocks beat the top block alone:", score["all blocks"] > score["top block"])

# %% [markdown]
# The further the target, the deeper it pays to go. And a small drift is enough: the weights are
# adjusted, not replaced.
#
# ## The playbooks
#
# What you just did is the **two-stage** playbook: the head, then more blocks with it at a rate 10
# to 100 times smaller. **Progressive unfreezing** opens one block more a stage. A plan is data, and
# `tlk.fit_stages` runs it: it sets the flags, compiles, and fits, once a stage.

# %%
plan = tlk.recipes.progressive(head_epochs=8, head_lr=1e-2, block_epochs=4, block_lr=3e-4, blocks=2)
plan

# %% [markdown]
# The first stage of this plan is the head you have trained already, so go on from there.

# %%
model = new_model()
model.set_weights(with_head)
runs["progressive"] = train(model, plan.stages[1:], far_train, far_validation)
runs["progressive"].plot()

# %% [markdown]
# And without a playbook: everything open from the first step, at the head's learning rate.

# %%
rushed = tlk.recipes.full(epochs=5, lr=1e-2)
runs["rushed"] = train(new_model(), rushed, far_train, far_validation)
for name in ("progressive", "rushed"):
    score[name] = accuracy(runs[name].model, far_test)
    print(f"{name:12} test {score[name]:.1%}, drift {drift(runs[name].model):.1f}%")

# %% tags=["nbval-check-output"]
moved = drift(runs["rushed"].model) > 3 * drift(runs["progressive"].model)
print("Rushing moves the backbone more than three times as far:", moved)
print("and reads worse than the head alone:", score["rushed"] < score["head only"])

# %% [markdown]
# That is **catastrophic forgetting**: what the backbone knew was overwritten before the head knew
# what to ask of it.
#
# ## One seed is an anecdote
#
# Every number above came from one draw of 300 images. These come from three, each trained longer
# (ten epochs after the head's ten), measured by `python tools/measure_unfreezing.py` and stored in
# `data/results/unfreezing.csv`. A dot is a run.

# %%
import csv

from tlkeras.paths import data_root

with open(data_root() / "results" / "unfreezing.csv") as file:
    stored = list(csv.DictReader(file))
rows = list(dict.fromkeys((row["target"], row["option"]) for row in stored))
with tlk.plots.canvas(size=(7, 3.2)) as (figure, axis):
    for y, key in enumerate(rows):
        runs_of = [r for r in stored if (r["target"], r["option"]) == key]
        scores = [100 * float(r["test_accuracy"]) for r in runs_of]
        axis.plot(scores, [y] * len(scores), "o", color=tlk.plots.BLUE, alpha=0.6)
        axis.plot([np.mean(scores)], [y], "|", markersize=18, color="black")
    axis.set_yticks(range(len(rows)), [f"{target}: {name}" for target, name in rows])
    axis.set(xlabel="test accuracy (%), three draws of 300 images; bar: mean", xlim=(0, 101))
    axis.invert_yaxis()
figure

# %% [markdown]
# ## The trap in BatchNormalization
#
# A BatchNorm layer keeps a running mean and variance. Pretrained ones are part of what the backbone
# knows, and a small batch of new data should not overwrite them. The usual advice is to call the
# backbone with `training=False`. Watch what `fit` makes of it, once the backbone is unfrozen:


# %%
def statistics(model):
    layers = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
    return np.concatenate([keras.ops.convert_to_numpy(x.moving_mean) for x in layers])


backbone = tlk.load_backbone("glyph_resnet")
image = keras.Input((32, 32, 3))
pooled = keras.layers.GlobalAveragePooling2D()(backbone(image, training=False))
guide = keras.Model(image, keras.layers.Dense(10)(pooled))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
guide.compile(keras.optimizers.Adam(1e-5), loss)
before = statistics(guide)
guide.fit(images[:64], labels[:64], verbose=0)
print("Keras", keras.__version__)
print(
    "training=False at call time keeps the statistics:", np.array_equal(before, statistics(guide))
)

# %% [markdown]
# On Keras up to 3.15 the answer is False: the outer model passes its own `training=True` down.
# `tlkeras` does not rely on that argument. It has three modes, which hold on every Keras 3:
# `"frozen"` (nothing in the layer moves), `"affine"` (its scale and shift learn, its statistics
# stay), and `"train"` (all of it learns).

# %% tags=["nbval-check-output"]
for mode in ("frozen", "affine", "train"):
    tlk.freeze(guide, tlk.policies.all_blocks(), batchnorm=mode)
    guide.compile(keras.optimizers.Adam(1e-5), loss, run_eagerly=True)  # no time lost in tracing
    before = statistics(guide)
    guide.fit(images[:64], labels[:64], verbose=0)
    print(f"{mode:7} statistics stay bit-identical: {np.array_equal(before, statistics(guide))}")

# %% [markdown]
# ## What to remember
#
# - Unfreezing is a flag on every layer; what is frozen does not move by a single bit.
# - Near the source, the head is enough. The further the target, the deeper it pays to go.
# - Train a new head first. Then open blocks, at a rate 10 to 100 times smaller.
# - Everything at once, at the head's rate, is how a network forgets.
# - Keep BatchNorm's statistics frozen unless you have the data to learn better ones.
#
# ## Now you
#
# 1. How much would learn with *two* blocks open? Look first, then train it as above: where does it
#    land between one block and all?

# %% tags=["answer"]
tlk.freeze(model, tlk.policies.last_blocks(2))

# %% [markdown]
# 2. Open one block by its name, and nothing else. What does the table say about the head?

# %% tags=["answer"]
tlk.freeze(model, tlk.policies.named("stack2"))
