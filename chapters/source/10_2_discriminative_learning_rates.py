# %% [markdown]
# # 10.2 · Discriminative learning rates: every block at its own pace
#
# **The question.** The head starts from nothing, the blocks below it know something. Should they
# learn at different rates, and what does it buy: a better score, an easier choice of rate, or a
# network that forgets less?
#
# **The promise.** In about a minute on two cores you give each block its own learning rate in plain
# Keras, past a trap that leaves Adam unmoved; then with one word of `tlkeras`. You read off what
# each block moved, and know what the technique is for, and what it is not for. *(Section 1.10 of
# the course, no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras  # isort: skip
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("10_2")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# Two people share a kitchen garden. One has just moved in and changes everything; the other has
# grown tomatoes there for years and changes a little, where it helps. The newcomer is the
# **[head](glossary.md#head)**, with random weights; the other is the
# **[backbone](glossary.md#backbone)**. One pace for both is either too slow for the first or too
# rough for the second. **[Discriminative learning
# rates](glossary.md#discriminative-learning-rates)** give each
# **[block](glossary.md#block)** its own: high in the head, low in the backbone, lowest at its
# bottom. The name, and the factor 1/2.6 from layer to layer, are ULMFiT's ([Howard and Ruder
# 2018](https://arxiv.org/abs/1801.06146)).
#
# As in [chapter 8.5](08_05_progressive_unfreezing.ipynb) the network reads printed letters, and its
# new task is handwritten digits behind blinds, synthetic stripes that invert them. 300 labelled
# pictures, of 10 kinds.

# %%
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
blinds = 128 + 127 * np.sin(1.3 * np.arange(setting.image_size))[:, None]
images, labels = task.arrays("train")
new, truth = task.arrays("validation")
images, new = np.abs(images - blinds), np.abs(new - blinds)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# %%
def new_model():
    keras.utils.set_random_seed(SEED)
    backbone = tlk.load_backbone(setting.backbone, setting.image_size)
    model = tlk.add_head(backbone, len(task.classes))
    tlk.freeze(model, tlk.policies.all_blocks())  # everything learns, BatchNorm keeps what it has
    return model


blocks = tlk.find_blocks(new_model())
blocks

# %% [markdown]
# ## By hand: a trap, and what works
#
# `compile` takes one optimizer, with one learning rate; a list of two is refused. What comes to
# mind first is to shrink the gradients of the backbone, say to a tenth. An optimizer gets all of
# them in its method `apply`:


# %%
def shrunk(gradients, variables):
    pairs = zip(gradients, variables, strict=True)
    return [g if v.path.startswith("head") else 0.1 * g for g, v in pairs]


class ShrunkSGD(keras.optimizers.SGD):
    def apply(self, grads, trainable_variables=None):
        super().apply(shrunk(grads, trainable_variables), trainable_variables)


class ShrunkAdam(keras.optimizers.Adam):
    def apply(self, grads, trainable_variables=None):
        super().apply(shrunk(grads, trainable_variables), trainable_variables)


# %% [markdown]
# What works is an optimizer for each rate. Keras 3.15 has `MultiOptimizer`, which asks a function
# which optimizer a variable belongs to. As a rule take **[layer-wise
# decay](glossary.md#layer-wise-decay)**: the head learns at the full rate, every block further down
# 0.3 times as fast as the one above. One number, whatever the network.


# %%
def by_block(learning_rate, decay=0.3):
    """Adam with a learning rate for each block: the rate times decay to the power of its depth."""
    found = {}
    for depth, block in enumerate(reversed(blocks)):  # the head is at depth 0
        optimizer = keras.optimizers.Adam(learning_rate * decay**depth)
        for layer in block.layers:
            found |= dict.fromkeys([weight.path for weight in layer.weights], optimizer)
    return keras.optimizers.MultiOptimizer(lambda variable: found[variable.path])


# %% [markdown]
# One step with each, on the same batch from the same start. How far does the lowest block go,
# against the plain optimizer?


# %%
def moved(model, start):
    """Of every block of the backbone: how far its weights are from `start`, in % of their size."""
    pairs = zip(weights(model), start, strict=True)
    return [100 * np.linalg.norm(new - old) / np.linalg.norm(old) for new, old in pairs]


