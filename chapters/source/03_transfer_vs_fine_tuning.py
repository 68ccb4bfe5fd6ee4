# %% [markdown]
# # 3 · Transfer or fine-tuning: which of the two am I doing?
#
# **The question.** You have a trained network, and it cannot do yet what you want of it. Is what
# you want a *new* task for it, or its *old* one in a narrower form?
#
# **What you will see.** A reader of letters is put in front of a conveyor belt, where every letter
# is smeared, and gets a third of them wrong. Five labelled images of each letter and some ten
# seconds of training put about a third of those mistakes right. But give it a new head first, as is
# right for handwritten digits, and from the same images it gains next to nothing.
#
# *Section 1.3 of the course. About a minute on two cores, no internet needed.*

# %%
import tlkeras as tlk

tlk.accelerate()

# %% [markdown]
# ## A general reader
#
# We need a network that is finished, head and all, and `glyph_resnet` comes as a **backbone**,
# without the layer that named the letters. So take the Latin, Greek and Cyrillic letters of its
# source task, drawn by a program in many fonts and any light, and the digits for later.

# %%
import keras
import numpy as np

SEED = 0  # another draw, another run
ONLINE = tlk.is_online()  # TLKERAS_PROFILE=online: breeds of cats and dogs, then land from above
GENERAL, NEW = ("oxford_iiit_pet", "eurosat") if ONLINE else ("glyphs", "digits")
BACKBONE, SIZE = ("EfficientNetB0", 96) if ONLINE else ("glyph_resnet", 32)
general, new = (tlk.load_task(name, image_size=SIZE) for name in (GENERAL, NEW))
kept = [i for i, c in enumerate(general.classes) if ONLINE or c < "\x80" or "Ͱ" <= c < "Ѡ"]
names = [general.classes[i] for i in kept]


def only_kept(split):
    images, labels = general.arrays(split)
    places = np.isin(labels, kept)
    return images[places], np.searchsorted(kept, labels[places])


train, validation, test = map(only_kept, ("train", "validation", "test"))
print(f"{len(names)} classes, {len(train[1]):,} images for training, {len(test[1]):,} for the test")

# %% [markdown]
# The backbone stays frozen, and a head learns the names: fast, then ten times slower, until there
# is little left to gain.


# %%
def new_model(classes):
    keras.utils.set_random_seed(SEED)
    return tlk.add_head(tlk.load_backbone(BACKBONE, SIZE), classes)


def fit(model, plan, data, validation=None):
    return tlk.fit_stages(model, plan, data, validation, seed=SEED, verbose=0)


head = tlk.policies.head_only()
reader = new_model(len(names))
stages = [tlk.Stage("fast", head, 1e-2, 6), tlk.Stage("slow", head, 1e-3, 4)]
run = fit(reader, stages, train, validation)
finished = reader.get_weights()
run

# %% [markdown]
# ## Two things it cannot do yet
#
# The first is the same letters as a camera sees them from above a moving **belt**: smeared sideways
# and noisy. That camera is made up, too: its images are the same drawings, put through a function.


# %%
def on_the_belt(images, seed, smear=9):
    side = smear // 2
    wide = np.pad(images, ((0, 0), (0, 0), (side, side), (0, 0)), mode="edge")
    moved = np.mean([wide[:, :, i : i + images.shape[2]] for i in range(smear)], axis=0)
    noise = np.random.default_rng(seed).normal(0, 10, (*moved.shape[:3], 1))
    return np.clip(moved + noise, 0, 255).astype("float32")


belt_test = on_the_belt(test[0], SEED + 100), test[1]

# %% [markdown]
# The second is **digits**, real handwriting. Above each image is what the reader takes it for.

# %%
some = np.random.default_rng(SEED).choice(len(test[1]), 12, replace=False)
digit = [np.flatnonzero(new.arrays("test")[1] == k % len(new.classes))[k] for k in range(12)]
shown = {
    "letters (synthetic)": test[0][some],
    "the same on the belt (synthetic)": belt_test[0][some],
    f"{NEW} (real)": new.arrays("test")[0][digit],
}
with tlk.plots.canvas(3, 12, size=(8, 3.3)) as (figure, axes):
    figure.get_layout_engine().set(rect=(0, 0.06, 1, 0.94))
    for row, height, (title, images) in zip(axes, (0.7, 0.39, 0.08), shown.items(), strict=True):
        said = reader.predict(images, verbose=0).argmax(axis=1)
        for axis, image, answer in zip(row, images, said, strict=True):
            axis.imshow(image.astype("uint8"))
            axis.axis("off")
            axis.set_title(names[answer][:9], loc="center", fontsize=11)
        figure.text(0.006, height, title, size=8)
figure


