# %% [markdown]
# # 8.5 · Progressive unfreezing: one block after another
#
# **The question.** A pretrained network should learn something new without losing what it knew.
# Does it help to unfreeze its blocks one after another, or is a small learning rate enough?
#
# **The promise.** In about a minute on two cores you unfreeze a network block by block in plain
# Keras, then with a one-line plan. You measure how much it still knows of its *old* task. And you
# can tell which of three things protects that knowledge: the order, the learning rate, or a
# learning rate for each block. *(Section 1.8 of the course, number 5; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np
from sklearn.neighbors import NearestCentroid

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_05")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# A ship's crew has to learn a new route. If all of them are sent to school at once, together with a
# helmsman hired yesterday, nobody aboard knows the ship. So the new helmsman learns first; then one
# watch goes to school, then another. Here the new helmsman is the **[head](glossary.md#head)**, and
# the watches are the **[blocks](glossary.md#block)** of the network, from the top, which sees
# things, down to the bottom, which sees edges. That is **[progressive
# unfreezing](glossary.md#progressive-unfreezing)**. ULMFiT ([Howard and Ruder
# 2018](https://arxiv.org/abs/1801.06146)) made it known, together with **[discriminative learning
# rates](glossary.md#discriminative-learning-rates)**: the lower a block, the smaller its rate.
# These are two different things, and we keep them apart. Both promise no forgetting and steady
# gains.
#
# The network, `glyph_resnet_small`, was trained to recognise printed letters. Its new task:
# handwritten digits behind **blinds**, synthetic stripes that invert them.

# %% alt="Two rows of six small images: printed letters of several scripts, and handwritten digits behind light and dark stripes that invert them."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
old = tlk.load_task(setting.source, image_size=setting.image_size)
blinds = 128 + 127 * np.sin(1.3 * np.arange(setting.image_size))[:, None]
images, labels = task.arrays("train")
new, truth = task.arrays("validation")
images, new = np.abs(images - blinds), np.abs(new - blinds)
letters, letter_classes = (part[old.arrays("test")[1] < 100] for part in old.arrays("test"))
rows = {"the old task": letters[::9], "the new one": images[::50]}
tlk.plots.strips(
    rows, title="What it knows, and what it has to learn\n(letters and stripes are synthetic)"
)

# %% [markdown]
# ## By hand: open a block, compile, fit, and again
#
# `tlk.find_blocks` tells you which layers belong together. The rest is Keras: set the flags,
# **compile** (changed flags have no effect until then), fit. [BatchNorm](glossary.md#batchnorm)
# layers stay frozen ([chapter 6](06_unfreezing.ipynb) says why).

# %%
keras.utils.set_random_seed(SEED)
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
model = tlk.add_head(backbone, len(task.classes))
blocks = tlk.find_blocks(model)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# %%
def open_blocks(names, learning_rate):
    for block in blocks:
        for layer in block.layers:
            norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = block.name in names and not norm
    model.compile(keras.optimizers.AdamW(learning_rate), loss)


# %%
def weights():
    """Return one vector per block that holds all its weights."""
    found = []
    for block in blocks:
        rows = [w.ravel() for layer in block.layers for w in layer.get_weights()]
        found.append(np.concatenate(rows))
    return found


# %%
opened, rows = [], []
for block in reversed(blocks):  # the head, then from the top down
    opened.append(block.name)
    before = weights()
    open_blocks(opened, learning_rate=1e-2 if block.role == "head" else 1e-3)
    model.fit(images, labels, batch_size=16, epochs=2, verbose=0)
    moved = [not np.array_equal(a, b) for a, b in zip(before, weights(), strict=True)]
    rows.append([block.name, *("learns" if m else "stays" for m in moved)])

# %% tags=["nbval-check-output"]
tlk.table(rows, ["opened", *(block.name for block in blocks)])