def weights(model):
    """What learns in every block of the backbone, in one row."""
    found = []
    for block in tlk.find_blocks(model)[:-1]:
        rows = [w.numpy().ravel() for layer in block.layers for w in layer.trainable_weights]
        found.append(np.concatenate(rows))
    return found


start = weights(new_model())


# %%
def step(optimizer):
    """How far one step moves the lowest block."""
    model = new_model()
    model.compile(optimizer, loss, run_eagerly=True)  # a single step needs no graph
    model.train_on_batch(images[:32], labels[:32])
    return moved(model, start)[0]


# %% tags=["nbval-check-output"]
sgd, adam = step(keras.optimizers.SGD(1e-2)), step(keras.optimizers.Adam(1e-3))
rows = [
    ["SGD, gradients times 0.1", 100 * step(ShrunkSGD(1e-2)) / sgd],
    ["Adam, gradients times 0.1", 100 * step(ShrunkAdam(1e-3)) / adam],
    [f"Adam, rate times 0.3 to the power of {len(start)}", 100 * step(by_block(1e-3)) / adam],
]
tlk.table(rows, ["one step", "way of the lowest block (% of plain)"], digits=0)

# %% [markdown]
# **Adam does not see shrunk gradients**: it divides every gradient by its own usual size, so a
# tenth of all of them is the same step, and no message says so. A rate of its own does what it
# should.
#
# ## The same with tlkeras
#
# `tlk.optimizers.discriminative` makes of a Keras optimizer one with a rate for each block: by
# names of blocks, by roles (`bottom`, `middle`, `top`, `head`), or by a rule.

# %% tags=["nbval-check-output"]
decay = tlk.optimizers.layerwise_decay(0.3)
roles = {"head": 1.0, "top": 0.1, "middle": 0.1, "bottom": 0.1}
rows = []
for rule in (roles, decay):
    optimizer = tlk.optimizers.discriminative(keras.optimizers.AdamW(1e-3), new_model(), rule)
    rates = {share.block: f"{1e-3 * share.rate:.1g}" for share in optimizer.shares}
    rows.append(list(rates.values()))
tlk.table(rows, [block.name for block in blocks])

# %% [markdown]
# What is the difference, if Keras can do it? It stays *one* optimizer. Callbacks that turn the rate
# (`ReduceLROnPlateau`, `LearningRateScheduler`) find one to turn, and a clip of the global norm
# is of all gradients together.

# %% tags=["nbval-check-output"]
one = tlk.optimizers.discriminative(keras.optimizers.Adam(1e-3), new_model(), decay)
rows = []
for name, optimizer in (("MultiOptimizer", by_block(1e-3)), ("tlkeras", one)):
    rows.append([name, hasattr(optimizer, "learning_rate"), 100 * step(optimizer) / adam])
tlk.table(rows, ["", "a callback can turn it", "way of the lowest block (%)"], digits=0)

# %% [markdown]
# ## The experiment: what does it buy?
#
# In a plan it is `tlk.Stage(..., rates=decay)`. Two runs of this draw, live: one rate, and rates
# that decay from three times as much in the head.

# %%
rows = []
for name, rate, rates in (("one rate, 1e-3", 1e-3, None), ("decay, 3e-3", 3e-3, decay)):
    model = new_model()
    stage = tlk.Stage("all", tlk.policies.all_blocks(), rate, epochs=8, rates=rates)
    tlk.fit_stages(model, [stage], (images, labels), (new, truth), batch_size=16, verbose=0)
    read = np.mean(model.predict(new, verbose=0).argmax(axis=-1) == truth)
    rows.append([name, 100 * read, *moved(model, start)])
header = ["a single draw", "digits (%)", *(f"{block.name} moved (%)" for block in blocks[:-1])]
tlk.table(rows, header)

# %% [markdown]
# Both read the digits, and they came there by different ways: at one rate every block moves by a
# sixth to a quarter of its size, with decay the top as much, and the bottom hardly at all.
#
# Three rules at six rates each, everything open from the first step, 160 steps, five
# [draws](glossary.md#draw) (without blinds, further down, three to five):