# %%
def accuracy(model, data):
    return float(np.mean(model.predict(data[0], 250, verbose=0).argmax(axis=1) == data[1]))


before = {"letters": accuracy(reader, test), "belt": accuracy(reader, belt_test)}
print("share right as it is:", {name: f"{share:.1%}" for name, share in before.items()})

# %% tags=["nbval-check-output"]
print("On the belt it loses more than ten points,", before["letters"] - before["belt"] > 0.1)
print("but more than half of its answers are right as they are:", before["belt"] > 0.5)
print("Its answers that name a class of the new task:", len(set(names) & set(new.classes)))

# %% [markdown]
# There is the difference, and you can see it before training anything. **Do the old answers still
# fit?**
#
# - On the belt they do. The task is the same, the images are a narrow part of the world, and what
#   the network knows, its head included, is nearly right. Improving it there is **fine-tuning**, as
#   this section uses the word: polishing.
# - For digits they do not; the reader is wrong always, however well it sees. Its head is of no use,
#   but what lies below the head may be. Taking that to a different but related problem is
#   **transfer**.
#
# A network that learned animals from millions of photographs is transferred when it is to name
# plants: shapes and patterns it knows, leaves it does not. A detector of everything, trained on
# ImageNet or COCO, is fine-tuned when it is to find cars, which it has always found, but better:
# with a smaller set, of cars only. The base of knowledge stays, its focus becomes sharper.
#
# ## Transfer: a new head, at a high rate
#
# Ten labelled images of each digit. The new head is random, so it has everything to learn and
# nothing to lose: a high rate, and a frozen backbone.


# %%
def drawn(data, per_class):
    rng = np.random.default_rng(SEED)
    members = [np.flatnonzero(data[1] == c) for c in range(data[1].max() + 1)]
    few = np.concatenate([rng.choice(m, per_class, replace=False) for m in members])
    return data[0][few], data[1][few]


digits, digits_test = drawn(new.arrays("train"), 10), new.arrays("test")
transferred = new_model(len(new.classes))
untrained = accuracy(transferred, digits_test)
run = fit(transferred, tlk.recipes.head_only(epochs=12, head_lr=1e-2), digits)
moved = accuracy(transferred, digits_test)
print(f"{untrained:.1%} with an untrained head, {moved:.1%} after {run.seconds:.0f} s")

# %% [markdown]
# And what has the reader lost? Put its old head back on this backbone.

# %% tags=["nbval-check-output"]
reader.set_weights([*transferred.get_weights()[:-2], *finished[-2:]])
print("Transfer reads more than 85 of 100:", moved > 0.85)
print("The old head reads letters exactly as before:", accuracy(reader, test) == before["letters"])

# %% [markdown]
# ## Fine-tuning: the old head, everything at a small rate
#
# Five labelled images of each letter, from the belt. Nothing is new here, so there is no first
# stage for a head to catch up in. All blocks learn from the first step, at a thirtieth of the rate
# above. A plan is data; this is the whole of it.

# %%
polish = tlk.recipes.full(epochs=6, lr=3e-4)
polish

# %%
few = drawn(train, 5)
belt = on_the_belt(few[0], SEED), few[1]
reader.set_weights(finished)
run = fit(reader, polish, belt)
polished = {"letters": accuracy(reader, test), "belt": accuracy(reader, belt_test)}
for name in polished:
    print(f"{name:8} {before[name]:.1%} before, {polished[name]:.1%} after")
print(f"{len(few[1])} images, {run.seconds:.0f} s")

# %% tags=["nbval-check-output"]
gain, price = polished["belt"] - before["belt"], before["letters"] - polished["letters"]
print("It gains more than five points on the belt,", gain > 0.05)
print("and loses some, but fewer, on letters at large:", 0 < price < gain)

# %% [markdown]
# That is the price of a sharper focus: the network gets better at what it is shown and a little
# worse at what it is shown no longer. If the belt is all it will ever see, the price is nothing; if
# not, keep a copy of the reader as it was, and always measure the general task as well.
#
# ## The wrong one of the two
#
# Now swap them. Treat the digits as if the answers still fitted: keep the old head, call its first
# ten answers 0 to 9, and train everything at the small rate. Treat the belt as if it were a new
# task: a new head on the frozen backbone.

# %%
reader.set_weights(finished)
renamed = accuracy(reader, digits_test)
fit(reader, tlk.recipes.full(epochs=12, lr=3e-4), digits)
renewed = new_model(len(names))
fit(renewed, tlk.recipes.head_only(epochs=6, head_lr=1e-2), belt)
swapped = {"digits": accuracy(reader, digits_test), "belt": accuracy(renewed, belt_test)}
letters_left = accuracy(reader, test)
print(f"digits, old head: {renamed:.1%} before, {swapped['digits']:.1%} after")
print(f"belt, new head:   {swapped['belt']:.1%} after, {before['belt']:.1%} untouched")
print(f"letters, after the digits went through it: {letters_left:.1%}")

