# %% [markdown]
# # 5 · Layers: what each part of a network knows
#
# **The question.** A network is a stack of layers, and transfer learning keeps some of them and
# throws others away. What does each layer know, and who else can use it?
#
# **What you will see.** Every floor of a network that reads letters is asked five questions about
# what it sees. On the way up it learns to tell letters and forgets everything else: at the top it
# can hardly tell red from blue, and *the same network before any training could*. What it forgot
# decides which layers are worth keeping for your task.
#
# *Section 1.5 of the course. About a minute on two cores, no internet needed.*

# %%
import tlkeras as tlk

tlk.accelerate()

# %% [markdown]
# ## A feature factory
#
# A neural network takes its name, and not much more, from the brain. Picture a factory: raw pixels
# come in at one end, every layer makes something more meaningful of what it is handed, and at the
# other end stands a decision. This is the raw material of ours, the network `glyph_resnet`.

# %%
ONLINE = tlk.is_online()  # TLKERAS_PROFILE=online: photographs of pets, a network for ImageNet
NAME, BACKBONE = ("oxford_iiit_pet", "EfficientNetB0") if ONLINE else ("glyphs", "glyph_resnet")
SIZE = 96 if ONLINE else 32
source = tlk.load_task(NAME, image_size=SIZE)
source.show("test", rows=2, columns=10)

# %% [markdown]
# `tlk.find_blocks` reads the layers off the network and puts them together into blocks, mostly
# where the image shrinks. Each has one of the course's names: **bottom** (or stem), **middle**,
# **top** and **head**.

# %%
import keras
import numpy as np
import tensorflow as tf

SEED = 0  # another draw, another run
keras.utils.set_random_seed(SEED)
backbone = tlk.load_backbone(BACKBONE, image_size=SIZE)
untrained = tlk.load_backbone(BACKBONE, image_size=SIZE, weights=None)  # to compare with
tlk.find_blocks(tlk.add_head(backbone, classes=10))

# %% [markdown]
# Input → [ **bottom** → **middle** → **top** ] → [ **head** ] → decision
#
# Bottom, middle and top together are the **backbone**, the pretrained feature extractor: whatever
# can be reused. The **head** adapts it to a task, and is exchanged with the task: one for breeds of
# dogs, one for diseases of plants, one for handwritten numbers.
#
# ## One letter on its way up
#
# To look inside, give every block an output. A block's `cut` is the tensor that leaves it.


# %%
def watch(backbone):
    """The network with an output for every block."""
    network = backbone if ONLINE else backbone.layers[-1]  # ours lies behind the pixels' scaling
    cuts = [*(block.cut for block in tlk.find_blocks(backbone)[:-1]), network.output]
    inside = keras.Model(network.input, cuts)
    return inside if ONLINE else keras.Model(backbone.input, inside(backbone.layers[-2].output))


# %%
watched = {"pretrained": watch(backbone), "untrained": watch(untrained)}
parts = tlk.find_blocks(backbone).names
images, labels = source.arrays("test")
seen = watched["pretrained"].predict(images, batch_size=256, verbose=0)  # a list, one a block

# %% [markdown]
# Here are the eight busiest maps of every block, for one letter. White is a strong answer.

# %%
BARE = {"xticks": [], "yticks": []}
one = np.flatnonzero(labels == 16)[0]  # an R
with tlk.plots.canvas(len(parts), 9, (8, 3.8), subplot_kw=BARE) as (figure, axes):
    for row, name, maps in zip(axes, parts, seen, strict=True):
        row[0].imshow(images[one] / 255)
        row[0].set_ylabel(name)
        for axis, u in zip(row[1:], np.argsort(-maps[one].std(axis=(0, 1))), strict=False):
            axis.imshow(maps[one, ..., u], cmap="gray")
figure

# %% [markdown]
# The maps get smaller and more of them stay black: a block higher up answers to less, and says less
# about where. At the top four pixels are left to each of 256 maps. That is no picture any more, but
# a list of what was found.
#
# ## The bottom: edges, and hardly any colour
#
# The very first layer looks through windows of 3 × 3 pixels. Below are ten of its filters; under
# each, what it makes of the letter; and at the bottom ten filters of the untrained network.

# %%
kernels = {}
for name, network in zip(watched, (backbone, untrained), strict=True):
    kernel = next(w.numpy() for w in tlk.find_blocks(network)[0].weights if len(w.shape) == 4)
    kernels[name] = kernel / np.abs(kernel).max(axis=(0, 1, 2))  # (3, 3, RGB, filters)
