# %% [markdown]
# # 6 · Unfreezing: what happens when a network learns again
#
# **The question.** A pretrained network can stay as it is, learn a little, or learn all over
# again. What do you gain with each choice, and what does it cost?
#
# **The promise.** In about a minute on two cores you freeze a network, train a head, unfreeze the
# last block, compile *again* and train slowly, all in plain Keras, and avoid two traps that give
# no error. You also learn about four options and three playbooks, what each is worth, and what it
# makes a network forget. *(Section 1.6 of the course; no internet needed.)*

# %%
import os

import tlkeras as tlk
import keras
import numpy as np

SEED = 0  # change it for another draw of labels and another run
setting = tlk.setting("06")
tlk.accelerate(quiet=True)  # sets Keras up for the available devices

# %% [markdown]
# ## The idea
#
# A band that has played together for years takes on a new singer. The players are the layers of
# the **[backbone](glossary.md#backbone)**, which know their parts by heart. The singer is the
# **[head](glossary.md#head)**, the last layer, and there is a different one for every song. To
# **unfreeze** a player is to say: you may change your part. How many players should be told that,
# who first, and how much may they change?
#
# In Keras this is a flag on every layer, `trainable`. A layer whose flag is off is
# **[frozen](glossary.md#freeze)**: `fit` leaves its weights as they are. Our backbone,
# `efficientnet_lite0`, was trained on ImageNet photographs. The new song is `clothes`, real
# product photographs, with 20 labelled images per class.

# %% alt="Two rows of small grey photographs of clothes, shoes and bags, each with its class name."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
images, labels = task.arrays("train")
new, truth = (part[:200] for part in task.arrays("validation"))  # 200 images to measure on
task.show(rows=2, columns=7)

# %% [markdown]
# ## By hand: freeze, and train the head
#
# `tlk.load_backbone` stands in for `EfficientNetB0(include_top=False)` from `keras.applications`,
# but needs no download. Pool its output, put a new head on it, and freeze everything else.

# %%
keras.utils.set_random_seed(SEED)
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
backbone.trainable = False
image = keras.Input(backbone.input_shape[1:])
features = keras.layers.GlobalAveragePooling2D()(backbone(image, training=False))
logits = keras.layers.Dense(len(task.classes))(keras.layers.Dropout(0.2)(features))
model = keras.Model(image, logits)

# %%
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.AdamW(3e-3), loss)
model.fit(images, labels, epochs=6, verbose=0)


def accuracy():
    return np.mean(np.argmax(model(new, training=False), axis=1) == truth)


head_alone = accuracy()
print(f"With the head alone, {head_alone:.0%} of the validation images are classified correctly.")

# %% [markdown]
# This is **[feature extraction](glossary.md#feature-extraction)**: 12,810 parameters are trained
# and 3.4 million stay fixed. Now a part of the backbone should learn as well. Two things can go
# wrong.
#
# ## Trap 1: unfrozen, but not compiled
#
# [`compile`](glossary.md#compile) decides what learns. If you change a flag afterwards, nothing
# changes, and TensorFlow does not tell you. Count how many weight arrays of the backbone change
# during an epoch:


# %%
def changed(before):
    """Return how many weight arrays of the backbone are not as before."""
    pairs = zip(before, backbone.get_weights(), strict=True)
    return sum(not np.array_equal(old, new) for old, new in pairs)


backbone.trainable = True  # unfrozen...
before = backbone.get_weights()
model.fit(images, labels, verbose=0)  # ...and trained, but not compiled
forgot_to_compile = changed(before)
print(f"{forgot_to_compile} of {len(before)} weight arrays of the backbone changed")

# %% [markdown]
# Training runs, the loss falls (because the head learns), and the backbone is as frozen as before.
# (With JAX this is an error; with PyTorch the flag takes effect at once.) So: **after every change
# of a flag, compile.**
#
# ## Trap 2: BatchNorm learns without a gradient
#
# A [`BatchNormalization`](glossary.md#batchnorm) layer keeps a running mean and variance of its
# inputs, its **statistics**. They are not changed by gradients but by *being called in training
# mode*. A few small batches of new data overwrite what was learned on ImageNet. To prevent that,
# the [official guide](https://keras.io/guides/transfer_learning/) calls the backbone with
# `training=False`, as we did. Does that help once the backbone is unfrozen?
#
# First find the layers. Our backbone is a model inside a model, and a loop over `backbone.layers`
# finds none of its BatchNorm layers.


