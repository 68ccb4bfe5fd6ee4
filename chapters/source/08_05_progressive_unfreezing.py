# %% [markdown]
# # 8.5 · Progressive unfreezing: one block after another
#
# **The question.** A pretrained network is to learn something new without losing what it knew. Does
# it help to open its blocks one after another, or is a small learning rate all there is to it?
#
# **The promise.** In about a minute on two cores you unfreeze a network block by block in plain
# Keras, then with a plan of one line; you measure what it still knows of its *old* task; and you
# can tell which of three things protects it: the order, the rate, or a rate for each block.
# *(Section 1.8 of the course, number 5; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras  # isort: skip
import numpy as np
from sklearn.neighbors import NearestCentroid

SEED = 0  # another draw of labels, another run
setting = tlk.setting("08_05")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# A ship's crew is to learn a new route. If all of them are sent to school at once, with a
# helmsman hired yesterday, nobody aboard knows the ship. So the new one learns first; then one
# watch goes to school, then another. Here the new helmsman is the **[head](glossary.md#head)**, and
# the watches are the **[blocks](glossary.md#block)** of the network, from the top, which sees
# things, down to the bottom, which sees edges. That is
# **[progressive unfreezing](glossary.md#progressive-unfreezing)**. ULMFiT ([Howard and Ruder
# 2018](https://arxiv.org/abs/1801.06146)) made it known, together with **[discriminative learning
# rates](glossary.md#discriminative-learning-rates)**, the lower a block the slower. They are two
# things, and we keep them apart. The promise of both: no forgetting, and steady gains.
#
# The network, `glyph_resnet_small`, reads printed letters. Its new task: handwritten digits behind
# **blinds**, synthetic stripes that invert them.

# %% alt="Two rows of six small pictures: printed letters of several scripts, and handwritten digits behind light and dark stripes that invert them."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
old = tlk.load_task(setting.source, image_size=setting.image_size)
blinds = 128 + 127 * np.sin(1.3 * np.arange(setting.image_size))[:, None]
images, labels = task.arrays("train")
new, truth = task.arrays("validation")
images, new = np.abs(images - blinds), np.abs(new - blinds)
letters, kinds = (part[old.arrays("test")[1] < 100] for part in old.arrays("test"))
rows = {"the old task": letters[::9], "the new one": images[::50]}
tlk.plots.strips(
    rows, title="What it knows, and what it is to learn\n(letters and stripes are synthetic)"
)

# %% [markdown]
# ## By hand: open a block, compile, fit, and again
#
# `tlk.find_blocks` says which layers belong together. All else is Keras: set the flags, **compile**
# (before it a change of flags does not count), fit. [BatchNorm](glossary.md#batchnorm) layers stay
# closed ([chapter 6](06_unfreezing.ipynb) says why).

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
    """All weights of every block, in one row."""
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
# One block more in every row. When a block is opened, all above it has learned already, so that
# what comes down to it is no longer noise.
#
# ## The same with tlkeras
#
# A **[plan](glossary.md#plan-stage-recipe)**, and `fit_stages` runs it: it sets flags and
# BatchNorm, compiles, keeps the best epoch of a stage, computes the outputs of frozen blocks once,
# and checks that what was frozen did not move by a bit.

# %% tags=["nbval-check-output"]
depth = len(blocks) - 1  # blocks below the head
gradual = tlk.recipes.progressive(2, 2, head_lr=1e-2, block_lr=1e-3, blocks=depth)
gradual

# %% [markdown]
# Rates by block are one more argument of a stage. `layerwise_decay(0.3)` is 1 in the head and 0.3
# times as much with every block further down: no dictionary, whatever the network.

# %%
decay = tlk.optimizers.layerwise_decay(0.3)
head, *tuning = gradual.stages
both = tlk.Plan([head, *(stage.replace(rates=decay, learning_rate=3e-3) for stage in tuning)])
at_once = tlk.recipes.full(epochs=8, lr=1e-3)  # the control: as many epochs, everything open

# %% [markdown]
# What is left of the old task? The old head would tell, but it is gone. The mean features of each
# kind of letter in the *untouched* network stand in for it: a letter is read as the kind whose mean
# is nearest. Half of the letters make the means, the other half are read.


# %%
def features(model):
    below, _ = tlk.find_blocks(model).split(blocks[-2].name)  # all but the head
    return below.predict(letters, verbose=0).mean(axis=(1, 2))


def fresh():
    backbone = tlk.load_backbone(setting.backbone, setting.image_size)
    return tlk.add_head(backbone, len(task.classes))