# %% tags=["plumbing"] alt="Line plot of balanced accuracy against the learning rate of the head, log axis. One rate: 79 % at 0.0001, 88 at 0.001, then down to chance, 10 %, at 0.01. Two rates and decay: below the head alone at 0.0001, about 89 at 0.003, 83 to 86 at 0.01, near chance at 0.03."
RULES = ("one rate", "two rates", "decay")
stored = tlk.results("rates", order="at once", schedule="constant")
far = stored.where(target="blinds")
alone = tlk.results("rates", target="blinds", order="head only").scores("order", scale=100)
curve = {
    rule: dict(sorted(far.where(rule=rule).scores("rate", scale=100).items())) for rule in RULES
}
level = (float(np.mean(alone["head only"])), "the head alone")
title = "Rates by block shift the range that works\n(digits behind synthetic stripes)"
tlk.plots.curves(curve, x="learning rate of the head", title=title, log=True, level=level)

# %% [markdown]
# **The range that works is hardly wider, it lies elsewhere.** Count the rates, of six, at which a
# rule comes within five points of the best mean in the picture; and the same on digits without
# blinds, near the letters:

# %% tags=["plumbing"]
near = stored.where(target="digits")


def workable(found, rule):
    means = {rate: d.mean() for rate, d in found.where(rule=rule).scores("rate").items()}
    best = max(row.mean() for r in found.scores("rule", "rate").values() for row in r.values())
    good = sorted(rate for rate, mean in means.items() if mean > best - 0.05)
    return f"{len(good)} of 6: " + ", ".join(f"{rate:g}" for rate in good)


# %% tags=["nbval-check-output"]
rows = [["one rate", workable(far, "one rate"), workable(near, "one rate")]]
rows.append(["decay", workable(far, "decay"), workable(near, "decay")])
tlk.table(rows, ["rule", "behind blinds", "without blinds"])

# %% [markdown]
# Two rates either way behind blinds, three and four without (and there one rate may work below the
# grid as well): one step at most, which is no reason to use the technique. What moves is the upper
# end, to rates at which a new head is at ease: at 3e-3 behind blinds decay reads 89 %, one rate 44.
# At 1e-3, Keras's own default, both work.
#
# ## What it is for: the old task
#
# What each rule keeps of the letters (measured as in chapter 8.5), beside what it reads. To be
# fair, compare where as many *digits* are read:

# %% tags=["nbval-check-output"]
rows = []
for rule, rate in (("one rate", 3e-4), ("decay", 1e-3), ("one rate", 1e-3), ("decay", 3e-3)):
    found = far.where(rule=rule, rate=rate)
    columns = [100 * found.scores("rule", value=v)[rule] for v in ("score", "letters")]
    ways = [found.scores("rule", value=v)[rule] for v in ("stem", "stack0", "stack1")]
    rows.append([f"{rule}, {rate:g}", *columns, *ways])
header = ["behind blinds", "digits (%)", "letters kept (%)", *(f"{n} moved (%)" for n in (1, 2, 3))]
tlk.table(rows, header, digits=0)

# %% [markdown]
# At as many digits (rows one and two) the letters kept are 49 instead of 29, and at the rates at
# which each reads most (rows three and four) 28 instead of 3: 20 ± 2 and 25 ± 4 more (± is here the
# standard error of the mean difference, in the same draws). The last three columns say why: with
# decay the top moves as far, the two blocks below it an eighth to two fifths as far.
#
# ## Where it does not help
#
# After the head has been trained alone, the blocks below get sensible errors from the first step,
# and the reason for slowing them is half gone. The same two rules after 40 steps of the head
# (order "head first" of chapter 8.5), again where about as many digits are read:

# %% tags=["nbval-check-output"]
first = tlk.results("rates", target="blinds", order="head first")
rows = []
for rule, rate in (("one rate", 3e-4), ("decay", 3e-3)):
    found = first.where(rule=rule, rate=rate)
    columns = [100 * found.scores("rule", value=v)[rule] for v in ("score", "letters")]
    rows.append([f"head first, {rule}, {rate:g}", *columns])
tlk.table(rows, ["behind blinds", "digits (%)", "letters kept (%)"], digits=0)

