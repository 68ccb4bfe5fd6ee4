# %% [markdown]
# # 6 · Unfreezing: what happens when a network learns again
#
# **The question.** A pretrained network can stay as it is, learn a little, or learn all over again.
# What does each choice gain, and what does it cost?
#
# **What you will see.** Two copies of one network learn to read the same new images, and in the end
# both read about nine of ten. But one of them has forgotten nearly everything that it was made for,
# and no number on the new task shows which of the two it is.
#
# *Section 1.6 of the course. About 75 seconds on two cores, no internet needed.*

# %%
import tlkeras as tlk

tlk.accelerate()

# %% [markdown]
# ## One source, two targets
#
# `glyph_resnet` learned to tell printed letters apart, with no digit among them. Now it is to read
# handwritten digits, 30 labelled ones of each. A second target is made by hand: the same digits
# behind **blinds**, stripes that invert them. No letter ever looked like that.

# %%
import keras
import numpy as np

SEED = 0  # another draw, another run
ONLINE = tlk.is_online()  # TLKERAS_PROFILE=online: from pets in photographs to cats and dogs
SOURCE, TARGET = ("oxford_iiit_pet", "cats_vs_dogs") if ONLINE else ("glyphs", "digits")
BACKBONE, SIZE = ("EfficientNetB0", 96) if ONLINE else ("glyph_resnet", 32)
source = tlk.load_task(SOURCE, image_size=SIZE)
task = tlk.load_task(TARGET, labels_per_class=30, seed=SEED, image_size=SIZE)
blinds = 128 + 127 * np.sin(1.3 * np.arange(SIZE))[:, None]
near = {split: task.arrays(split) for split in ("train", "validation", "test")}
far = {split: (np.abs(x - blinds).astype("float32"), y) for split, (x, y) in near.items()}