# %% [markdown]
# Every row opens one block more. By the time a block is opened, everything above it has already
# learned, so the gradients that reach it are no longer noise.
#
# ## The same with tlkeras
#
# Write a **[plan](glossary.md#plan-stage-recipe)**, and `fit_stages` runs it: it sets the flags and
# BatchNorm, compiles, keeps the best epoch of each stage, computes the outputs of frozen blocks
# once, and checks that every frozen weight is still bit for bit the same.

# %% tags=["nbval-check-output"]
depth = len(blocks) - 1  # blocks below the head
gradual = tlk.recipes.progressive(2, 2, head_lr=1e-2, block_lr=1e-3, blocks=depth)
gradual

# %% [markdown]
# Learning rates by block are one more argument of a stage. `layerwise_decay(0.3)` is 1 in the head
# and is multiplied by 0.3 with every block further down. You need no dictionary, whatever the
# network.

# %%
decay = tlk.optimizers.layerwise_decay(0.3)
head, *tuning = gradual.stages
both = tlk.Plan([head, *(stage.replace(rates=decay, learning_rate=3e-3) for stage in tuning)])
at_once = tlk.recipes.full(epochs=8, lr=1e-3)  # the control: as many epochs, everything open

# %% [markdown]
# How much of the old task is left? The old head could tell, but it is gone. The mean features of
# each letter class in the *untouched* network stand in for it: a letter is assigned to the class
# whose mean is nearest. Half of the letters are used to compute the means, the other half to test
# them.


# %%
def features(model):
    below, _ = tlk.find_blocks(model).split(blocks[-2].name)  # all but the head
    return below.predict(letters, verbose=0).mean(axis=(1, 2))


def fresh():
    backbone = tlk.load_backbone(setting.backbone, setting.image_size)
    return tlk.add_head(backbone, len(task.classes))


half = np.arange(len(letter_classes)) % 2 == 0
old_head = NearestCentroid().fit(features(fresh())[half], letter_classes[half])

# %%
untouched = old_head.score(features(fresh())[~half], letter_classes[~half])
rows = [["untouched", "-", 100 * untouched, "-"]]
for name, plan in (("at once", at_once), ("gradual, decay", both)):
    keras.utils.set_random_seed(SEED)
    model = fresh()
    run = tlk.fit_stages(model, plan, (images, labels), (new, truth), batch_size=16, verbose=0)
    read = np.mean(model.predict(new, verbose=0).argmax(axis=-1) == truth)
    kept = old_head.score(features(model)[~half], letter_classes[~half])
    rows.append([name, 100 * read, 100 * kept, run.seconds])
tlk.table(rows, ["order", "digits (%)", "letters kept (%)", "seconds"], digits=0,
          note="A single draw. Digits: 200 validation images.")  # fmt: skip

# %% [markdown]
# Both learn the digits, and one of them has lost most of the letters. Nothing in the *digits*
# column shows that. This is **[catastrophic forgetting](glossary.md#catastrophic-forgetting)**.
#
# ## The experiment: is it the order, the rate, or both?
#
# "Gradual" differs from "at once" in more than one thing: the head goes first, the lower blocks
# learn for fewer steps, and the learning rates may differ. So we compare three orders, each with
# one rate for all blocks and with decaying rates, at four rates each. Every run has 160 steps.
# *Gradual* opens one block every 40 steps; the control, **head first**, opens all blocks together
# after 40 steps of the head. Scores are mean ± [spread](glossary.md#spread) of five
# [draws](glossary.md#draw).

# %% tags=["plumbing"] alt="Two groups of six bars, at a rate of 1e-3. Digits recognised: at once with one rate 88, with decay 86; head first 90 and 85; gradual 85 and 80. Letters kept: at once 3 and 49; head first 13 and 57; gradual 23 and 59."
ORDERS, RULES = ("at once", "head first", "gradual"), ("one rate", "decay")
stored = tlk.results("rates", target="blinds", schedule="constant")


def both_tasks(order, rule, rate, target=stored):
    found = target.where(order=order, rule=rule, rate=rate)
    return [100 * found.scores("order", value=v)[order] for v in ("score", "letters")]


