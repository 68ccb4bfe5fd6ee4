# %% [markdown]
# # 10.4 · Schedules, block by block: soft start, soft landing
#
# **The question.** Training sometimes blows up when a pretrained network is unfrozen. What prevents
# that: a schedule with warm-up and decay, a learning rate for each block, or both?
#
# **The promise.** In less than a minute on two cores you write a learning rate that rises and falls
# in plain Keras, and give every block its own. You learn to recognise a run that blew up even
# though its loss is not `nan`. You learn which half of a schedule prevents this, and when a
# schedule costs accuracy. *(Section 1.10 of the course; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("10_4")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# On an icy road you accelerate gently until the tyres grip, then drive as usual, and ease off well
# before the crossing. A **[schedule](glossary.md#schedule)** does the same with the **[learning
# rate](glossary.md#learning-rate)**: a **[warm-up](glossary.md#warm-up)**, in which it rises over
# the first steps, and a **decay**, in which it falls towards the end, here along a cosine.
# **Layer-wise** means that each **[block](glossary.md#block)** has its own rate: the schedule sets
# the shape of the curve, the block's rate its height. ULMFiT ([Howard and Ruder
# 2018](https://arxiv.org/abs/1801.06146)) combined the two, with a rise and a fall in straight
# lines.
#
# Use it when everything is unfrozen at once, or when you do not know a safe learning rate.
#
# ## By hand: a rate that rises and falls
#
# Keras has both halves in one object. Two things to know: it counts **steps** (batches), not
# epochs, and `decay_steps` are counted from the *end* of the warm-up. 300 images in batches of 16
# make 19 steps per epoch, and 8 epochs make 152 steps: 40 for the warm-up and the rest for the
# decay.

# %%
STEPS, WARM = 8 * 19, 40


def soft(rate, decay_steps=STEPS - WARM):
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0, warmup_target=rate, warmup_steps=WARM, decay_steps=decay_steps
    )


# %% tags=["nbval-check-output"]
rows = []
for name, schedule in (("steps", soft(3e-3)), ("epochs, by mistake", soft(3e-3, decay_steps=8))):
    rows.append([name, *(f"{float(schedule(step)):.4f}" for step in (0, 20, 40, 60, 96, 151))])
tlk.table(rows, ["decay_steps given in", *(f"step {n}" for n in (0, 20, 40, 60, 96, 151))])

# %% [markdown]
# The second row shows a common mistake: eight *steps* after the warm-up the rate is zero, and two
# thirds of the training do nothing. There is no error and no warning. Print a schedule before you
# use it.
#
# The task and the network are those of [chapter 10.2](10_2_discriminative_learning_rates.ipynb): a
# network trained on printed letters learns handwritten digits behind synthetic stripes.

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


def digits_right(model):
    return 100 * np.mean(model.predict(new, verbose=0).argmax(axis=-1) == truth)


# %% [markdown]
# Why warm up? The size of an Adam step is set by the learning rate, however small the gradient
# (chapter 10.2). The very first step follows the gradients of a random head, and it is as long as
# any other. 3e-3 would suit the head alone. We train everything at that rate, once constant and
# once with the schedule:

# %%
rows = []
for name, rate in (("constant", 3e-3), ("warm-up and cosine", soft(3e-3))):
    model = new_model()
    model.compile(keras.optimizers.AdamW(rate), loss)
    history = model.fit(images, labels, batch_size=16, epochs=8, verbose=0).history["loss"]
    rows.append([name, max(history), history[-1], digits_right(model)])
tlk.table(rows, ["3e-3 for all blocks", "highest loss", "last loss", "digits (%)"])

# %% [markdown]
# The first run is ruined: [chance](glossary.md#chance) is 10 %. Yet its last loss is an ordinary,
# harmless-looking number. **A run can blow up without ever showing `nan`.** We count a run as blown
# up if its last loss is not finite, *or* if its final validation accuracy is below that of the head
# alone in the same draw.
#
# ## By hand: a schedule for each block
#
# Use one optimizer per rate inside Keras's `MultiOptimizer` (chapter 10.2). Each can have its own
# schedule. Here the head warms up and decays. The blocks below have a rate of zero for 40 steps,
# and then a tenth of the head's highest rate. This is "the head first, then everything", without a
# second `compile`.


# %%
head = keras.optimizers.Adam(soft(3e-3))
late = keras.optimizers.schedules.PiecewiseConstantDecay([WARM], [0.0, 3e-4])
below = keras.optimizers.Adam(late)


def choose(variable):
    return head if variable.path.startswith("head") else below