# %% tags=["nbval-check-output"]
print("digits: transfer is more than five points ahead:", moved - swapped["digits"] > 0.05)
print("belt: polishing is more than five points ahead:", polished["belt"] - swapped["belt"] > 0.05)

# %% [markdown]
# Each wins on its own ground. An old head on a new task has to unlearn its answers, and what it
# unlearns is gone: most letters with it. A new head on the old task has to learn again, from 540
# images, what the old one had learned from thousands, and ends where the reader was before.
#
# ## Which rate suits which
#
# One draw is an anecdote, and one rate no comparison. `python tools/measure_polishing.py` has
# measured more of both, the same epochs for each, and stored them in `data/results/polishing.csv`.
# A dot is a draw of labels. (All this is on test images: it shows what a rate does; to choose one,
# you would use validation. The stored runs are of letters and digits in the online profile, too.)

# %%
import csv

from tlkeras.utils.paths import data_root

with open(data_root() / "results" / "polishing.csv") as file:
    rows = list(csv.DictReader(file))


def stored(task, use, rate, column="accuracy"):
    """A column of the runs, one value a seed; accuracies in %."""
    key = task, use, f"{rate:g}"
    found = [float(r[column]) for r in rows if (r["task"], r["use"], r["rate"]) == key]
    return np.array(found) * (1 if column == "seconds" else 100)