groups = {"digits recognised": {}, "letters kept": {}}
for order in ORDERS:
    for rule in RULES:
        for group, draws in zip(groups.values(), both_tasks(order, rule, 1e-3), strict=True):
            group[f"{order}, {rule}"] = draws
title = "Same rate in the head, 1e-3: what is learned and what is kept\n(digits behind synthetic stripes)"
tlk.plots.bars(groups, x="% of the images", title=title, digits=0)

# %% [markdown]
# **At the same rate, the later the blocks are opened, the less is forgotten.** With one rate for
# all blocks, 3 of 100 letters are kept if they are all opened at once, 13 if the head goes first,
# and 23 if they are opened gradually. That is how the advice is usually shown. But the digits go
# the other way: 90 of 100 are recognised with the head first and 85 gradually, fewer in each of the
# five draws (at once 88 ± 4, within its spread of both). A block that learns for fewer steps, or at
# a lower rate, changes less, keeps more, and learns less. So compare runs that are equally good on
# the *digits*: for every order, one of the four rates at which 85 to 88 of 100 are recognised.

# %% tags=["nbval-check-output"]
alike = [("at once", "one rate", 3e-4), ("gradual", "one rate", 1e-3)]
alike += [("head first", "one rate", 3e-4), ("at once", "decay", 1e-3)]
alike += [("head first", "decay", 3e-3), ("gradual", "decay", 3e-3)]
rows = [[f"{o}, {rule}", f"{rate:g}", *both_tasks(o, rule, rate)] for o, rule, rate in alike]
tlk.table(rows, ["order and rule", "rate", "digits (%)", "letters kept (%)"], 0, stored.note)

# %% [markdown]
# - **Gradual alone is no better than at once**: 23 letters against 29 (6 ± 3 fewer; here ± is the
#   standard error of the mean difference, in the same draws). It needs three times the rate to
#   recognise about as many digits, probably because its bottom block has so few steps, and at that
#   rate it forgets as much.
# - **Training the head first protects, and so do decaying rates.** Each alone keeps 45 to 49
#   letters instead of 29 (17 ± 4 and 20 ± 2 more). Neither requires opening the blocks in turn.
# - **Together they are worth little more.** At 3e-3 no more letters are kept, whatever the order.
#   Head first with decay at 1e-3, in the figure, recognises 85 digits and keeps 57 letters: 9 ± 4
#   letters more than gradual with decay at the same number of digits. Four rates are too few to say
#   how much of this would remain.
# - The learning rate matters more than all of this. (At 1e-2 with one rate, all three orders end at
#   chance.)
#
# ## Where it wins, and where it fails
#
# Behind blinds the *bottom* has to learn, and it is opened last, for 40 of 160 steps, so opening
# from the top does not pay here. Now the opposite case: digits without blinds, which are close to
# the letters, so that little has to change. We compare the advice as written (gradual, with
# decaying rates) with everything at once at the same rate in the head:

# %% tags=["nbval-check-output"]
near = tlk.results("rates", target="digits", schedule="constant")
cases = {
    "the head alone": ("head only", "one rate", 1e-2),
    "at once, one rate": ("at once", "one rate", 1e-3),
    "head first, one rate": ("head first", "one rate", 1e-3),
    "gradual, one rate": ("gradual", "one rate", 1e-3),
    "head first, decay": ("head first", "decay", 1e-3),
    "gradual, decay: the advice": ("gradual", "decay", 1e-3),
}
rows = [[name, *both_tasks(*case, target=near)] for name, case in cases.items()]
tlk.table(rows, ["digits without blinds", "digits (%)", "letters kept (%)"], digits=0)