# %% tags=["nbval-check-output"]
model = new_model()
model.compile(keras.optimizers.MultiOptimizer(choose), loss)
rows = []
for epochs in ("1 and 2", "3 and 4"):  # 38 steps, and 38 more
    before = [w.numpy() for w in model.trainable_weights]
    model.fit(images, labels, batch_size=16, epochs=2, verbose=0)
    after = [w.numpy() for w in model.trainable_weights]
    moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    rows.append([epochs, moved[0], moved[-1]])
tlk.table(rows, ["epochs", "the lowest block moves", "the head moves"])

# %% [markdown]
# ## The same with tlkeras
#
# A stage accepts a schedule as its `learning_rate`, and `rates` that multiply it. These can be
# schedules themselves, such as `late` here, or a rule, such as `layerwise_decay` from chapter 10.2.

# %% alt="Line plot of the learning rate against the epoch, log axis. The head rises to 0.003 in the first two epochs and falls along a cosine. The two upper blocks begin after 40 steps at 0.0003 and fall alike. The stem is a hundredth of the head throughout."
late = keras.optimizers.schedules.PiecewiseConstantDecay([WARM], [0.0, 0.1])
rates = {"head": 1.0, "top": late, "middle": late, "bottom": 0.01}
stage = tlk.Stage("all", tlk.policies.all_blocks(), soft(3e-3), epochs=8, rates=rates)
tlk.plots.learning_rates(tlk.Plan([stage]), new_model(), steps_per_epoch=19)

# %%
decay = tlk.optimizers.layerwise_decay(0.3)
rows = []
for name, plan in (("late blocks", [stage]), ("decay of 0.3", [stage.replace(rates=decay)])):
    model = new_model()
    tlk.fit_stages(model, plan, (images, labels), (new, truth), batch_size=16, verbose=0)
    rows.append([name, digits_right(model)])
tlk.table(rows, ["soft(3e-3), and for blocks", "digits (%)"], note="A single draw.")

# %% [markdown]
# In this draw neither reads more than the 92 % of one rate with the same schedule. (With 200 images
# a difference of three points may be chance; ten points are not.) The blocks now learn at a third
# of the head's rate or less, so the head's rate can be higher, as the experiment shows.
#
# ## The experiment: which half of the schedule helps?
#
# We compare four schedules, each with one rate for all blocks and with rates that decay by 0.3 from
# the head down, at four rates from 1e-3 to 3e-2 and on three draws. That makes 12 runs per cell of
# the table. Each run takes 160 steps, 40 of them warm-up.

# %% tags=["plumbing"]
SCHEDULES, RULES = ("constant", "cosine", "warm-up", "both"), ("one rate", "decay")
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
stored = tlk.results("rates", target="blinds")
alone = stored.where(order="head only").scores("seed", value="validation")
runs = stored.where(order="at once", rule=RULES, rate=RATES, seed=[0, 1, 2])


def blown_up(**which):
    found = runs.where(**which)
    return sum(not r["finite"] or r["validation"] < alone[r["seed"]][0] for r in found)


rows = [[s, *(blown_up(schedule=s, rule=rule) for rule in RULES)] for s in SCHEDULES]

# %% tags=["nbval-check-output"]
tlk.table(rows, ["blown up, of 12", "one rate", "a rate for each block"], note=runs.note)

# %% [markdown]
# All three draws agree at every rate, so the counts are really counts of rates: nine means that
# only the lowest of the four rates, 1e-3, ended well.
#
# - **Decay alone prevents nothing**, although it halves the sum of all steps. Runs blow up early,
#   and by the time the cosine has come down, the network is already ruined.
# - **Warm-up allows three times the rate** (3e-3), **a rate for each block ten times** (1e-2).
#   Either way the first steps of the pretrained blocks are short.
# - **With both, no run blew up**, up to 3e-2. And not one of the 96 runs ended in `nan`.
#
# ## What is gained besides safety?
#
# For a fair comparison, each schedule gets the best of the four rates, chosen on validation:

# %% tags=["plumbing"]
rows = []
for rule, label in (("one rate", "one rate"), ("decay", "a rate for each block")):
    for name in SCHEDULES:
        draws = runs.where(rule=rule, schedule=name)
        validation = draws.scores("rate", value="validation")
        best = max(validation, key=lambda rate: validation[rate].mean())
        found = [draws.scores("rate", value=v, scale=100)[best] for v in ("score", "letters")]
        rows.append([label, name, f"{best:g}", *found])

# %% tags=["nbval-check-output"]
tlk.table(rows, ["", "schedule", "its best rate", "digits, test (%)", "letters kept (%)"])