# %%
def flat(model):
    """Return all layers, including those of a model inside the model."""
    layers = []
    for layer in model.layers:
        layers += flat(layer) if isinstance(layer, keras.Model) else [layer]
    return layers


norms = [layer for layer in flat(backbone) if isinstance(layer, keras.layers.BatchNormalization)]


# %%
def open_norms():
    """Return how many statistics a training batch changes, and how many scales can learn."""
    before = [norm.moving_mean.numpy() for norm in norms]
    model(images[:8], training=True)  # as fit calls it
    means = [norm.moving_mean.numpy() for norm in norms]
    changes = sum(not np.array_equal(a, b) for a, b in zip(before, means, strict=True))
    return [changes, sum(norm.gamma.trainable for norm in norms)]


# %%
start = model.get_weights()
changes = open_norms()[0]
print(f"Keras {keras.__version__}: the statistics change in {changes} of {len(norms)} layers.")

# %% [markdown]
# Up to Keras 3.15, `training=False` does not survive `fit`: the outer model passes its own
# `training=True` down ([keras #20285](https://github.com/keras-team/keras/issues/20285)). What
# works on every Keras 3 is the flag: **a BatchNorm layer whose `trainable` is off uses its stored
# statistics, and keeps them.** Set it after `backbone.trainable = True`, which unfreezes
# everything inside.

# %%
model.set_weights(start)
for norm in norms:
    norm.trainable = False  # the fix
rows = [["norm.trainable = False", *open_norms()]]

# %% [markdown]
# And the same with `tlkeras`, which has three modes: `"frozen"` is the default, `"affine"` trains
# scale and shift but keeps the statistics, and `"train"` is plain training.

# %%
for mode in ("frozen", "affine", "train"):
    tlk.freeze(model, tlk.policies.all_blocks(), batchnorm=mode)
    rows.append([f'tlk: batchnorm="{mode}"', *open_norms()])
    model.set_weights(start)

# %% tags=["nbval-check-output"]
header = [f"of {len(norms)} BatchNorm layers", "statistics change", "scale can learn"]
tlk.table(rows, header)

# %% [markdown]
# ## Unfreeze, compile again, go slowly, save
#
# Now do it properly. The last block learns (the layers whose names start with `block6`, `block7`
# and `top`). Everything below it stays frozen, and so does every BatchNorm layer. The learning
# rate is a thirtieth of the head's.

# %%
model.trainable = True  # all flags on, then off where nothing should learn
for layer in flat(backbone):
    last = layer.name.startswith(("block6", "block7", "top"))
    layer.trainable = last and not isinstance(layer, keras.layers.BatchNormalization)

# %%
model.compile(keras.optimizers.AdamW(1e-4), loss)  # again
before = backbone.get_weights()
model.fit(images, labels, epochs=4, verbose=0)
os.makedirs("runs", exist_ok=True)
model.save("runs/clothes.keras")
print(f"Validation accuracy: {head_alone:.0%} with the head alone, {accuracy():.0%} fine-tuned.")

# %% tags=["plumbing", "nbval-check-output"]
tlk.table(
    [["unfrozen, not compiled", forgot_to_compile], ["unfrozen, compiled", changed(before)]],
    ["the backbone", f"changed, of {len(before)} weight arrays"],
)

# %% [markdown]
# That is all there is to fine-tuning. `keras.models.load_model` loads the file again. Did
# fine-tuning gain anything? One draw cannot tell. Three draws are stored: the head alone, and the
# head followed by the last block, at a third of the head's rate, with the same number of steps in
# all.

# %% tags=["plumbing"]
stored = tlk.results("choosing", part="grid", task="clothes", what=["head", "last 1"])
stored.mean_by("what", scale=100)

# %% [markdown]
# It did not: 71 % either way, a tie. So you know *how* to fine-tune; *whether* to is another
# question.