filters = [0.5 + kernel.transpose(3, 0, 1, 2) / 2 for kernel in kernels.values()]
answers = keras.ops.conv(images[[one]] / 255 - 0.5, kernels["pretrained"])[0]
with tlk.plots.canvas(3, 10, (8, 2.7), subplot_kw=BARE) as (figure, axes):
    pictures = {"pretrained": filters[0], "its answer": np.moveaxis(answers, -1, 0)}
    for row, (name, tiles) in zip(axes, {**pictures, "untrained": filters[1]}.items(), strict=True):
        row[0].set_ylabel(name, fontsize=8)
        for axis, tile in zip(row, tiles, strict=False):
            axis.imshow(tile, cmap="gray")
figure

# %% [markdown]
# Most draw outlines: they are light along the letter's edges on one side and dark on the other. And
# they are nearly grey, where the untrained ones are gaudy. How much of a filter is differences
# between its weights for red, green and blue?

# %%
share = {n: np.median(k.var(2).mean((0, 1)) / (k**2).mean((0, 1, 2))) for n, k in kernels.items()}
print({name: f"{value:.0%} is colour" for name, value in share.items()})

# %% tags=["nbval-check-output"]
print("Untrained, more than half of a filter is colour:", share["untrained"] > 0.5)
print("Trained, less than a quarter:", share["pretrained"] < 0.25)

# %% [markdown]
# The letters came in every colour on every ground, so colour says nothing about which letter it is.
# Training has bleached the first layer already.
#
# ## What excites a unit
#
# Higher up, filters cannot be looked at any more, but a unit (one map of a block) can be asked what
# it likes. **Gradient ascent** is training turned round: begin with noise, hold the weights, and
# change the image until the unit answers strongly. The image is shifted a little at every step, or
# it would end as fine grain.


# %%
def excite(watcher, steps=80):
    """A unit of each block, and an image to which it answers strongly, near the middle."""
    rng, units = np.random.default_rng(SEED), None
    image = tf.Variable(rng.normal(size=(len(parts), SIZE, SIZE, 3)), dtype="float32")
    for _ in range(steps):
        with tf.GradientTape() as tape:
            maps = watcher(tf.roll(128 + 20 * image, rng.integers(-2, 3, 2), (1, 2)))
            answers = [tf.image.central_crop(z[b], 0.25)[0, 0] for b, z in enumerate(maps)]
            units = units or [rng.choice(np.flatnonzero(a > 0)) for a in answers]  # awake to noise
            score = sum(a[u] for a, u in zip(answers, units, strict=True))
        slope = tape.gradient(score, image)
        slope /= tf.math.reduce_std(slope, (1, 2, 3), keepdims=True) + 1e-9
        image.assign(0.98 * image + 0.1 * slope)
    return units, image.numpy().mean(axis=-1)


# %% [markdown]
# Better witnesses are the **images that excite it most**, here among the test letters. Of each you
# see the place where the unit answers, in a window that grows with the block.

# %%
units, drawn = excite(watched["pretrained"])
with tlk.plots.canvas(len(parts), 10, (8, 3.6), subplot_kw=BARE) as (figure, axes):
    for b, (row, u) in enumerate(zip(axes, units, strict=True)):
        row[0].imshow(drawn[b], cmap="gray", clim=np.array([-2.5, 2.5]) * drawn[b].std())
        row[0].set_ylabel(f"{parts[b]}, {u}", fontsize=8)
        maps, side = seen[b][..., u], round(SIZE * (1 + b / (len(parts) - 1)) / 2)
        for axis, i in zip(row[1:], np.argsort(-maps.max(axis=(1, 2))), strict=False):
            place = np.array(np.unravel_index(maps[i].argmax(), maps[i].shape)) + 0.5
            corner = np.clip(place * SIZE / len(maps[i]) - side / 2, 0, SIZE - side).astype(int)
            axis.imshow(images[i][corner[0] :, corner[1] :][:side, :side] / 255)
figure

# %% [markdown]
# One unit a block, its drawing first (another `SEED` shows others). The bottom likes an edge or a
# corner in one place. Further up it is strokes that bend, cross and end. Units of the top like
# letters, or what letters have in common, in any colour, thin or fat. How far does that go? Of the
# ten letters that excite a unit most, count those that are the same letter.