# %% [markdown]
# Little. With one rate, the full schedule ties with a constant rate: it is 1.5 ± 1.6 (s.e.) points
# ahead, where s.e. is the standard error of the mean difference over the same draws. With a rate
# for each block, it is 1.7 ± 0.7 (s.e.) points ahead, at three times the rate, which three draws
# cannot tell from a tie either. It then keeps less than half as many letters of the old task
# (measured as in [chapter 8.5](08_05_progressive_unfreezing.ipynb)). **A schedule is first of all
# insurance**: it widens the range of rates that end well.
#
# ## Where it fails: a rate that is too small
#
# A schedule can only lower the rate: averaged over a run, a cosine is half its height. If the rate
# is already small, weights travel only half as far.

# %% tags=["nbval-check-output"]
small = runs.where(rule="decay", rate=1e-3)
digits, letters = (small.scores("schedule", value=v, scale=100) for v in ("score", "letters"))
rows = [[name, digits[name], letters[name]] for name in SCHEDULES]
tlk.table(rows, ["a rate for each block, 1e-3", "digits (%)", "letters kept (%)"])

# %% [markdown]
# Here the cosine costs five points, and seven with warm-up (each ± 1 s.e.). It may keep more
# letters, by 9 to 11 ± 5 (s.e.) points, as any way of learning less does. With a schedule, use a
# higher rate or train longer.
#
# ## What it costs
#
# No memory and no time, but two more settings to choose: the length of the warm-up and the number
# of steps. The number of steps must be known before training begins. If you stop early, the rate
# has not decayed; if you train longer, the rate is zero.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: half a run
#
# You planned 152 steps with `soft(3e-3)`, and early stopping ends the training after 90. How large
# is the rate at that point, in percent of the highest?

# %% [markdown] tags=["hint"]
# Look at `float(soft(3e-3)(90))`.

# %% tags=["answer"]
rows = [[step, 100 * float(soft(3e-3)(step)) / 3e-3] for step in (40, 90, 120, 151)]
tlk.table(rows, ["step", "of the highest rate (%)"], digits=0)

# %% [markdown] tags=["answer"]
# More than half: the soft landing never happened. With early stopping, either give the schedule
# fewer steps, or use a constant rate and let `ReduceLROnPlateau` lower it.

# %% [markdown] tags=["question"]
# ### Exercise 2: the mean rate
#
# Compare a constant rate of 1e-3 with `soft(3e-3)`. With which do weights travel further in 152
# steps, if every step of Adam is about as long as the rate?

# %% [markdown] tags=["hint"]
# Add up `float(soft(3e-3)(step))` over the steps.

# %% tags=["answer"]
rows = [["constant, 1e-3", STEPS * 1e-3]]
rows.append(["warm-up and cosine, 3e-3", sum(float(soft(3e-3)(step)) for step in range(STEPS))])
tlk.table(rows, ["schedule", "sum of rates"], digits=3)

# %% [markdown] tags=["answer"]
# With the schedule, by half as much again: its mean is about half of its height. So "with a
# schedule I can use a higher rate" is partly bookkeeping. Before you credit the shape of a
# schedule, compare it with a constant rate that has the *same sum*.

# %% [markdown] tags=["question"]
# ### Exercise 3: which blocks blow up?
#
# How far did each block move, in percent of its size, in the runs with one constant rate of 1e-2?
# And in those with a rate for each block?

# %% [markdown] tags=["hint"]
# Look at the columns `stem`, `stack0`, `stack1` of `runs.where(schedule="constant", rate=1e-2)`.

# %% tags=["answer"]
found = runs.where(schedule="constant", rate=1e-2)
columns = {name: found.scores("rule", value=name) for name in ("stem", "stack0", "stack1")}
rows = [[rule, *(column[rule] for column in columns.values())] for rule in RULES]
tlk.table(rows, ["rule, 1e-2", *(f"{name} moved (%)" for name in columns)], digits=0)

# %% [markdown] tags=["answer"]
# With one rate, every block moved by three quarters of its own size: nothing of the pretraining is
# left. With a rate for each block, the top moves by less than half, and the bottom by 7 %.

# %% [markdown]
# ## What to remember
#
# - A ruined run need not show `nan`: compare its validation accuracy with that of the head alone.
# - To prevent blow-ups, warm up and give lower blocks lower rates. Decay alone comes too late.
# - A schedule only lowers the rate, so start from a higher one; at a small rate it costs accuracy.
#
# **Then:** which technique to use when, [chapter 11](11_decision_guide.ipynb); or in short, the
# [cheat sheet](cheatsheet.md).