# %% [markdown]
# ## The same with tlkeras
#
# What you just did is **playbook A, two stages**, the default choice: first the head, at a high
# rate, then the last block or two along with it, 10 to 100 times slower. As a
# **[plan](glossary.md#plan-stage-recipe)**, a list of stages, it is one line.

# %% tags=["nbval-check-output"]
plan = tlk.recipes.two_stage(head_epochs=6, tune_epochs=4, head_lr=3e-3, tune_lr=1e-4)
plan

# %%
model = tlk.add_head(tlk.load_backbone(setting.backbone, setting.image_size), len(task.classes))
run = tlk.fit_stages(model, plan, (images, labels), (new, truth), seed=SEED, verbose=0)
run

# %% [markdown]
# For every stage, `fit_stages` sets the flags and the BatchNorm mode, compiles, fits, keeps the
# best epoch, and checks that nothing frozen has changed. The outputs of the layers below the first
# block that learns are computed once, not once per epoch. If a stage ends worse than an earlier
# one, the run says so. A **policy** says which blocks learn:

# %% tags=["nbval-check-output"]
tlk.freeze(model, tlk.policies.last_blocks(1))

# %% [markdown]
# ## Four options
#
# | what learns | `tlk.policies` | advantages | disadvantages |
# |---|---|---|---|
# | 1. the head: *feature extraction* | `head_only()` | fast, cheap, safe | may end on a plateau |
# | 2. the top too: *partial* | `last_blocks(1)` | adapts, keeps edges | more compute; the rate needs care |
# | 3. everything: *full fine-tuning* | `all_blocks()` | most flexible | expensive; may forget |
# | 4. middle, bottom frozen | `middle_blocks()` | edges stay, parts change | rarely tried |
#
# Option 1 is safe from **[overfitting](glossary.md#overfitting)**, that is, learning the images by
# heart. Option 3, meant for many labels or a distant target, is not. Option 4 is for targets that
# look similar up close but are put together differently: say, industrial textures after natural
# ones.
#
# What is each option worth, and what does it cost? One column is usually missing: how much of the
# *old* task is left. So here we use a source that we have down to the last image: `glyph_resnet`
# recognises printed letters. Its new task is real handwritten digits behind **blinds**, stripes
# that invert them. After each plan we test it on a hundred classes of letters again. (Its old head
# is gone, so a letter is assigned to the class whose mean features, in the untouched network, are
# nearest.)

# %% tags=["plumbing"] alt="Three rows of six small images: printed letters of many scripts; handwritten digits; the same digits behind light and dark stripes that invert them."
digits, letters = tlk.load_task("digits", image_size=32), tlk.load_task("glyphs")
blinds = 128 + 127 * np.sin(1.3 * np.arange(32))[:, None]
near = digits.arrays("test")[0][:6]
rows = {"letters": letters.arrays("test")[0][:6], "digits": near, "blinds": np.abs(near - blinds)}
tlk.plots.strips(rows, title="The source, a near target, and one far away\n(stripes are synthetic)")

# %% tags=["plumbing"]
LEARNS = {
    "head, 100 epochs": "head alone, 100 epochs",
    "top block": "head, then top block",
    "middle blocks": "head, then middle block",
    "bottom blocks": "head, then bottom",
    "all blocks": "head, then all blocks",
    "progressive": "playbook B: one more block at a time",
    "discriminative": "playbook C: a rate for each depth",
    "rushed": "all at once, at the head's rate",
}
letters_net = tlk.results("unfreezing", target="far")
new_task = letters_net.scores("option", value="test_accuracy", scale=100)
old_task = letters_net.scores("option", value="letters", scale=100)
took = letters_net.scores("option", value="seconds")
tlk.table(
    [[label, new_task[name], old_task[name], took[name]] for name, label in LEARNS.items()],
    ["what is trained", "accuracy on digits (%)", "accuracy on letters (%)", "seconds"],
    note=letters_net.note,
)

