# %% [markdown]
# # 10.2 · Discriminative learning rates: every block at its own pace
#
# **The question.** The head starts from nothing; the blocks below it already know something. Should
# they learn at different rates, and what does that bring: a better score, an easier choice of rate,
# or a network that forgets less?
#
# **The promise.** In about half a minute on two cores you give each block its own learning rate,
# first in plain Keras (and see why the obvious way has no effect with Adam), then with one call to
# `tlkeras`. You measure how far each block moved, and learn what the technique is good for and what
# it is not. *(Section 1.10 of the course; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("10_2")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# Two people share a kitchen garden. One has just moved in and changes everything. The other has
# grown tomatoes there for years and changes only a little, where it helps. The newcomer is the
# **[head](glossary.md#head)**, with random weights; the other is the
# **[backbone](glossary.md#backbone)**. One pace for both is either too slow for the first or too
# rough for the second. **[Discriminative learning
# rates](glossary.md#discriminative-learning-rates)** give each **[block](glossary.md#block)** its
# own learning rate: high in the head, low in the backbone, lowest at its bottom. The name comes
# from ULMFiT ([Howard and Ruder 2018](https://arxiv.org/abs/1801.06146)), and so does the factor of
# 1/2.6 from each layer to the one below.
#
# As in [chapter 8.5](08_05_progressive_unfreezing.ipynb), the network was trained on printed
# letters. Its new task is handwritten digits behind blinds: synthetic stripes that invert parts of
# the image. There are 300 labelled images of 10 classes.

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
# `compile` takes one optimizer with one learning rate; it does not accept a list of two. The first
# idea that comes to mind is to shrink the gradients of the backbone, say to a tenth. All gradients
# pass through the optimizer's `apply` method:


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
# What works is one optimizer per rate. Keras 3.15 has `MultiOptimizer`, which calls a function to
# find out which optimizer updates a variable. We set the rates by **[layer-wise
# decay](glossary.md#layer-wise-decay)**: the head learns at the full rate, and each block below at
# 0.3 times the rate of the block above it. This takes a single number, whatever the network.


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
# Take one step with each, on the same batch and from the same weights. How far does the lowest
# block move, compared with the plain optimizer?


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
# **Shrinking gradients has no effect on Adam.** Adam divides every gradient by its own typical
# size, so gradients that are all a tenth as large give the same step, and no message says so. A
# separate learning rate works as intended.
#
# ## The same with tlkeras
#
# `tlk.optimizers.discriminative` turns a Keras optimizer into one with a rate for each block. You
# give the rates by block name, by role (`bottom`, `middle`, `top`, `head`), or by a rule.

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
# If Keras can do this too, what is the difference? With `tlkeras` it stays *one* optimizer.
# Callbacks that change the rate (`ReduceLROnPlateau`, `LearningRateScheduler`) find one rate to
# change, and clipping by global norm covers all gradients together.

# %% tags=["nbval-check-output"]
one = tlk.optimizers.discriminative(keras.optimizers.Adam(1e-3), new_model(), decay)
rows = []
for name, optimizer in (("MultiOptimizer", by_block(1e-3)), ("tlkeras", one)):
    rows.append([name, hasattr(optimizer, "learning_rate"), 100 * step(optimizer) / adam])
tlk.table(rows, ["", "a callback can turn it", "way of the lowest block (%)"], digits=0)

# %% [markdown]
# ## The experiment: what does it buy?
#
# In a plan you write `tlk.Stage(..., rates=decay)`. The next cell trains twice on this draw: once
# with one rate, and once with rates that start three times as high in the head and decay from
# there.

# %%
rows = []
for name, rate, rates in (("one rate, 1e-3", 1e-3, None), ("decay, 3e-3", 3e-3, decay)):
    model = new_model()
    stage = tlk.Stage("all", tlk.policies.all_blocks(), rate, epochs=8, rates=rates)
    tlk.fit_stages(model, [stage], (images, labels), (new, truth), batch_size=16, verbose=0)
    right = np.mean(model.predict(new, verbose=0).argmax(axis=-1) == truth)
    rows.append([name, 100 * right, *moved(model, start)])
header = ["a single draw", "digits (%)", *(f"{block.name} moved (%)" for block in blocks[:-1])]
tlk.table(rows, header)