# %%
pictures = {"source": source.arrays("test"), "near": near["test"], "far": far["test"]}
bare = {"xticks": [], "yticks": []}
with tlk.plots.canvas(3, 12, size=(8, 2.2), subplot_kw=bare) as (figure, axes):
    figure.suptitle(f"source: {source.note or 'photographs'}", x=0.01, ha="left", fontsize=9)
    for row, (name, (images, _)) in zip(axes, pictures.items(), strict=True):
        row[0].set_ylabel(name)
        for axis, image in zip(row, images[:: len(images) // 12], strict=False):
            axis.imshow(image.astype("uint8"))
figure

# %% [markdown]
# The network without the layer that named the letters is the **backbone**. On top of it comes a
# new, random **head**. From bottom to head it is a row of blocks.


# %% tags=["nbval-check-output"]
def new_model():
    keras.utils.set_random_seed(SEED)
    return tlk.add_head(tlk.load_backbone(BACKBONE, SIZE), len(task.classes))


model = new_model()
fresh = model.get_weights()  # every experiment begins with these
tlk.find_blocks(model)

# %% [markdown]
# ## Unfreezing is setting a flag
#
# Think of a band that has played together for years and takes on a new singer. The players are the
# blocks: they know their parts by heart. The singer is the head, another one for every song. To
# **unfreeze** a player is to say: you may change your part. How many should hear that, who first,
# and how much may they change?
#
# In Keras it is a flag of every layer, `trainable`, and `fit` leaves alone what has it off.

# %% tags=["nbval-check-output"]
model.layers[1].trainable = False  # the backbone
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
# ## Five things to measure
#
# Accuracy, parameters and seconds are the usual three. The other two look at what happens inside.
# **Drift** is how far the backbone's weights have moved, in percent of their size. **Source** is
# what is left of the old task. Its head is gone, but the untouched backbone's mean features of a
# letter can stand in for it: a new drawing is read as the letter whose mean is nearest.

# %%
reader = keras.Model(model.input, [model.get_layer("pool").output, model.output])


def read(images):
    """Features and predicted classes, from the model as it now is."""
    features, logits = reader.predict(images, batch_size=256, verbose=0)
    return features, logits.argmax(axis=1)


def some(split):  # about 50 classes of the source
    images, labels = source.arrays(split)
    chosen = labels % max(1, len(source.classes) // 50) == 0
    return images[chosen], labels[chosen]


# %%
images, labels = some("validation")
letters, seen = np.unique(labels), read(images)[0]
means = np.stack([seen[labels == letter].mean(axis=0) for letter in letters])
drawings, truth = some("test")


# %%
def source_read():
    """Right answers on the source, in percent."""
    distances = ((read(drawings)[0][:, None] - means) ** 2).sum(axis=2)
    return 100 * np.mean(letters[distances.argmin(axis=1)] == truth)


def backbone_weights():
    kept = [w for w in model.layers[1].weights if "moving" not in w.name]  # those come later
    return np.concatenate([np.ravel(keras.ops.convert_to_numpy(w)) for w in kept])


start = backbone_weights()
print(f"The untouched backbone reads {source_read():.0f}% of {len(truth)} drawings of its source.")

# %% [markdown]
# An experiment is a **plan**, a list of stages. `tlk.fit_stages` runs it: for each stage it sets
# the flags, compiles, and fits. Each goes into a ledger.

# %%
ledger = {}


def train(name, plan, data=far):
    model.set_weights(fresh)
    run = tlk.fit_stages(model, plan, data["train"], data["validation"], seed=SEED, verbose=0)
    right = [100 * np.mean(read(x)[1] == y) for x, y in (data["train"], data["test"])]
    drift = 100 * np.linalg.norm(backbone_weights() - start) / np.linalg.norm(start)
    learned = run.stages[-1].learns.trainable_params
    ledger[name] = (*right, source_read(), drift, learned, run.seconds)
    return run


def show(*names):
    columns = "what learns", "training", "test", "source", "drift", "parameters", "seconds"
    print("{:15}{:>9}{:>8}{:>8}{:>8}{:>12}{:>9}".format(*columns))
    for name in names:
        print("{:15}{:8.1f}%{:7.1f}%{:7.1f}%{:7.2f}%{:12,}{:9.1f}".format(name, *ledger[name]))


# %% [markdown]
# ## Option 1: the head alone
#
# **Feature extraction**: the band plays as it always did, and the singer adapts. It is fast, it is
# cheap, and 2,570 numbers can hardly learn 300 images by heart. Fifteen epochs on either target,
# and a hundred on the far one:

# %%
HEAD = tlk.Stage("head", tlk.policies.head_only(), learning_rate=3e-3, epochs=15)
train("head, near", [HEAD], near)
train("head", [HEAD])
train("head, longer", tlk.recipes.head_only(epochs=100, head_lr=3e-3)).plot()

# %%
show("head, near", "head", "head, longer")

# %% tags=["nbval-check-output"]
if not ONLINE:
    test = {name: row[1] for name, row in ledger.items()}
    print("Near, the head alone reads more than 95 of 100:", test["head, near"] > 95)
    print("Far, fewer than 90, though it may take its time:", test["head, longer"] < 90)
    print("Frozen means frozen: the backbone has drifted by", ledger["head"][3])

# %% [markdown]
# Digits are strokes, and the backbone knows strokes: near its source there is little left to gain.
# Behind blinds the curves bend into a **plateau** (the training curve lies low because of dropout,
# which is off in the table). Even of the images it was trained on, the head misses some. It can
# only weigh the features it is given, and these no longer fit. That is the limit of option 1, and
# also what makes it safe.
#
# ## Option 2: the top block too
#
# **Partial fine-tuning** is a good balance: the top adapts, and what lower blocks know of edges and
# strokes is kept. It costs more than the head, and it needs care. Gradients of a random head are
# noise, which must not be written into the block below. So the head goes first, alone, at a high
# rate; then the block joins, and both go on at a rate 10 to 100 times smaller, here 10. This is
# **playbook A, two stages**: fast, stable, accurate, and the default choice.

# %%
two_stage = tlk.recipes.two_stage(15, 5, head_lr=3e-3, tune_lr=3e-4, blocks=1)
two_stage

# %%
train("top block", two_stage).plot()

# %% [markdown]
# Where the shaded stage begins, both losses fall faster. To open the last few blocks rather than
# one, say `blocks=2`.
#
# ## Options 3 and 4: everything, or the middle
#
# **Full fine-tuning** is the most flexible choice, for a target far away or plenty of labels. It is
# also the most expensive, and risks two things: forgetting, and learning the images by heart. **The
# middle, with the bottom frozen,** assumes that edges and textures are the same everywhere and only
# what is made of them differs, as between natural textures and industrial ones.

# %%
tuning = {"learning_rate": 3e-4, "epochs": 5}
train("middle", [HEAD, tlk.Stage("tune", tlk.policies.middle_blocks(), **tuning)])
train("all blocks", [HEAD, tlk.Stage("tune", tlk.policies.all_blocks(), **tuning)])
show("head, longer", "top block", "middle", "all blocks")

# %% tags=["nbval-check-output"]
if not ONLINE:
    known, new = (ledger["all blocks"][i] - ledger["head, longer"][i] for i in (0, 1))
    print("Everything open beats a head that had all the time it wanted:", new > 1)
    print("and knows more of its training images by heart:", known > 2)

# %% [markdown]
# Everything open knows nearly all its training images and reads fewer new ones: there is the
# overfitting, though on this target it pays all the same. The top and the middle, in these five
# epochs, get about as far as a head with patience.
#
# ## The same in five draws
#
# One draw is an anecdote. `python tools/measure_unfreezing.py` trained five, ten epochs after the
# head's fifteen, and stored them in `data/results/unfreezing.csv`. It also opened what section 1.6
# does not list, the **bottom** alone.

# %%
import csv

from tlkeras.utils.paths import data_root

with open(data_root() / "results" / "unfreezing.csv") as file:
    rows = list(csv.DictReader(file))


# %%
def stored(column, option, target="far"):
    """One value a draw."""
    found = [row for row in rows if (row["option"], row["target"]) == (option, target)]
    return np.array([float(row[column]) for row in found])


# %%
OPTIONS = ["head only", "top block", "middle blocks", "bottom blocks", "all blocks"]
print(f"{'what learns':17}{'far, test':>14}{'letters':>14}{'drift':>8}{'seconds':>9}")
for option in ["head, 100 epochs", *OPTIONS]:
    test, kept = (100 * stored(c, option) for c in ("test_accuracy", "letters"))
    drift, seconds = (stored(c, option).mean() for c in ("drift", "seconds"))
    print(f"{option:17}{test.mean():8.1f} ± {test.std():.1f}", end="")
    print(f"{kept.mean():8.1f} ± {kept.std():.1f}{drift:7.1f}%{seconds:9.1f}")
near_scores = [100 * stored("test_accuracy", o, "near").mean() for o in ("head only", "all blocks")]
print("On the near target, head only: {:.1f}; all blocks: {:.1f}".format(*near_scores))


# %%
def every(column, less, more):
    """Whether one plan has less of something than another in every draw."""
    return bool((stored(column, less) < stored(column, more)).all())


# %% tags=["nbval-check-output"]
pair = "middle blocks", "bottom blocks"
print("In every draw the bottom alone reads more than the middle:", every("test_accuracy", *pair))
print("with fewer parameters:", every("parameters", *pair[::-1]))
others = ("top block", "middle blocks", "all blocks")
print("It moves least:", all(every("drift", "bottom blocks", option) for option in others))
print("and costs most letters:", all(every("letters", "bottom blocks", o) for o in others))

# %% [markdown]
# Four things to take from this table.
#
# - **A head needs time.** The top block seems to add eleven points to the head, but nine of them
#   the head finds alone in a hundred epochs. Judge it by its plateau, not by where a stage happens
#   to end.
# - **Where to learn depends on what has changed.** Option 4 is for targets whose raw look stays the
#   same. Blinds change the raw look and nothing else, so the bottom, the one part that section 1.6
#   would leave alone, is the best single part to open. Lee et al. (2022, *Surgical fine-tuning*)
#   found the same, and the middle ahead where it is parts and shapes that change; that is not
#   measured here.
# - **Seconds do not follow parameters.** The top block holds two thirds of them and is cheap,
#   because the outputs of all that is frozen below it are computed once. To open the bottom is to
#   run the whole network, forwards and backwards, at every step.
# - **Forgetting does not follow drift.** The bottom moves least and costs the most letters: all the
#   blocks above it were made for what it used to say.
#
# ## Playbook B: one block more at a time
#
# **Progressive unfreezing** goes on where the two stages end: the top block first, then the one
# below joins, and so on. Every step starts from something that works, so that accuracy grows
# steadily. It takes more time than two stages.

# %%
progressive = tlk.recipes.progressive(15, 2, head_lr=3e-3, block_lr=3e-4, blocks=3)
train("progressive", progressive).plot()

# %% [markdown]
# ## Playbook C: each at its own pace
#
# B lets blocks wait; C lets them walk slowly. **Discriminative learning rates** are the sliders of
# a mixing desk: the singer up, the players near the top low, those at the bottom very low, or
# silent.

# %%
RATES = {"head": 1, "top": 0.1, "middle": 0.03, "bottom": 0.01}  # times the learning rate
tune = tlk.Stage("tune", tlk.policies.all_blocks(), 3e-3, epochs=5, rates=RATES)
discriminative = tlk.Plan([HEAD, tune])
tlk.plots.learning_rates(discriminative, model)

# %% [markdown]
# For this `fit_stages` makes **one** optimizer, so that schedules, clipping and callbacks work as
# ever. For a `compile` of your own, make it yourself:

# %% tags=["nbval-check-output"]
tlk.freeze(model, tlk.policies.all_blocks())
optimizer = tlk.optimizers.discriminative(keras.optimizers.AdamW(3e-3), model, RATES)
print({share.block: share.rate for share in optimizer.shares})

# %%
train("discriminative", discriminative)
show("top block", "all blocks", "progressive", "discriminative")

# %% [markdown]
# ## No playbook: forgetting
#
# And now without order or care: everything open from the first step, at the rate of the head.

# %%
train("rushed", tlk.recipes.full(epochs=5, lr=3e-3))
show("top block", "all blocks", "progressive", "discriminative", "rushed")

# %% tags=["nbval-check-output"]
if not ONLINE:
    kept = {name: row[2] for name, row in ledger.items()}
    careful = min(kept[name] for name in ("all blocks", "progressive", "discriminative"))
    print("After every careful plan, more than 85 of 100 letters are read:", careful > 85)
    print("After the rush, fewer than half:", kept["rushed"] < 50)

# %% [markdown]
# This is **catastrophic forgetting**, and the test images of the new task do not show it. In the
# five stored draws, up is the new task and right is the old one.

# %%
CAREFUL = ["head, 100 epochs", *OPTIONS[1:], "progressive", "discriminative"]
with tlk.plots.canvas(size=(8, 4.2)) as (figure, axis):
    axis.set(xlim=(0, 100), ylim=(78, 98), ylabel="digits behind blinds read (%)")
    axis.set(xlabel="letters of the source still read (%); a mark is one of five draws")
    ends = []
    for option, shape, sign in zip(CAREFUL, "s^vDoP<", "■▲▼◆●✚◀", strict=True):
        x, y = 100 * stored("letters", option), 100 * stored("test_accuracy", option)
        axis.plot(x, y, shape, color=tlk.plots.BLUE, alpha=0.7)
        ends.append((y.mean(), f"{sign} {option}", tlk.plots.BLUE))
    tlk.plots.name_lines(axis, 100, ends)
    for option, rate in (("rushed", "3e-3"), ("rushed, Keras's rate", "1e-3")):
        x, y = 100 * stored("letters", option), 100 * stored("test_accuracy", option)
        axis.plot(x, y, "x", color=tlk.plots.ORANGE, markersize=8, markeredgewidth=2)
        axis.annotate(f"✕ all at once\nat {rate}", (x.mean(), 87), ha="center")
figure

# %%
for option in ("all blocks", "discriminative", "rushed", "rushed, Keras's rate"):
    old, new = (100 * stored(c, option).mean() for c in ("letters", "letters_relearned"))
    print(f"{option:22}{old:6.1f}% of letters; with means computed anew {new:5.1f}%")

# %% tags=["nbval-check-output"]
more = every("letters", "all blocks", "discriminative")
print("In every draw discriminative rates keep more letters than one rate for all:", more)

# %% [markdown]
# The figure does not say that a rush fails. On the new task, everything at once at 3e-3 ties with
# careful full fine-tuning, and at 1e-3, the default of Keras, it reads more. If the old task is of
# no use to you any more, that is a fair bargain. What it costs is the source, and that is no mere
# change of language: means computed anew in the rushed network find little to read, too. You miss
# it when the network still has to serve the old task, or is to be tuned again for a third.
#
# The careful plans trade as well. One small rate for all reads most; progressive unfreezing and
# discriminative rates keep nearly all letters and give two or three points for that.
#
# ## The trap in BatchNormalization
#
# A BatchNorm layer keeps a running mean and variance of what passes through it. They are no
# weights, no gradient touches them, and they are part of what the backbone knows: a few small
# batches of new data should not overwrite them. The usual advice is to call the backbone with
# `training=False`. Watch what `fit` makes of that, once the backbone is unfrozen.


# %%
def statistics(model):
    layers = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
    return np.concatenate([keras.ops.convert_to_numpy(x.moving_mean) for x in layers])


# %%
backbone, image = tlk.load_backbone(BACKBONE, SIZE), keras.Input((SIZE, SIZE, 3))
pooled = keras.layers.GlobalAveragePooling2D()(backbone(image, training=False))
guide = keras.Model(image, keras.layers.Dense(len(task.classes))(pooled))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
guide.compile(keras.optimizers.Adam(1e-5), loss)
before, batch = statistics(guide), [array[:64] for array in far["train"]]
guide.fit(*batch, verbose=0)
kept = np.array_equal(before, statistics(guide))
print(f"Keras {keras.__version__}: training=False at call time keeps the statistics: {kept}")

# %% [markdown]
# On Keras up to 3.15 the answer is False: the outer model passes its own `training=True` down.
# `tlkeras` does not rely on that argument. It has three modes, which hold on every Keras 3:
# `"frozen"`, the default of every stage (nothing in the layer moves), `"affine"` (its scale and
# shift learn, its statistics stay), and `"train"` (all of it learns).

# %% tags=["nbval-check-output"]
for mode in ("frozen", "affine", "train"):
    tlk.freeze(guide, tlk.policies.all_blocks(), batchnorm=mode)
    guide.compile(keras.optimizers.Adam(1e-5), loss, run_eagerly=True)  # no time lost in tracing
    before = statistics(guide)
    guide.fit(*batch, verbose=0)
    print(f"{mode:7} statistics stay bit-identical: {np.array_equal(before, statistics(guide))}")

# %% [markdown]
# ## What to remember
#
# - Unfreezing is a flag on every layer; what is frozen does not move by a single bit. Which flags
#   you set decides three things: seconds, accuracy, and what is left of the old task.
# - Near the source the head is enough, if you give it time. Far from it, open the blocks where the
#   change is; when in doubt, all of them, slowly.
# - Train a new head first. Then open blocks, at a rate 10 to 100 times smaller.
# - Everything at once, at the head's rate, is how a network forgets. The new task does not show it:
#   keep some of the source to measure.
# - Keep BatchNorm's statistics frozen unless you have the data to learn better ones.
#
# ## Now you
#
# 1. Where do *two* blocks land, between one and all? Look first at what would learn.

# %% tags=["answer"]
print(tlk.freeze(model, tlk.policies.last_blocks(2)))
train("top two blocks", tlk.recipes.two_stage(15, 5, head_lr=3e-3, tune_lr=3e-4, blocks=2))
show("top block", "top two blocks", "all blocks")

# %% [markdown]
# 2. A policy is any function from the blocks to those that learn. Write one that section 1.6 does
#    not have: the bottom and the head.

# %% tags=["answer"]
tlk.freeze(model, lambda blocks: [b for b in blocks if b.role in ("bottom", "head")])

# %% [markdown]
# 3. Let the rate halve from block to block on the way down: `tlk.optimizers.layerwise_decay(0.5)`.
#    How fast does the stem learn?

# %% tags=["answer"]
halved = tlk.Stage("tune", tlk.policies.all_blocks(), 3e-3, 5,
                   rates=tlk.optimizers.layerwise_decay(0.5))  # fmt: skip
tlk.plots.learning_rates(tlk.Plan([HEAD, halved]), model)