# %% [markdown]
# Rows two to five differ in what learns, and in nothing else. The untouched network recognises 94
# % of the letters.
#
# - **Option 1 has a plateau.** With 100 epochs, the head reaches 82 %, and everything reaches 91;
#   the top (option 2) and the middle (option 4) lie in between.
# - **The new task does not show what was forgotten.** *All at once* recognises as many digits as
#   careful full fine-tuning, but after that only 8 letters in 100 instead of 90: **[catastrophic
#   forgetting](glossary.md#catastrophic-forgetting)**. If nobody needs the old task any more, this
#   costs nothing. If somebody does, keep some of the source data to measure it.
# - **Where to learn depends on what has changed.** Blinds change the raw look and nothing else. So
#   the bottom, which section 1.6 would leave alone, is the best *single* part to unfreeze: 88 %
#   against 85 and 84. ([Lee and others, 2022](https://arxiv.org/abs/2210.11466) found the same for
#   blur and noise.)
# - **Training time does not follow the number of parameters.** The top has two thirds of all
#   parameters, but training it takes a quarter of the time that training everything takes.
#
# ## Is it the order, or the rate?
#
# The advice has two halves: the head first, *and* a small rate. Which of them protects? Here are
# all four combinations, with 25 epochs in all, except for *all at once at 3e-3*, which has ten.
# (The two that are in the table above have five draws, the other two have two.)

# %% tags=["plumbing", "nbval-check-output"]
rows = [
    [order, old_task[small], old_task[large], new_task[small], new_task[large]]
    for order, small, large in (
        ("the head first", "all blocks", "head first, head's rate"),
        ("all at once", "at once, small rate", "rushed"),
    )
]
header = ["accuracy (%)", "letters at 3e-4", "letters at 3e-3", "digits at 3e-4", "digits at 3e-3"]
tlk.table(rows, header, digits=0)

# %% [markdown]
# Mostly the rate. At the head's rate the letters are nearly gone, whether the head went first or
# not; at a small rate most of them stay. The order adds to that, partly because the backbone then
# learns in only ten of the 25 epochs. On the new task none of this shows: all four recognise about
# nine digits in ten.
#
# ## Playbooks B and C
#
# **B, progressive unfreezing**, is for steady gains when there is time: first the top block, then
# one more at a time. **C, discriminative rates**, trains each depth at its own pace, like the
# sliders of a mixing desk: the head up, the top low, the bottom very low or silent.

# %%
progressive = tlk.recipes.progressive(15, 4, head_lr=3e-3, block_lr=3e-4, blocks=3)
head = tlk.Stage("head", tlk.policies.head_only(), learning_rate=3e-3, epochs=15)
rates = {"head": 1, "top": 0.1, "middle": 0.03, "bottom": 0.01}  # times the learning rate
tune = tlk.Stage("tune", tlk.policies.all_blocks(), 3e-3, epochs=10, rates=rates)
discriminative = tlk.Plan([head, tune])

# %% alt="Line plot of learning rate against epoch on a log axis. After 15 epochs of the head alone at 0.003 all blocks learn for ten more: the head at 0.003, the top block at 0.0003, the middle blocks at 0.00009, the bottom at 0.00003."
tlk.plots.learning_rates(discriminative, model)

# %% [markdown]
# Both keep 93 % of the letters, where one small rate for everything keeps 90. They recognise two
# or three digits in a hundred fewer (89 and 88 against 91, with spreads of one to two).

# %% [markdown]
# ## Where it fails: option 4
#
# We looked for a task that suits option 4. Behind blinds, the middle alone ties with the top and
# is behind the bottom. The next table has four more changes to the digits (tiles shuffled, rows
# shifted back and forth, four small copies, rows mixed), one draw each, scored on validation:

# %% tags=["plumbing"]
shifts = tlk.results("depths", part="shift").scores("target", "depth", scale=100)
parts = {"last 1": "top", "middle": "middle", "bottom": "bottom"}
rows = [[name, *(found[part] for part in parts)] for name, found in shifts.items()]
note = "data/results/depths.csv, part shift, measured with: python tools/measure_depths.py. " \
    "Balanced accuracy (%) on 200 validation images, a single draw."  # fmt: skip
tlk.table(rows, ["change to the digits (synthetic)", *parts.values()], note=note)