# %%
OLD, FAST, SMALL = "old head, all blocks", (1e-4, 1e-3, 3e-3, 1e-2), (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
lines = (
    ("new head", FAST, "accuracy", "new head", "o-", "BLUE", (4, -14)),
    (OLD, SMALL, "accuracy", OLD, "s-", "ORANGE", (0, -12)),
    (OLD, SMALL, "letters", "the same, on letters at large", "^:", "DARK", (0, 7)),
)
with tlk.plots.canvas(1, 2, size=(9, 3.8), sharey=True) as (figure, axes):
    for axis, task in zip(axes, ("digits", "belt"), strict=True):
        for use, x, column, label, style, colour, offset in lines:
            y = np.array([stored(task, use, rate, column) for rate in x])
            ink = {"color": getattr(tlk.plots, colour)}
            axis.plot(x, y.mean(axis=1), style, **ink)
            axis.plot(x, y, style[0], alpha=0.3, markersize=3, **ink)
            axis.annotate(label, (x[0], y[0].mean()), offset, textcoords="offset points", **ink)
        axis.axhline(y := stored(task, "as it is", 0).mean(), color="#777777", linewidth=1)
        axis.text(4e-4, y - 7, "untouched", color="#555555", ha="center")
        axis.set(xlabel="learning rate", xscale="log", ylim=(-10, 103))
    axes[0].set(title="new task: digits", ylabel="test accuracy (%)")
    axes[1].set_title("same task: letters on the belt")
figure

# %% tags=["nbval-check-output"]
best_new = max(FAST, key=lambda rate: stored("digits", "new head", rate).mean())
best_old = max(SMALL, key=lambda rate: stored("belt", OLD, rate).mean())
print("A new head wants ten times the best rate of polishing, or more:", best_new > 9 * best_old)
rushed = stored("belt", OLD, 3e-3) - stored("belt", "as it is", 0)
print("At 3e-3 polishing reads worse than no training, in every draw:", rushed.max() < 0)

# %% [markdown]
# Left: a new head is best at the highest rate tried. The old one, with all blocks, learns the
# digits, too, once the rate is high enough to overwrite it, and by then the letters are gone.
# Right: at small rates polishing gains and forgets little; at the rate of a new head it reads worse
# than if you had done nothing. And is it really the belt that it has learned? The same drawings
# without the smear, with the same training:

# %%
for use in (OLD, f"{OLD}, sharp letters"):
    gained = stored("belt", use, 3e-4) - stored("belt", "as it is", 0)
    print(f"{use:38} {gained.mean():+.1f} ± {gained.std():.1f} points on the belt")

# %% [markdown]
# ## The word means two things
#
# Elsewhere you will read that a *transferred* network is fine-tuned: new head first, then unfreeze
# and go on at a small rate. In everyday speech **fine-tuning** is that technique, whatever it is
# used for; chapter 6 is about it, and uses the word so. Section 1.3 uses it for a *purpose*, and
# this chapter does, too. Purpose and technique are two questions, and all four pairs exist.
# Polishing can stop at the head, and transfer can go on into the backbone.


# %%
def result(*key):
    scores, seconds = stored(*key), stored(*key, column="seconds")
    return f"{scores.mean():.1f} ± {scores.std():.1f} %, {seconds.mean():.0f} s"


T, F = ("digits", "new head", 1e-2), ("belt", OLD, 3e-4)
frozen = result("belt", "old head alone", 1e-3)
unfrozen = result("digits", "new head, then all blocks", 3e-4)
print(f"{'purpose':24}{'backbone frozen':>20}{'all unfrozen, 3e-4':>24}")
print(f"{'transfer to digits':24}{result(*T):>20}{unfrozen:>24}")
print(f"{'fine-tuning to the belt':24}{frozen:>20}{result(*F):>24}")

# %% [markdown]
# On digits, which are near, going on wins nothing; chapter 6 has a target where it does. On the
# belt, a polished head alone gains more than half of what there is, in a tenth of the time.
#
# ## Which of the two am I doing?
#
# The section's distinction as a table, with what was measured for it here.


# %%
def lost(task, *key):
    before, after = (stored(task, *k, column="letters") for k in (("as it is", 0), key))
    return f"{(before - after).mean():.1f} ± {(before - after).std():.1f} points"


scratch = [result(task, "from scratch", 1e-3) for task in ("digits", "belt")]
table = {
    "the problem is": ("new, but related", "the old one, narrower"),
    "the old answers fit": ("no", "yes"),
    "the head is": ("new", "kept"),
    "right before training": ("none", result("belt", "as it is", 0).split(",")[0]),
    "the rate": ("1e-2, for the head", "3e-4, for all at once"),
    "right after training": (result(*T), result(*F)),
    "from scratch": scratch,
    "lost on letters": (lost(*T), lost(*F)),
}
print(f"{'':24}{'transfer':>24}{'fine-tuning':>24}")
for row, (left, right) in table.items():
    print(f"{row:24}{left:>24}{right:>24}")

# %% tags=["nbval-check-output"]
for name, key in (("Transfer", T), ("Fine-tuning", F)):
    worst, best = stored(*key).min(), stored(key[0], "from scratch", 1e-3).max()
    print(f"{name} at its worst beats from scratch at its best:", worst > best)

# %% [markdown]
# Both are a bargain beside training **from scratch** on the same labels, in accuracy and in time:
# what the starting network knows had been paid for. (From scratch had ten times the epochs on the
# belt, three times on digits. Seconds were taken on busy cores: compare them with each other only.)
# And they shine in different places: transfer, where you ask what nobody has asked the network
# before; fine-tuning, where it answers your question already, but your images are of one kind.
#
# ## What to remember
#
# - **Transfer** takes knowledge to a new, related problem; **fine-tuning**, as section 1.3 uses the
#   word, improves a network on its own problem, or on one very close to it.
# - Ask one thing first: *do the old answers still fit?* Measure it, before training.
# - They do not: a new head, alone, at a high rate. What lies below may stay frozen, and then
#   nothing is lost.
# - They do: keep the head, and let it all learn at a small rate from the first step. A new head
#   would throw away the best you have.
# - Polishing has a price elsewhere. Measure the general task, too, before and after.
# - In everyday speech *fine-tuning* is a technique, unfreezing, that serves both.
#
# ## Now you
#
# 1. A narrower task may need no training. The reader shall name Cyrillic letters only: what do you
#    win by forbidding it all other answers? (Online: the breeds whose names begin with A to C.)

# %% tags=["answer"]
reader.set_weights(finished)
narrow = [i for i, c in enumerate(names) if (c.lower() < "d" if ONLINE else c >= "Ѐ")]
places = np.isin(test[1], narrow)
scores, truth = reader.predict(test[0][places], verbose=0), test[1][places]
print(f"any answer:     {np.mean(scores.argmax(axis=1) == truth):.1%}")
print(f"these only:     {np.mean(np.array(narrow)[scores[:, narrow].argmax(axis=1)] == truth):.1%}")

# %% [markdown]
# 2. Polish the old head alone, at 1e-3, with the backbone frozen. It takes seconds: what does it
#    gain on the belt, and what does it cost on letters at large?

# %% tags=["answer"]
reader.set_weights(finished)
run = fit(reader, tlk.recipes.head_only(epochs=6, head_lr=1e-3), belt)
print(f"belt {accuracy(reader, belt_test):.1%}, letters {accuracy(reader, test):.1%}")

# %% [markdown]
# 3. Transfer or fine-tuning? (a) A network finds fractures in X-rays of adults, and shall find them
#    in children. (b) The same network shall tell the age of the patient. (c) A network names birds
#    by their song, and shall name the birds of one garden.

# %% tags=["answer"]
for case, old_answers_fit in {"a": True, "b": False, "c": True}.items():
    print(case, "fine-tuning: keep the head" if old_answers_fit else "transfer: a new head")