# %% [markdown]
# A tie in both columns. At 1e-3 decay keeps 57 letters, 12 ± 3 more than the first row, and reads
# 85 digits, 1.5 ± 1.4 fewer (the figure of chapter 8.5). So of the 20 letters above about half are
# left at best: who trains the head first has had most of what rates by block can give.
#
# ## What it costs
#
# Nothing to speak of: a product for every variable at every step. But nothing is saved either, as
# it is by freezing: a block at a hundredth of the rate costs as much as one at the full rate.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: one optimizer too many
#
# `MultiOptimizer` is given a function. What if it makes a *new* `Adam` at each call, as the example
# in Keras's documentation does? How many optimizers does a model of three blocks and a head get?

# %% [markdown] tags=["hint"]
# Compile `new_model()` with `MultiOptimizer(careless)`, train one step (`train_on_batch`), and
# count `model.optimizer.optimizers`.


# %% tags=["answer"]
def careless(variable):
    return keras.optimizers.Adam(1e-3 if variable.path.startswith("head") else 1e-4)


rows = []
for name, optimizer in (
    ("careless", keras.optimizers.MultiOptimizer(careless)),
    ("by_block", by_block(1e-3)),
):
    model = new_model()
    model.compile(optimizer, loss, run_eagerly=True)
    model.train_on_batch(images[:32], labels[:32])
    rows.append([name, len(model.trainable_weights), len(optimizer.optimizers)])
tlk.table(rows, ["function", "variables", "optimizers"])

# %% [markdown] tags=["answer"]
# One for every variable. It learns the same, for Adam treats each weight alone; but whoever wants
# to change a rate has to change it in all of them, and a clip of the norm is of one variable only.
# Make the optimizers first, and let the function choose.

# %% [markdown] tags=["question"]
# ### Exercise 2: twelve blocks
#
# `layerwise_decay(0.3)` was made for three blocks below the head. What is the lowest block's rate
# in a network with twelve, and which factor gives it the same rate as here?

# %% [markdown] tags=["hint"]
# The lowest of `n` blocks below the head learns at `factor ** n`.

# %% tags=["answer"]
rows = [["0.3, twelve blocks", f"{0.3**12:.1g}"], ["0.3, three blocks", f"{0.3**3:.1g}"]]
rows.append(["factor for twelve", f"{0.3 ** (3 / 12):.2f}"])
tlk.table(rows, ["rule", "value"])

# %% [markdown] tags=["answer"]
# Half a millionth of the head's: frozen, but paid for. A factor belongs to a depth: 0.74 does for
# twelve blocks what 0.3 does for three. (Howard and Ruder use 1/2.6 for three layers,
# [ELECTRA](https://arxiv.org/abs/2003.10555) 0.8 for twelve.)

# %% [markdown] tags=["question"]
# ### Exercise 3: one batch, two optimizers
#
# Would Lion, which moves by the *sign* of a running mean, notice shrunk gradients? And RMSprop?

# %% [markdown] tags=["hint"]
# Write `class ShrunkLion(keras.optimizers.Lion)` as above and use `step`.


# %% tags=["answer"]
class ShrunkLion(keras.optimizers.Lion):
    def apply(self, grads, trainable_variables=None):
        super().apply(shrunk(grads, trainable_variables), trainable_variables)


class ShrunkRMSprop(keras.optimizers.RMSprop):
    def apply(self, grads, trainable_variables=None):
        super().apply(shrunk(grads, trainable_variables), trainable_variables)


rows = [["Lion", 100 * step(ShrunkLion(1e-3)) / step(keras.optimizers.Lion(1e-3))]]
rows.append(["RMSprop", 100 * step(ShrunkRMSprop(1e-3)) / step(keras.optimizers.RMSprop(1e-3))])
tlk.table(rows, ["gradients times 0.1", "way of the lowest block (% of plain)"], digits=0)

# %% [markdown] tags=["answer"]
# Neither does. Lion takes the sign, RMSprop divides by a running size, as Adam does. Only plain SGD
# (with or without momentum) goes a tenth of the way. Multiply the *rate*, not the gradient.

# %% [markdown]
# ## What to remember
#
# - A rate for each block multiplies the step; shrinking gradients does nothing under Adam.
# - It makes the choice of a rate no easier; it lets a network keep more of what it knew.
# - Train the head first: after that it adds little to one small rate.
#
# **Then:** rates that change as training goes on, [chapter 10.4](10_4_layerwise_schedules.ipynb).
