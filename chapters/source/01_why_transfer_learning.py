# %% [markdown]
# # 1 · Why transfer learning: one example of each will do
#
# **The question.** Why bother? You could train a network of your own, on your own data, from
# nothing. What does it save you to start from somebody else's?
#
# **What you will see.** A network that has only ever seen printed letters is shown ten handwritten
# digits, one of each, and reads more than eight of the next ten. Then the same network is taken to
# pictures of skin, and there a network that was never trained at all does as well. Both are true,
# and a course on transfer learning has to explain both.
#
# *Section 1.1 of the course. About a minute on two cores, no internet needed.*

# %%
import tlkeras as tlk

tlk.accelerate()

# %% [markdown]
# ## From cats to cancer
#
# Here is a thing that is done every day, and sounds as if it should not work. Take a network that
# has learned to find cats, dogs and buses in millions of everyday photographs, and give it X-rays,
# to find tumours. What has a cat to do with a tumour? To a network, more than to us: it sees edges,
# textures and shapes, and both are made of those. So it need not learn from nothing.
#
# This chapter does the same on a scale that a laptop can check, from letters to digits. Below is
# all that our network, `glyph_resnet`, has ever seen: printed letters, Latin, Greek, Cyrillic,
# Armenian and Georgian, bent, blurred and badly lit, 425 of them to tell apart. It was shown no
# digit, and nothing that a hand has written. (The letters are synthetic, drawn from fonts.)

# %%
import csv
from IPython.display import Image
from tlkeras.utils.paths import data_root

Image(filename=data_root() / "results" / "tasks" / "glyphs.png", width=700)

# %% [markdown]
# And this is what you want from it: real digits, which people wrote on forms, scanned at 8 × 8
# pixels. A **task** is images and labels, split for good into training, validation and test images.

# %%
ONLINE = tlk.is_online()  # TLKERAS_PROFILE=online: from cats and other photographs to skin
NEAR, FAR = ("oxford_iiit_pet", "dermamnist") if ONLINE else ("digits", "lesions")
BACKBONE = "EfficientNetB0" if ONLINE else "glyph_resnet"
SEED = 0  # another draw, another run
task = tlk.load_task(NEAR)
task.show(rows=2, columns=10)

# %% [markdown]
# ## Ten labelled images
#
# The network without its last layer, which named the letters, is the **backbone**. It turns an
# image into a row of numbers, its **features**. We compute them once and train nothing in it.

# %%
import keras
import numpy as np


def features(*stacks, weights="pretrained"):
    """A row of features for every image; with weights=None, from the network untrained."""
    keras.utils.set_random_seed(SEED)
    backbone = tlk.load_backbone(BACKBONE, weights=weights)
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    network = keras.Model(backbone.input, pooled)
    return [keras.utils.normalize(network.predict(images, verbose=0)) for images in stacks]


(images, labels), (test_images, truth) = task.arrays("train")[:2], task.arrays("test")[:2]
(held, named), classes = task.arrays("validation")[:2], len(task.classes)
frozen = features(images, test_images)
print(f"{images[0].size:,} numbers in an image, {frozen[0].shape[1]:,} in its features")

# %% [markdown]
# On these features goes the simplest classifier there is, logistic regression. It is given **one**
# labelled image of each digit (the row at the top), and then reads the test images below, the first
# thirty of 800. Above each stands what it read; its mistakes are in orange.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score


def learn(rows, labels, per_class, seed):
    """A linear classifier from so many labels of each class; `seed` draws them."""
    rng = np.random.default_rng([SEED, seed])
    groups = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    drawn = np.concatenate([group[:per_class] for group in groups])
    classifier = LogisticRegression(C=100, max_iter=1000)  # C chosen on validation, for all alike
    return classifier.fit(rows[drawn], labels[drawn]), drawn


classifier, drawn = learn(frozen[0], labels, per_class=1, seed=0)
guess = classifier.predict(frozen[1])
print(f"{len(drawn)} labels; {np.mean(guess == truth):.1%} of {len(truth)} test images read right")