# %%
best = (np.argsort(-maps.mean(axis=(1, 2)), axis=0)[:10] for maps in seen)
agree = [np.mean([np.bincount(labels[ten]).max() for ten in tens.T]) for tens in best]
print({part: f"{number:.1f} of 10" for part, number in zip(parts, agree, strict=True)})

# %% tags=["nbval-check-output"]
print("More in the top than at the bottom:", agree[-1] > 2 * agree[0])
print("but fewer than half of the ten, even in the top:", agree[-1] < 5)

# %% [markdown]
# So the top does not have one unit for each letter. It has 256 units that *together* tell letters
# apart, and that is why they can be put together anew for a letter, or a digit, never seen before.
#
# ## Five questions on every floor
#
# What a block knows is what can be read off it. Average each of its maps, as a head would, and fit
# a **linear probe** on 30 labelled images a class. The questions: which letter (what it was trained
# for), which handwritten digit, which style of type, and, of synthetic scenes with one shape in
# them, which texture and which colour.

# %%
from IPython.display import Markdown
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits


# %%
def data(name, feature="label"):
    """Images and labels, 30 a class (all, of pets) and 400 to test; every nineteenth letter."""
    task = tlk.load_task(name, None if "pet" in name else 30, SEED, image_size=SIZE)
    some = max(1, len(task.classes) // 24)
    splits = ((n, *task.arrays(s, "image", feature)) for s, n in (("train", None), ("test", 400)))
    return [(x[y % some == 0][:n], y[y % some == 0][:n]) for n, x, y in splits]


# %%
@threadpool_limits.wrap(limits=1)  # so little work is done fastest by one thread
def probe(reader, train, test):
    """Test accuracy in %, of a linear classifier on every block."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    outputs = zip(*(reader.predict(x, 256, verbose=0) for x, _ in (train, test)), strict=True)
    return [100 * classifier.fit(x, train[1]).score(new, test[1]) for x, new in outputs]


# %%
asked = {"letters": (NAME,), "digits": ("digits",), "styles": ("glyphs/styles",)}
asked |= {"texture": ("scenes", "texture"), "colour": ("scenes", "colour")}
questions = {question: data(*where) for question, where in asked.items()}
pool = keras.layers.GlobalAveragePooling2D()
readers = {n: keras.Model(w.input, [pool(z) for z in w.outputs]) for n, w in watched.items()}
knows = {n: {q: probe(r, *d) for q, d in questions.items()} for n, r in readers.items()}

# %% [markdown]
# The thick lines are the run you just made. The thin ones come from five other draws of labels and
# five other untrained networks, measured by `python tools/measure_layers.py` and stored in
# `data/results/layers.csv`.

# %%
import csv

from tlkeras.utils.paths import data_root

rows = list(csv.DictReader((data_root() / "results" / "layers.csv").read_text().splitlines()))


# %%
def stored(part, task, network="pretrained"):
    """Values in %, one row a block and one column a seed."""
    found = [r for r in rows if (r["part"], r["task"], r["network"]) == (part, task, network)]
    order = list(dict.fromkeys(row["block"] for row in found))
    return 100 * np.array([[float(r["value"]) for r in found if r["block"] == b] for b in order])


# %%
with tlk.plots.canvas(1, 2, (9, 3.6), sharey=True) as (figure, axes):
    for axis, (name, found) in zip(axes, knows.items(), strict=True):
        ends = []
        for i, (question, accuracies) in enumerate(found.items()):
            style = ("-", "--", "-.", ":", "-")[i] + "osD^v"[i]
            colour = axis.plot(parts, accuracies, style)[0].get_color()
            if not ONLINE:
                axis.plot(parts, stored("probe", question, name), color=colour, linewidth=0.4)
            ends.append((accuracies[-1], question, colour))
        axis.set(title=name, xlabel="outputs of block", ylim=(0, 102))
        tlk.plots.name_lines(axis, len(parts) - 1, ends)
    axes[0].set_ylabel("right answers of a linear probe (%)")
figure

# %% [markdown]
# Letters are learned floor by floor, and digits, which the network never saw, come along to the
# very top. Style, texture and colour go the other way. The untrained network shows that nobody had
# to teach colour: it was there, and training took it out.

# %% tags=["nbval-check-output"]
rise = {question: a[-1] - a[0] for question, a in knows["pretrained"].items()}
print("Letters gain more than 60 points from bottom to top:", rise["letters"] > 60)
print("Digits gain, too:", rise["digits"] > 3)
print("Style and texture lose:", rise["styles"] < -3 and rise["texture"] < -3)
after, before = (knows[name]["colour"][-1] for name in watched)
print("Of colours, the untrained top tells 10 points more:", before > after + 10)

# %% [markdown]
# ## Do two blocks say the same?
#
# A probe needs a question. **CKA** (centred kernel alignment, Kornblith et al. 2019) compares
# blocks without one: do they find the same images alike? It is 1 where two sets of features differ
# by a rotation and a scale alone, 0 where they have nothing in common, and three lines of numpy.


# %%
def cka(a, b):
    """Linear CKA of two sets of outputs for the same images."""
    a, b = (x - x.mean(axis=0) for x in (a.reshape(len(a), -1), b.reshape(len(b), -1)))
    a, b = a @ a.T, b @ b.T  # how alike every two images are
    return np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))


# %% [markdown]
# Compare the pretrained network with itself, with the untrained one, and with what becomes of it
# when all of it is tuned on the styles, in two stages.

# %%
shown = questions["styles"][1][0][:200]
views = {name: [shown, *w.predict(shown, verbose=0)] for name, w in watched.items()}
model, weights = tlk.add_head(backbone, classes=6), backbone.get_weights()
plan = tlk.recipes.two_stage(8, 6, head_lr=1e-2, tune_lr=3e-4, blocks=len(parts))
tlk.fit_stages(model, plan, questions["styles"][0], seed=SEED, verbose=0)
views["tuned"] = [shown, *watched["pretrained"].predict(shown, verbose=0)]
backbone.set_weights(weights)  # as it was
old = views["pretrained"]
alike = {name: np.array([[cka(a, b) for b in new] for a in old]) for name, new in views.items()}

# %%
with tlk.plots.canvas(1, 3, (9.5, 3.4), sharey=True) as (figure, axes):
    for axis, (name, table) in zip(axes, alike.items(), strict=True):
        axis.imshow(table, vmin=0, vmax=1.4, cmap="Blues")
        for (i, j), value in np.ndenumerate(table):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8)
        axis.set_xticks(range(len(parts) + 1), ["pixels", *parts], rotation=45)
        axis.set_yticks(range(len(parts) + 1), ["pixels", *parts])
        axis.set(xlabel=name, ylabel="pretrained" if axis is axes[0] else "")
figure

# %% [markdown]
# On the left, neighbours are alike, and nothing above the stem is like the pixels. In the middle,
# the untrained blocks mostly repeat the pixels; of what they said, training on letters left next to
# nothing. On the right, tuning left nearly everything as it was.

# %% tags=["nbval-check-output"]
old, new = (alike[name].diagonal()[1:] for name in ("untrained", "tuned"))
print("Above the stem, training kept less than 0.2:", max(old[1:]) < 0.2)
print("Tuning keeps more than 0.9 in every block:", min(new) > 0.9)
runs = [stored("tune", task)[:4] for task in ("letters", "digits", "styles", "colour")]
print("The higher a block, the less it keeps (12 stored runs):", np.all(np.diff(runs, axis=1) < 0))

# %% [markdown]
# So tuning polishes, and does not rebuild. Is that enough? In the stored runs tuning brings styles
# (100 labels each) from 27 right answers in 100, with the head alone, to 38, and the top stays 0.97
# alike: CKA counts what varies most, and a new task may need little of that. Colour it leaves at
# 15, where chance is 12.5: what is not there cannot be polished.
#
# ## What can be kept
#
# Now the test that counts (Yosinski et al. 2014). Keep the pretrained network up to a block,
# frozen; let everything above it start anew and learn the new task.


# %%
def keep(name, train, test, rate=1e-3):
    """Blocks up to `name` pretrained and frozen, all above new: test accuracy in %."""
    keras.utils.set_random_seed(SEED)
    networks = (backbone, tlk.load_backbone(BACKBONE, SIZE, weights=None))
    models = [tlk.add_head(network, classes=len(np.unique(train[1]))) for network in networks]
    (below, _), (_, above) = (tlk.find_blocks(model).split(name) for model in models)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    above.compile(keras.optimizers.AdamW(rate), loss, metrics=["accuracy"])
    above.fit(below.predict(train[0], verbose=0), train[1], epochs=25, verbose=0)
    return 100 * above.evaluate(below.predict(test[0], verbose=0), test[1], verbose=0)[1]


# %%
for name, rate in zip(parts[-2:], (1e-3, 1e-2), strict=True):  # a head alone can learn faster
    print(f"styles, kept up to {name}: {keep(name, *questions['styles'], rate):.0f} %")

# %% [markdown]
# With the top kept, styles are read worse than with a top of its own. All depths, three draws and
# three tasks are in the stored runs (10 labels a digit, 100 a style, 30 a colour).

# %%
kept = {task: stored("keep", task) for task in ("digits", "styles", "colour")}
with tlk.plots.canvas(size=(7.5, 3.8)) as (figure, axis):
    for i, (task, values) in enumerate(kept.items()):
        colour = axis.plot(values.mean(axis=1), ("-", "--", "-.")[i])[0].get_color()
        axis.plot(values, "osD"[i], color=colour, alpha=0.6, markersize=5)
        axis.text(4.2, values[4].mean(), task, color=colour, va="center")
    axis.set_xticks(range(5), ["nothing:\nall is new", *parts[:3], f"{parts[3]}:\nhead is new"])
    axis.set(xlabel="kept and frozen up to this block; all above is new", ylim=(0, 102))
    axis.set_ylabel("balanced accuracy on test (%)")
figure

# %% [markdown]
# Three tasks, three answers, from the same network. Here they are in the course's table. Its last
# three columns are measured: how many points a task gains (+) or loses (-) when these layers are
# kept, too, and not learned anew. The bottom is `stem` and `stack0-1`; means of three draws.

# %%
gains = {task: np.diff(values.mean(axis=1)[[0, 2, 3, 4]]) for task, values in kept.items()}
bottom, middle, top = (" | ".join(f"{gain[i]:+.0f}" for gain in gains.values()) for i in range(3))
Markdown(f"""| layers | what they learn | transferability | {" | ".join(gains)} |
|---|---|---|---|---|---|
| bottom, early (stem) | edges, corners, textures | highly reusable | {bottom} |
| middle | shapes, parts (an ear, a wheel), patterns | somewhat reusable | {middle} |
| top, late | whole objects (cat, dog, bus) | usually not reusable | {top} |
| head | the decision ("a Labrador") | always replaced | new | new | new |""")

# %% [markdown]
# For styles the table is right, line by line: the bottom is worth much, the middle little, and the
# top does harm. Digits are so near to letters that even the top can be kept. For colour not even
# the bottom can: this network saw colours that meant nothing. And the head never fits: it gives 464
# answers, and no digit, style or colour is among them.
#
# > Only the very top and the head have to be retrained.
#
# That is how the section sums it up. Check it against the best of the five depths, draw by draw
# (best on the test images, so a strict judge).

# %% tags=["nbval-check-output"]
for task, values in kept.items():
    head, top_and_head = (values.max(axis=0) - values[i] for i in (4, 3))
    print(f"{task:7} retraining the head is enough, within 3 points: {np.all(head < 3)!s:6}",
          f"the top and the head: {np.all(top_and_head < 3)}")  # fmt: skip

# %% [markdown]
# It holds where the task asks for what the source needed, too, and fails where the source had
# reason to forget. The thousand classes of ImageNet need edges, textures, shapes *and* colours; a
# network trained on them had less reason to forget, and should hold to the sentence more often.
#
# ## What to remember
#
# - A network is a backbone (bottom, middle, top: reusable) and a head (replaced with every task).
# - Going up, it finds edges and corners, then strokes and shapes, then objects; it answers to less,
#   and forgets whatever its own task did not need.
# - Early and middle layers are the general ones: that is why transfer works at all. The top is for
#   the source task and those near it.
# - General means general *for what the source had to see*. A probe on each block tells you in
#   seconds whether yours is there.
# - Tuning polishes the top most and the bottom least. What the bottom has thrown away must be
#   learned anew.
#
# ## Now you
#
# 1. `tlk.probe` fits the probes of all blocks in one call. What does it advise for textures? (To
#    choose by it, give it validation images, not test images.)

# %% tags=["answer"]
tlk.probe(backbone, *questions["texture"], strength=0.1)

# %% [markdown]
# 2. The shape in a scene (synthetic, 8 shapes): does what the network knows help, or would its
#    untrained twin do as well?

# %% tags=["answer"]
print({name: np.round(probe(r, *data("scenes"))) for name, r in readers.items()})

# %% [markdown]
# 3. For digits, keep everything up to the top and train a head alone. How many of 100 does it read?

# %% tags=["answer"]
print(f"{keep(parts[-1], *questions['digits'], rate=1e-2):.0f} %")