half = np.arange(len(kinds)) % 2 == 0
old_head = NearestCentroid().fit(features(fresh())[half], kinds[half])

# %%
rows = [["untouched", "-", old_head.score(features(fresh())[~half], kinds[~half]) * 100, "-"]]
for name, plan in (("at once", at_once), ("gradual, decay", both)):
    keras.utils.set_random_seed(SEED)
    model = fresh()
    run = tlk.fit_stages(model, plan, (images, labels), (new, truth), batch_size=16, verbose=0)
    read = np.mean(model.predict(new, verbose=0).argmax(axis=-1) == truth)
    kept = old_head.score(features(model)[~half], kinds[~half])
    rows.append([name, 100 * read, 100 * kept, run.seconds])
tlk.table(rows, ["order", "digits (%)", "letters kept (%)", "seconds"], digits=0,
          note="A single draw. Digits: 200 validation pictures.")  # fmt: skip

# %% [markdown]
# Both learn the digits, and one of them has thrown the letters away. Nothing in the digits' column
# says so: that is **[catastrophic forgetting](glossary.md#catastrophic-forgetting)**.
#
# ## The experiment: is it the order, the rate, or both?
#
# "Gradual" differs from "at once" in more than one thing: the head goes first, the lower blocks
# learn for fewer steps, and the rates may be others. So three orders, each with one rate for all
# and with the decaying rates, at four rates each. 160 steps every time; **head first** is
# the control that opens all blocks together after 40 steps of the head, and *gradual* opens one
# every 40 steps. Mean ± [spread](glossary.md#spread) of five [draws](glossary.md#draw).

# %% tags=["plumbing"] alt="Two groups of six bars, at a rate of 1e-3. Digits read: at once with one rate 88, with decay 86; head first 90 and 85; gradual 85 and 80. Letters kept: at once 3 and 49; head first 13 and 57; gradual 23 and 59."
ORDERS, RULES = ("at once", "head first", "gradual"), ("one rate", "decay")
stored = tlk.results("rates", target="blinds", schedule="constant")


def both_tasks(order, rule, rate, target=stored):
    found = target.where(order=order, rule=rule, rate=rate)
    return [100 * found.scores("order", value=v)[order] for v in ("score", "letters")]


groups = {"digits read": {}, "letters kept": {}}
for order in ORDERS:
    for rule in RULES:
        for group, draws in zip(groups.values(), both_tasks(order, rule, 1e-3), strict=True):
            group[f"{order}, {rule}"] = draws
title = "Same rate in the head, 1e-3: what is learned and what is kept\n(digits behind synthetic stripes)"
tlk.plots.bars(groups, x="% of the pictures", title=title, digits=0)

# %% [markdown]
# **At the same rate, whoever opens later forgets less**: with one rate for all, 3 letters of 100
# are kept at once, 13 with the head first, 23 gradually. That is how the advice is usually shown.
# But the digits go the other way: with the head first 90 are read, gradually 85, fewer in each of
# the five draws (at once 88 ± 4, within its spread of both). A block that learns for fewer steps,
# or at a lower rate, moves less, keeps more, and learns less. So compare where the *digits* are as
# good: for every order a rate, of the four, at which it reads 85 to 88 of 100.

# %% tags=["nbval-check-output"]
alike = [("at once", "one rate", 3e-4), ("gradual", "one rate", 1e-3)]
alike += [("head first", "one rate", 3e-4), ("at once", "decay", 1e-3)]
alike += [("head first", "decay", 3e-3), ("gradual", "decay", 3e-3)]
rows = [[f"{o}, {rule}", f"{rate:g}", *both_tasks(o, rule, rate)] for o, rule, rate in alike]
tlk.table(rows, ["order and rule", "rate", "digits (%)", "letters kept (%)"], 0, stored.note)