# %% [markdown]
# Both networks read the digits, but they got there differently. With one rate every block moves by
# a sixth to a quarter of its size. With decay the top moves as much, and the bottom hardly at all.
#
# Now three rules at six rates each. Every block is unfrozen from the first step, and each run takes
# 160 steps, on five [draws](glossary.md#draw) (three to five for the digits without blinds, below):

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
# **The range of rates that work is hardly wider; it lies elsewhere.** For each rule, count at how
# many of the six rates it comes within five points of the best mean in the figure. The second
# column shows the same for digits without blinds, which are close to the letters:

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
# Behind blinds both rules work at two rates. Without blinds they work at three and four (and there
# "one rate" may also work below the lowest rate we tried). That is a difference of one rate at
# most, and no reason to use the technique. What moves is the upper end of the range, towards rates
# that suit a new head: at 3e-3 behind blinds decay reaches 89 %, one rate only 44 %. At 1e-3, the
# default in Keras, both work.
#
# ## What it is for: the old task
#
# The next table shows how much of the letters each rule keeps (measured as in [chapter
# 8.5](08_05_progressive_unfreezing.ipynb)), next to its accuracy on the digits. For a fair
# comparison, look at rows with about the same accuracy on *digits*:

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
# At about the same accuracy on digits (rows one and two), decay keeps 49 % of the letters, one rate
# 29 %. At the rate where each rule reads the most digits (rows three and four), it is 28 % against
# 3 %. These gains are 20 ± 2 and 25 ± 4 (s.e.) points, where s.e. is the standard error of the mean
# difference over the same draws. The last three columns (1 is the lowest block, 3 the top) show
# why: with decay the top moves as far as with one rate, but the two blocks below it move only an
# eighth to two fifths as far.
#
# ## Where it does not help
#
# Once the head has been trained alone, the blocks below get sensible gradients from the first step,
# and half of the reason for slowing them down is gone. Here are the same two rules after 40 steps
# of training the head (the order "head first" in chapter 8.5), again at about the same accuracy on
# digits:

# %% tags=["nbval-check-output"]
first = tlk.results("rates", target="blinds", order="head first")
rows = []
for rule, rate in (("one rate", 3e-4), ("decay", 3e-3)):
    found = first.where(rule=rule, rate=rate)
    columns = [100 * found.scores("rule", value=v)[rule] for v in ("score", "letters")]
    rows.append([f"head first, {rule}, {rate:g}", *columns])
tlk.table(rows, ["behind blinds", "digits (%)", "letters kept (%)"], digits=0)

# %% [markdown]
# A tie in both columns. At 1e-3 decay keeps 57 % of the letters, 12 ± 3 (s.e.) points more than the
# first row, and reads 85 % of the digits, 1.5 ± 1.4 (s.e.) points fewer (see the figure in chapter
# 8.5). So at best about half of the 20 points above remain: training the head first already brings
# most of what rates per block can bring.
#
# ## What it costs
#
# Almost nothing: one multiplication per variable at every step. But unlike freezing, it also saves
# nothing: a block at a hundredth of the rate costs as much as one at the full rate.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: one optimizer too many
#
# `MultiOptimizer` takes a function. What happens if the function makes a *new* `Adam` at each call,
# as the example in the Keras documentation does? How many optimizers does a model with three blocks
# and a head get?

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
# One per variable. The model learns the same, because Adam treats each weight separately. But to
# change a rate you would have to change it in all of them, and clipping by norm would look at only
# one variable at a time. Create the optimizers first, and let the function choose among them.

# %% [markdown] tags=["question"]
# ### Exercise 2: twelve blocks
#
# We used `layerwise_decay(0.3)` with three blocks below the head. What is the lowest block's rate
# in a network with twelve blocks, and which factor would give that block the same rate as here?

# %% [markdown] tags=["hint"]
# The lowest of `n` blocks below the head learns at `factor ** n`.

# %% tags=["answer"]
rows = [["0.3, twelve blocks", f"{0.3**12:.1g}"], ["0.3, three blocks", f"{0.3**3:.1g}"]]
rows.append(["factor for twelve", f"{0.3 ** (3 / 12):.2f}"])
tlk.table(rows, ["rule", "value"])

# %% [markdown] tags=["answer"]
# Half a millionth of the head's rate: as good as frozen, but at the full cost. The right factor
# depends on the depth: 0.74 does for twelve blocks what 0.3 does for three. (Howard and Ruder use
# 1/2.6 for three layers, [ELECTRA](https://arxiv.org/abs/2003.10555) uses 0.8 for twelve.)

# %% [markdown] tags=["question"]
# ### Exercise 3: one batch, two optimizers
#
# Lion moves each weight by the *sign* of a running mean of its gradients. Do shrunk gradients have
# an effect on Lion? And on RMSprop?

# %% [markdown] tags=["hint"]
# Write `class ShrunkLion(keras.optimizers.Lion)` in the same way as above, and use `step`.


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
# On neither. Lion takes the sign, and RMSprop divides by a running average of the gradient's size,
# as Adam does. Only SGD (with or without momentum) moves a tenth as far. Scale the *rate*, not the
# gradient.

# %% [markdown]
# ## What to remember
#
# - A learning rate per block scales the step; shrinking gradients does nothing with Adam.
# - Rates per block do not make it easier to choose a rate, but the network keeps more of what it
#   knew.
# - Train the head first: after that, rates per block add little to one small rate.
#
# **Then:** rates that change during training, [chapter 10.4](10_4_layerwise_schedules.ipynb).