# %% [markdown]
# Here the advice wins: as many digits as at once, and 72 letters kept instead of 22. But the order
# is not the reason: with the head first and the rest all together, 75 are kept. And the first row
# is an answer that the advice does not offer: no block had to be opened at all. **Try the head
# alone first** ([chapter 7](07_choosing_layers.ipynb) has the probe), then ask what has to be kept,
# and only then think about an order.
#
# ## What it costs
#
# The optimizer (AdamW) stores two numbers for every trainable parameter. A gradual plan needs all
# of that memory only in its last stage, and until then it computes the frozen part once.

# %% tags=["nbval-check-output"]
rows = []
for stage in gradual.stages:
    learns = tlk.freeze(model, stage.policy).trainable_params
    rows.append([stage.name, learns, round(2 * 4 * learns / 1024)])
tlk.table(rows, ["stage", "trainable parameters", "optimizer (KiB)"])

# %% [markdown]
# In seconds it costs more here: every stage compiles again, and with a network this small that
# takes longer than the steps (see the live table above). With a large network, the early stages
# skip most of it; that was not measured here.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: which block learns for how long?
#
# In the gradual runs of the experiment, for how many of the 160 steps does each block learn? What
# does that mean for the advice to open from the top, if it is the look of the images that has
# changed?

# %% [markdown] tags=["hint"]
# There are four stages of 40 steps: the head learns in all of them, the top in three, ... You need
# no training.

# %% tags=["answer"]
names = [block.name for block in reversed(blocks)]
tlk.table([[name, 160 - 40 * place] for place, name in enumerate(names)], ["block", "steps"])

# %% [markdown] tags=["answer"]
# The bottom, which is the first to see the stripes, gets a quarter of the steps. "From the top
# down" assumes that the difference is in what things mean, not in how they look. If the look has
# changed, train the head first and then open all blocks together.

# %% [markdown] tags=["question"]
# ### Exercise 2: what did the stem do?
#
# The columns `stem`, `stack0` and `stack1` of the stored runs show how far each block moved, in
# percent of its size. Compare the orders at 1e-3 with one rate.

# %% [markdown] tags=["hint"]
# `stored.where(rule="one rate", rate=1e-3).scores("order", value="stem")` has the draws.

# %% tags=["answer"]
found = stored.where(rule="one rate", rate=1e-3)
columns = {name: found.scores("order", value=name) for name in ("stem", "stack0", "stack1")}
rows = [[order, *(column[order] for column in columns.values())] for order in ORDERS]
tlk.table(rows, ["order", *(f"{name} moved (%)" for name in columns)], digits=0)

# %% [markdown] tags=["answer"]
# At once, the bottom moves by a fifth of its size; gradually, by a third of that. The top, which is
# open longest, moves about as far in all three. That is what "protected" means here: the network
# was not careful, it just had less time.

# %% [markdown] tags=["question"]
# ### Exercise 3: ten letters more
#
# Somebody reports that gradual unfreezing "beats fine-tuning by ten letters". Which control do you
# ask for, and what does it show here?

# %% [markdown] tags=["hint"]
# `both_tasks(order, rule, rate)` returns digits and letters of any stored run. Which two runs
# differ in nothing but the order?

# %% tags=["answer"]
rows = [[order, *both_tasks(order, "decay", 1e-3)] for order in ORDERS]
tlk.table(rows, ["decay, 1e-3", "digits (%)", "letters kept (%)"], digits=0)

# %% [markdown] tags=["answer"]
# Ask for the head first, with the same rates and the same number of steps, and for the score on
# *both* tasks. Here that is 57 letters against 59 for the gradual order, a tie, while the gradual
# order recognises five of 100 digits fewer. Compared with "at once", the ten letters are real (±
# 4), and so are the six digits that they cost.

# %% [markdown]
# ## What to remember
#
# - Gradual unfreezing combines training the head first with opening the other blocks later, often
#   at smaller rates lower down; the head first does most of it.
# - What protects old knowledge slows new learning: compare runs that score equally on the new task.
# - Before you open blocks from the top, ask at which end the data differ, and try the head alone
#   first.
#
# **Then:** learning rates by block in detail, [chapter
# 10.2](10_2_discriminative_learning_rates.ipynb).