# %% [markdown]
# - **Gradual alone is no better than at once**: 23 letters against 29 (6 ± 3 fewer; ± is here the
#   standard error of the mean difference, in the same draws). It needs three times the rate to read
#   about as many digits, probably because its bottom block has so few steps, and at that rate it
#   forgets as much.
# - **A trained head protects, and so do decaying rates.** Each alone keeps 45 to 49 letters instead
#   of 29 (17 ± 4 and 20 ± 2 more). Neither needs blocks to be opened in turn.
# - **Together they are worth little more.** At 3e-3 no more letters are kept, whatever the order.
#   Head first with decay at 1e-3, in the figure, reads 85 and keeps 57: 9 ± 4 letters more than
#   gradual with decay at as many digits. Four rates are too few to say how much is left.
# - The rate matters more than all of it. (At 1e-2 with one rate all three orders end at chance.)
#
# ## Where it wins, and where it fails
#
# Behind blinds the *bottom* has to learn, and it is opened last, for 40 steps of 160: here opening
# from the top does not pay. And the other setting: digits without blinds, near the letters, where
# little has to change. The advice as it is written (gradual, with decaying rates) against
# everything at once at the same rate in the head:

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
# Here it wins: as many digits as at once, and 72 letters kept instead of 22. The order is not what
# does it: with the head first and the rest in one go it is 75. And the first row is an answer that
# the advice does not have: nothing had to be opened at all. **Ask the head first** ([chapter
# 7](07_choosing_layers.ipynb) has the probe), then what is to be kept, and only then about an
# order.
#
# ## What it costs
#
# An optimizer carries two numbers for every one that learns (AdamW). A gradual plan has all of that
# only in its last stage, and until then it computes the frozen part once.

# %% tags=["nbval-check-output"]
rows = []
for stage in gradual.stages:
    learns = tlk.freeze(model, stage.policy).trainable_params
    rows.append([stage.name, learns, round(2 * 4 * learns / 1024)])
tlk.table(rows, ["stage", "numbers that learn", "optimizer (KiB)"])

# %% [markdown]
# In seconds it costs more here: every stage compiles anew, and with a network this small that takes
# longer than the steps (the live table above). With a large network early stages skip most of it;
# that was not measured here.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: who learns for how long?
#
# In the gradual runs of the experiment, 160 steps, for how many of them does each block learn? And
# what does it make of the advice to open from the top, where the raw look has changed?

# %% [markdown] tags=["hint"]
# Four stages of 40 steps: the head in all of them, the top in three, ... No training needed.

# %% tags=["answer"]
names = [block.name for block in reversed(blocks)]
tlk.table([[name, 160 - 40 * place] for place, name in enumerate(names)], ["block", "steps"])

# %% [markdown] tags=["answer"]
# The bottom, which sees the stripes first, has a quarter of the steps. "From the top down" assumes
# that what differs is what things mean, not how they look. Where the look has changed, open all
# together after the head.

# %% [markdown] tags=["question"]
# ### Exercise 2: what did the stem do?
#
# The columns `stem`, `stack0` and `stack1` of the stored runs say how far each block moved, in
# percent of its size. Compare the orders at 1e-3 with one rate.

# %% [markdown] tags=["hint"]
# `stored.where(rule="one rate", rate=1e-3).scores("order", value="stem")` has the draws.

# %% tags=["answer"]
found = stored.where(rule="one rate", rate=1e-3)
columns = {name: found.scores("order", value=name) for name in ("stem", "stack0", "stack1")}
rows = [[order, *(column[order] for column in columns.values())] for order in ORDERS]
tlk.table(rows, ["order", *(f"{name} moved (%)" for name in columns)], digits=0)

# %% [markdown] tags=["answer"]
# At once the bottom moves by a fifth of its size, gradually by a third of that; the top, which is
# open longest, moves about as far in all three. That is what "protected" means here: not that the
# network was careful, but that it had less time.

# %% [markdown] tags=["question"]
# ### Exercise 3: ten letters more
#
# Somebody reports that gradual unfreezing "beats fine-tuning by ten letters". Which control do you
# ask for, and what does it say here?

# %% [markdown] tags=["hint"]
# `both_tasks(order, rule, rate)` gives digits and letters of any stored run. Which two differ in
# nothing but the order?

# %% tags=["answer"]
rows = [[order, *both_tasks(order, "decay", 1e-3)] for order in ORDERS]
tlk.table(rows, ["decay, 1e-3", "digits (%)", "letters kept (%)"], digits=0)

# %% [markdown] tags=["answer"]
# The head first, at the same rates and as many steps, and the score on *both* tasks. Here that is
# 57 letters against 59, a tie, and five digits of 100 fewer for the gradual order. Against "at
# once" the ten letters are there (± 4), and so are the six digits that they cost.

# %% [markdown]
# ## What to remember
#
# - Gradual unfreezing is the head first and later starts, often with smaller rates below; the head
#   first does most of it.
# - What protects old knowledge costs new learning: compare where the new score is the same.
# - Look from which end the data differ before you open from the top; and ask the head alone first.
#
# **Then:** rates by block in detail, [chapter 10.2](10_2_discriminative_learning_rates.ipynb).