# %% [markdown]
# The middle is ahead once, by one image in 200, which is a tie. So **we have found no target where
# option 4 wins**. That does not show that there is none: Lee and others report some.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: the right lines in the wrong order
#
# Somebody freezes all BatchNorm layers and *then* sets `backbone.trainable = True`. How many of
# them are unfrozen in the end, if the backbone was frozen before, and if it was not?

# %% [markdown] tags=["hint"]
# `norms` holds the layers, and each has a flag `trainable`. First set `backbone.trainable` to one
# value, then to the other. Nothing needs to be trained.

# %% tags=["answer"]
rows = []
for before in (False, True):
    backbone.trainable = not before
    backbone.trainable = before  # now every layer has this value
    for norm in norms:
        norm.trainable = False
    backbone.trainable = True
    rows.append([before, sum(norm.trainable for norm in norms)])
tlk.table(rows, ["backbone.trainable before", f"trainable BatchNorm layers, of {len(norms)}"])

# %% [markdown] tags=["answer"]
# All 49, or none. Setting a model's flag passes it on to everything inside, so it undoes the loop
# before it. But Keras on TensorFlow skips an assignment that changes nothing, so a flag that was
# already on unfreezes nothing. Do not rely on either. Set flags from the large parts to the small
# ones, BatchNorm last, and count before you compile. `tlk.freeze` uses this order.

# %% [markdown] tags=["question"]
# ### Exercise 2: how much is a block?
#
# "Unfreeze two blocks" sounds like a third of a network with six. How many parameters learn with
# `last_blocks(2)`, and how many with the bottom blocks and the head?

# %% [markdown] tags=["hint"]
# `tlk.freeze(model, policy)` returns a table with `.trainable_params` and `.params`. Blocks can be
# chosen by name: `tlk.policies.named("stem", "block2", "head")`.

# %% tags=["answer"]
rows = []
for policy in (tlk.policies.last_blocks(2), tlk.policies.named("stem", "block2", "head")):
    learning = tlk.freeze(model, policy)
    rows.append([policy, learning.trainable_params, learning.params])
tlk.table(rows, ["policy", "trained parameters", "of"])

# %% [markdown] tags=["answer"]
# The two blocks hold 98 % of this network's parameters, and all of these learn except for
# BatchNorm. The bottom holds half a percent. Parameters pile up where the maps are small and have
# many channels. So "how many blocks" says little about how freely a network can change, and
# nothing about time: training the half percent at the bottom takes a pass through the whole
# network, forwards and backwards, at every step.

# %% [markdown] tags=["question"]
# ### Exercise 3: every block at half the pace
#
# Let the learning rate halve from block to block on the way down. If the head learns at 3e-3, what
# is the rate of the stem?

# %% [markdown] tags=["hint"]
# After all blocks are unfrozen, pass `tlk.optimizers.layerwise_decay(0.5)` to
# `tlk.optimizers.discriminative` in place of a dictionary. The result has `.shares`, one for every
# variable, with a `.block` and a `.rate`.

# %% tags=["answer"]
tlk.freeze(model, tlk.policies.all_blocks())
decay = tlk.optimizers.layerwise_decay(0.5)
optimizer = tlk.optimizers.discriminative(keras.optimizers.AdamW(3e-3), model, decay)
rates = {share.block: 3e-3 * share.rate for share in optimizer.shares}
tlk.table(list(rates.items()), ["block", "learning rate"], digits=5)

# %% [markdown] tags=["answer"]
# A thirty-second of the head's rate, about 1e-4: five halvings. You set one number instead of
# four, and the rate changes by the same factor from block to block. But the number of blocks now
# matters: with twelve, the stem would learn 2,000 times slower than the head, which is frozen in
# all but name.

# %% [markdown]
# ## What to remember
#
# - Change a flag, then compile. Freeze BatchNorm after you have unfrozen the model around it.
# - Train a new head first and long enough. Then unfreeze blocks where the data differ, at a small
#   rate.
# - Forgetting comes mostly from the rate, and the new task does not show it: keep some data of the
#   old task.
#
# **Then:** which blocks, for your data? [Chapter 7](07_choosing_layers.ipynb).