# %%
shown = [*zip(images[drawn], labels[drawn], labels[drawn], strict=True)][:10]
shown += [*zip(test_images, guess, truth, strict=True)][:30]
with tlk.plots.canvas(4, 10, size=(7, 3.6)) as (figure, axes):
    for axis, (image, said, true) in zip(axes.flat, shown, strict=True):
        axis.imshow(image.astype("uint8"))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        title = task.classes[said] + " ✗" * int(said != true)
        colour = tlk.plots.DARK if said == true else tlk.plots.ORANGE
        axis.set_title(title, fontsize=8, color=colour, loc="center")
    axes[0, 0].set_ylabel("labelled", fontsize=8)
    axes[1, 0].set_ylabel("read", fontsize=8)
figure

# %% [markdown]
# One draw may be luck, so here are ten. Beside the backbone stand two controls that a careful
# reader asks for: the bare **pixels** (averaged to 8 × 8), and the **same network untrained**, with
# random weights. If shape alone did it, the second would do as well. Scores are **balanced
# accuracy**: the share read right in each class, averaged over the classes.


# %%
def pixels(*stacks):
    """Every image as 8 x 8 colours."""
    small = [x.reshape(len(x), 8, x.shape[1] // 8, 8, -1, 3).mean((2, 4)) for x in stacks]
    return [keras.utils.normalize(x.reshape(len(x), -1)) for x in small]


def score(rows, per_class, answers=(labels, truth), draws=10):
    """Balanced accuracy on test in %, for each of ten draws of labels."""
    found = (learn(rows[0], answers[0], per_class, seed)[0] for seed in range(draws))
    return np.array([100 * balanced_accuracy_score(answers[1], c.predict(rows[1])) for c in found])


seen = {"backbone": frozen, "pixels": pixels(images, test_images)}
seen["untrained"] = features(images, test_images, weights=None)
one = {name: score(rows, per_class=1) for name, rows in seen.items()}
print(*(f"{n:10} {s.mean():.1f} % ± {s.std():.1f}" for n, s in one.items()), sep="\n")

# %% tags=["nbval-check-output"]
mean = {name: scores.mean() for name, scores in one.items()}
print("One label a digit, and more than 75 of 100 are read:", mean["backbone"] > 75)
print("Pixels read fewer, by more than ten:", mean["backbone"] > mean["pixels"] + 10)
print("The same network untrained does no better than pixels:", mean["untrained"] < mean["pixels"])

# %% [markdown]
# So it is what the network **learned** that helps, and it learned it from letters. Strokes, corners
# and loops are the same whoever draws them. That is the idea of this course: knowledge from one
# task, where data are plenty, is put to use in another, where they are not. It matters because
# three things are scarce. We measure them one by one.
#
# ## The first scarcity: data
#
# Labels are what a real project runs out of first. No hospital has a million scans on which experts
# have marked every tumour. So ask in that currency: how many labels is a backbone worth?
#
# Two lines of the next figure are run now, on five draws each. The third is the same network
# trained from scratch; its five draws are stored (`python tools/measure_tasks.py` writes
# `data/results/tasks.csv`), because they take minutes.


# %%
def stored(name, **wanted):
    """Scores in % from data/results/NAME.csv: those of the wanted rows, by labels per class."""
    found = {}
    with open(data_root() / "results" / f"{name}.csv") as file:
        for row in csv.DictReader(file):
            if wanted.items() <= row.items():
                found.setdefault(int(row["labels_per_class"]), []).append(100 * float(row["score"]))
    return {n: np.array(found[n]) for n in sorted(found) if n}  # 0 stands for all labels


counts = (1, 2, 5, 10, 20, 40)
curves = {n: {k: score(seen[n], k, draws=5) for k in counts} for n in ("backbone", "pixels")}
if not ONLINE:
    curves["from scratch"] = stored("tasks", task="digits", method="scratch", preset="glyph_resnet")

# %% [markdown]
# To say how many labels a curve needs for an accuracy, read it backwards, between its points, with
# labels on a logarithmic axis. For a curve that does not get there, we say its last count: that
# many, or more.


# %%
def needed(accuracy, curve):
    """Labels a class with which a curve reaches an accuracy; its last count where it does not."""
    means = [scores.mean() for scores in curve.values()]
    return np.exp(np.interp(accuracy, means, np.log(list(curve))))


goal = curves["backbone"][5]
print(f"backbone, 5 labels a class: {goal.mean():.1f} %, in five draws ± {goal.std():.1f}")
for name in list(curves)[1:]:
    least, likely, most = (needed(g, curves[name]) for g in np.percentile(goal, (10, 50, 90)))
    print(f"{name} needs {likely:.0f} for that; over the draws, {least:.0f} to {most:.0f}")

# %%
styles = (("o-", tlk.plots.BLUE), ("^:", tlk.plots.ORANGE), ("s-.", tlk.plots.DARK))
rival, ends = list(curves)[-1], []
worth = needed(goal.mean(), curves[rival])
with tlk.plots.canvas(size=(7, 4)) as (figure, axis):
    for (name, curve), (marker, colour) in zip(curves.items(), styles, strict=False):
        mean, spread = np.array([(s.mean(), s.std()) for s in curve.values()]).T
        axis.plot(list(curve), mean, marker, color=colour, markersize=5)
        axis.fill_between(list(curve), mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
        ends.append((mean[-1], name, colour))
    arrow = {"arrowstyle": "->", "lw": 2}
    axis.annotate("", (5.4, goal.mean()), (worth, goal.mean()), arrowprops=arrow)
    text, lead = f"5 labels a class do the work of {worth:.0f}", {"arrowstyle": "-", "lw": 0.8}
    axis.annotate(text, (worth, goal.mean()), (9, 76), arrowprops=lead)
    axis.set(xscale="log", ylim=(55, 101), ylabel="balanced accuracy on test (%)")
    axis.set(xlabel="labelled images of each class (log scale); bands: one standard deviation")
    axis.set_xticks(counts, counts)
    axis.minorticks_off()
    tlk.plots.name_lines(axis, counts[-1], ends)
figure

# %% tags=["nbval-check-output"]
lead = curves["backbone"][2].mean() - curves["pixels"][5].mean()
print("Two labels a digit on the backbone beat five on pixels:", lead > 2)
if not ONLINE:
    print("Five are worth more than fifteen from scratch:", worth > 15)

# %% [markdown]
# The lead shrinks to the right: with thirty labels of each digit the network from scratch is only a
# point or so behind. The more labels you have, the less a backbone saves you. But few labels are
# what nearly everybody has.
#
# ## The second scarcity: compute
#
# From scratch, every parameter has to be trained, and every step sends its images up through the
# network and back down. The way back costs about twice the way up, for it works out the change of
# each layer's outputs and of its weights; so a step costs **three passes** an image. On a frozen
# backbone each image goes up **once**, and what is trained is a table of features by classes.
#
# Here is each way as a function, from nothing to a model that reads 95 % of the validation images.
# It returns how many rounds over its labelled images that took: with the backbone, one.


# %%
def backbone(x, y):
    rows, new = features(x, held)
    classifier = LogisticRegression(C=100, max_iter=1000).fit(rows, y)
    right = 100 * classifier.score(new, named)
    return 1, f"{right:.0f} % with {classifier.coef_.size + classes:,} parameters in 1 round"


# %% [markdown]
# From scratch, the same layers start from random weights. (The learning rate is the one that
# `tools/measure_tasks.py` chose on validation.)


# %%
def from_scratch(x, y, right=0, rounds=0):
    keras.utils.set_random_seed(SEED)
    model = tlk.add_head(tlk.load_backbone(BACKBONE, weights=None), classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss)
    while right < 0.95 and rounds < 30:
        model.fit(x, y, batch_size=30, verbose=0)
        right, rounds = np.mean(model.predict(held, verbose=0).argmax(1) == named), rounds + 1
    count = sum(np.prod(weight.shape) for weight in model.trainable_weights)
    return rounds, f"{100 * right:.0f} % with {count:,} parameters in {rounds} rounds"


# %% [markdown]
# ## The third scarcity: time
#
# Compute is what you pay; time is what you wait. So a clock runs along, and it starts before there
# is a network at all. Two draws of thirty labels a class, the same for both; loading, building and
# scoring count.

# %%
import time

spent = {backbone: [], from_scratch: []}
for method, draw in [(method, draw) for method in spent for draw in range(2)]:
    drawn = learn(frozen[0], labels, per_class=30, seed=draw)[1]
    start = time.perf_counter()
    rounds, result = method(images[drawn], labels[drawn])
    spent[method].append((rounds, time.perf_counter() - start))
    print(f"{method.__name__}: {result}, {spent[method][-1][1]:.1f} seconds")

# %% [markdown]
# And here are the three scarcities in one table, what it takes to read 95 % of the digits.

# %%
(_, quick), (rounds, slow) = (np.mean(spent[method], axis=0) for method in spent)
table = {
    "labels a class": [needed(95, curves[name]) for name in ("backbone", rival)],
    "passes for each label": [1, 3 * rounds],
    "seconds": [quick, slow],
}
print(f"{'for 95 %, on average':24}{'backbone':>12}{'from scratch':>14}{'saved':>8}")
for name, (cheap, dear) in table.items():
    print(f"{name:24}{cheap:12.1f}{dear:14.1f}{dear / cheap:7.1f}x")

# %% tags=["nbval-check-output"]
saved = [cheap / dear for cheap, dear in table.values()]
print("The backbone saves two labels of three, or more:", saved[0] < 1 / 3)
print("It saves four passes of five, or more:", saved[1] < 0.2)
print("And it is there sooner:", saved[2] < 1)

# %% [markdown]
# The seconds are those of one machine, and most of them go into getting ready; the passes hardly
# depend on it. And be fair: somebody has paid for the backbone, with two million drawings, six
# million passes and 71 minutes on two cores. But it was paid **once**, and everybody who comes
# after has it for nothing.
#
# Where networks are large, that is the whole point. The smallest Llama 2, of seven *billion*
# parameters, took 184,320 hours of A100 GPUs (Touvron and others, 2023), which is 21 years of one.
# Hardly any organisation can pay that, and none has to: a network nine times as large was adapted
# to a new task in 24 hours on a single GPU (QLoRA, Dettmers and others, 2023).
#
# ## And pictures of skin?
#
# Now the other case that was promised. Here are seven kinds of skin lesion, those of HAM10000, a
# well-known collection of photographs. These are not photographs: a program drew them, and they are
# **synthetic, of no medical validity**. (The online profile takes the real ones.)

# %%
skin = tlk.load_task(FAR, labels_per_class=41, seed=SEED)  # the rarest class has no more
skin.show(rows=1, columns=7)

# %% [markdown]
# The same three rivals, with thirty labels a class and five draws. Chance would be one in seven.

# %%
(scans, kinds), (new_scans, true_kinds) = skin.arrays("train")[:2], skin.arrays("test")[:2]
views = {"backbone": features(scans, new_scans), "pixels": pixels(scans, new_scans)}
views["untrained"] = features(scans, new_scans, weights=None)
far = {n: score(rows, 30, answers=(kinds, true_kinds), draws=5) for n, rows in views.items()}
print(*(f"{n:10} {s.mean():.1f} % ± {s.std():.1f}" for n, s in far.items()), sep="\n")

# %% [markdown]
# All are poor, and the backbone is no better than it was before it had learned anything. Even bare
# pixels are ahead of it. One untrained network and one strength of the classifier could mislead, so
# the comparison was made with more care: ten draws of ten labels a class, ten untrained networks,
# the whole network and its first block (the *stem*) alone, a strength for each, chosen on
# validation. `python tools/measure_controls.py` takes minutes for that and writes
# `data/results/controls.csv`, which is drawn here.

# %%
parts = ("pixels", "whole, untrained", "whole", "stem, untrained", "stem")
titles = {"digits": "digits", "lesions": "lesions (synthetic, no medical validity)"}
ten = {(n, p): stored("controls", task=n, features=p)[10] for n in titles for p in parts}
with tlk.plots.canvas(1, 2, size=(8, 2.7), sharey=True) as (figure, axes):
    for axis, name, chance in zip(axes, titles, (10, 100 / 7), strict=True):
        for row, part in enumerate(parts):
            untrained = "untrained" in part
            dots, colour = "os"[untrained], (tlk.plots.BLUE, tlk.plots.ORANGE)[untrained]
            axis.plot(ten[name, part], [row] * 10, dots, color=colour, alpha=0.4)
            axis.plot(ten[name, part].mean(), row, "|", color=tlk.plots.DARK, markersize=18)
        axis.axvline(chance, color="#777777", lw=1, ls=":")
        axis.set(title=titles[name], xlim=(0, 101), xlabel="balanced accuracy (%); dotted: chance")
    axes[0].set_yticks(range(len(parts)), parts)
    axes[0].set_ylim(len(parts) - 0.5, -0.5)
figure

# %% tags=["nbval-check-output"]
gain = {n: ten[n, "whole"].mean() - ten[n, "whole, untrained"].mean() for n in titles}
print("Training on letters is worth ten points on digits:", gain["digits"] > 10)
print("On lesions, the whole network gains less than two:", gain["lesions"] < 2)
if not ONLINE:
    print("Nor does it gain five here:", far["backbone"].mean() < far["untrained"].mean() + 5)
    print("Here pixels are ahead of it by two:", far["pixels"].mean() > far["backbone"].mean() + 2)

# %% [markdown]
# So transfer is no magic. It carries over **what the source task taught**, and letters taught
# little about skin. The stem, which sees edges and spots, may be a few points better for having
# been trained; what lies above it knows letters. Chapter 2 finds out *why*, with one experiment
# more, and how you notice such a case before it costs you.
#
# Is the way from cats to cancer closed, then? No: photographs teach more of what scans are made of
# than letters do. But it is no straight road either. On two large collections of medical images,
# networks from ImageNet ended hardly better than networks from scratch, though they got there
# sooner; with a few thousand images, a large network gained a little (Raghu and others,
# *Transfusion*, 2019). So measure, against pixels and an untrained network. It costs seconds.
#
# ## Who gains
#
# Where training from nothing is the only way, this is a game for a few large companies: they have
# the data, the machines and the months. With a backbone to start from, others can play. A research
# group anywhere in the world, with one graphics card or none. A hospital with three hundred scans
# and a diagnosis for each. A teacher, whose class should see a network work before the bell rings.
# A start-up that must know by Friday whether its idea holds. What they need is what you needed just
# now: a file with weights, a handful of labels, and a few seconds on two cores.
#
# ## What to remember
#
# - **Transfer learning** reuses what a network learned on one task, where data are plenty, for
#   another, where they are few.
# - Data are scarce: five labels a digit on the backbone did the work of more than fifteen from
#   scratch.
# - Compute is scarce: on a frozen backbone, 2,570 parameters learn instead of 1.3 million, and each
#   image goes through the network once.
# - Time is scarce: seconds from nothing to a working model.
# - The lead is largest with the fewest labels, and fades as they grow.
# - It is the *learned* weights that help, if they were learned on something related. Set beside
#   every backbone the two cheap controls: bare pixels, and the same network untrained.
#
# ## Now you
#
# **1.** Ninety per cent is enough, say. How many labels of each digit does that take with the
# backbone, and how many without? And 98 %?

# %% tags=["answer"]
for name, curve in curves.items():
    print(f"{name:12} 90 %: {needed(90, curve):.0f}; 98 %: {needed(98, curve):.0f} labels a digit")

# %% [markdown]
# **2.** Turn the test images into negatives, but keep the labelled ones as they are. What do you
# expect of the pixels? And of the backbone, which has seen letters of every colour?

# %% tags=["answer"]
for name, view in (("backbone", features), ("pixels", pixels)):
    rows = seen[name][0], *view(255 - test_images)
    print(f"{name:9} {score(rows, per_class=30, draws=3).mean():.0f} % of the negatives")

# %% [markdown]
# The pixels do worse than guess: nothing looks less like a black three than a white one. That a
# letter is the same in any colour is knowledge, too, and the backbone has brought it along.
# Remember that for chapter 2, where the same knowledge does harm.
