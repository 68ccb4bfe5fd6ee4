# %% [markdown]
# # 5 · Layers: what each part of a network knows
#
# **The question.** A network is a stack of layers, and transfer learning keeps some of them and
# throws others away. What does each one know, and which are useful for *your* task?
#
# **The promise.** In less than a minute on two cores you extract the output of any layer in plain
# Keras, look at it, and measure with a linear probe which block to build on. *(Section 1.5 of the
# course; no internet needed.)*

# %% [markdown]
# ## A feature factory
#
# Picture a factory. Raw pixels come in at one end, every layer turns its input into something more
# meaningful, and a decision comes out at the other end.
#
# Input → [ **bottom**, or stem → **middle** → **top** ] → [ **head** ] → decision
#
# Bottom, middle and top together are the **[backbone](glossary.md#backbone)**, the pretrained
# feature extractor. The **[head](glossary.md#head)** is the part for one specific task, and is
# replaced for each task: one for dog breeds, one for plant diseases, one for handwritten digits.
# `tlk.find_blocks` finds these parts in a network. Ours has learned 1,000 kinds of things from 1.28
# million ImageNet photographs.

# %%
import tlkeras as tlk

import keras
import numpy as np

SEED = 0  # change it for another draw of labels and another run
setting = tlk.setting("05")
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
tlk.find_blocks(tlk.add_head(backbone, classes=len(task.classes)))

# %% [markdown]
# ## By hand: the output of any layer
#
# The recipe is one line, `keras.Model(model.input, layer.output)`: a second model that ends at the
# layer and shares its weights. Just be careful which model's input you use. A pretrained network
# is often a model *inside* a model (here it comes after a layer that scales the pixels), and a
# layer is connected to the input of the model that contains it. So take the inner model, and scale
# the pixels by hand.

# %%
from sklearn.datasets import load_sample_images

photographs = np.stack(load_sample_images().images).astype("float32")
scale, network = tlk.load_backbone("efficientnet_lite0").layers[1:]
layer = network.get_layer("block3b_add")
look = keras.Model(network.input, layer.output)
maps = look.predict(scale(photographs), verbose=0)
print(photographs.shape, "->", maps.shape, "(photographs, height, width, maps)")

# %% [markdown]
# Two photographs go in. For each, forty **[feature maps](glossary.md#feature-map)** come out, with
# an eighth of its height and width. (A `?` in the table above is a size that the inner model
# leaves open; it depends on the input.) `tlkeras` gives you the outputs of all blocks as one list:
# the `cut` of a block is its output tensor. (`layer.output` belongs to the first call of a layer.
# This network's stem and top were called twice when it was built, and Keras then says *not
# connected*; a `cut` is always the right tensor.)

# %%
blocks = tlk.find_blocks(network)
watch = keras.Model(network.input, [block.cut for block in blocks])
seen = watch.predict(scale(photographs), verbose=0)  # a list, one array per block
print({block.name: array.shape[1:] for block, array in zip(blocks, seen, strict=True)})


# %% tags=["plumbing"] alt="A photograph of a Chinese palace, and below it six maps of each of five blocks. Stem and block2 are grey images of the palace, its edges and light parts; block3 and block4-5 show it coarser and coarser; the maps of block6-7 are black with one or two bright patches."
def as_image(array):
    """Return the values scaled to 0..255."""
    return 255 * (array - array.min()) / (np.ptp(array) + 1e-9)


rows = {"the photograph": photographs[:1]}
for block, array in zip(blocks, seen, strict=True):
    busiest = np.argsort(-array[0].std(axis=(0, 1)))[:6]
    rows[f"{block.name} ({block.role})"] = [as_image(array[0, ..., u]) for u in busiest]
tlk.plots.strips(rows, columns=6, title="The six busiest maps of every block, for one photograph")

# %% [markdown]
# On the way up, the maps get smaller and there are more of them. At the bottom they are still
# images: you can see the palace in each. At the top they are no longer images, but a list of what
# was found, and roughly where.
#
# ## The bottom: edges and colours
#
# The first layer looks through windows of 3 × 3 pixels, with 32 filters. Each filter is a small
# image itself, and its output for the photograph is an image again.

# %%
kernel = network.get_layer("stem_conv").kernel.numpy()  # (3, 3, red green blue, 32)
keras.utils.set_random_seed(SEED)
blank = tlk.load_backbone("efficientnet_lite0", weights=None).layers[-1]
random_kernel = blank.get_layer("stem_conv").kernel.numpy()
outputs = np.array(keras.ops.conv(scale(photographs[:1]), kernel, 2))[0]

# %% tags=["plumbing"] alt="Three rows. Filters of the ImageNet network: edges in several directions, mostly green against purple, and one filter all purple. Their outputs for the photograph: fine outlines of the palace, or the whole palace light or dark by its colour. Filters of the untrained network: gaudy squares in no order."
strong = np.argsort(-np.abs(kernel).sum(axis=(0, 1, 2)))[:8]
rows = {
    "ImageNet": [128 + 127 * kernel[..., u] / np.abs(kernel[..., u]).max() for u in strong],
    "its outputs": [as_image(outputs[..., u]) for u in strong],
    "untrained": [
        128 + 127 * random_kernel[..., u] / np.abs(random_kernel[..., u]).max() for u in range(8)
    ],
}  # fmt: skip
tlk.plots.strips(rows, columns=8, title="3 x 3 filters of the first layer")

# %% [markdown]
# How much of a filter is about colour? Its weights for red, green and blue may be alike (then it
# sees light and dark), or cancel out (then it sees only colour).


# %%
def colour(kernel):
    """Return the share of each filter that differs between red, green and blue; nan if empty."""
    whole = (kernel**2).mean(axis=(0, 1, 2))
    return np.where(whole > 1e-6, kernel.var(axis=2).mean(axis=(0, 1)) / (whole + 1e-12), np.nan)


counts = {"ImageNet": colour(kernel), "untrained": colour(random_kernel)}
tlk.table([[name, int(np.sum(c < 0.3)), int(np.sum(c > 0.93)), int(np.isnan(c).sum())]
           for name, c in counts.items()],
          ["filters", "mostly light and dark", "only colour", "empty"], digits=0)  # fmt: skip

# %% [markdown]
# Training made specialists: some filters for light and dark, and some for colour and nothing else,
# where random weights nearly always make mixtures. It also left a few filters empty: the network
# did not need all 32.
#
# ## The top: rare things
#
# Higher up, look at what excites a map: the places, in both photographs, where its values are
# largest.

# %% tags=["plumbing"] alt="Five rows of six pieces of the two photographs, larger from row to row, where one map of each block responds most. Stem: rims of petals and stripes of roof tiles. block2: mostly fine leaves. block3: eaves and railings. block4-5: the palace, leaves and petals. block6-7: mostly the roof of the palace, again and again."
rng, rows = np.random.default_rng(SEED), {}
for block, array, side in zip(blocks, seen, (24, 48, 96, 160, 224), strict=True):
    most = array.max(axis=(0, 1, 2))
    unit = rng.choice(np.flatnonzero(most > np.median(most)))
    pieces, answers, step = [], array[..., unit].copy(), 427 / array.shape[1]
    while len(pieces) < 6:
        photo, *place = np.unravel_index(answers.argmax(), answers.shape)
        top, left = (int(np.clip((p + 0.5) * step - side / 2, 0, end - side))
                     for p, end in zip(place, (427, 640), strict=True))  # fmt: skip
        pieces.append(photographs[photo, top : top + side, left : left + side])
        near = max(1, round(side / 3 / step))  # the next piece from somewhere else
        answers[photo, max(0, place[0] - near) : place[0] + near + 1,
                max(0, place[1] - near) : place[1] + near + 1] = -np.inf  # fmt: skip
    rows[f"{block.name}, map {unit}"] = pieces
tlk.plots.strips(rows, columns=6, title="Where one map of each block responds most")

# %% [markdown]
# The higher up a map is, the rarer the thing it responds to, so on any one photograph more of the
# maps stay silent. Let us count: after every activation (ReLU), what share of the maps is zero
# everywhere?

# %%
names = [each.name for each in network.layers if each.name.endswith("_activation")]
names = [name for name in names if name.startswith("block") and "dwconv" not in name]
silent = {}
for name, net in {"ImageNet": network, "untrained": blank}.items():
    outputs = [net.get_layer(n).output for n in names] + [net.output]
    behind = keras.Model(net.input, outputs).predict(scale(photographs), verbose=0)
    silent[name] = [100 * (array.max(axis=(1, 2)) <= 0).mean(axis=1) for array in behind]

# %% alt="Line plot of silent maps over 16 activations, from the bottom up. In the ImageNet network they stay near 1 percent up to the eleventh and then rise to 43; in the untrained one they stay below 15 throughout and end below 10."
depth = {name: dict(enumerate(shares, 1)) for name, shares in silent.items()}
tlk.plots.curves(depth, x="activation, from the bottom up", y="silent maps (%)",
                 title="Two photographs: more maps are silent the higher up")  # fmt: skip

# %% tags=["plumbing", "nbval-check-output"]
last = {name: shares[-1].mean() for name, shares in silent.items()}
tlk.table([["ImageNet, about", last["ImageNet"]],
           ["untrained, no more than", 10 * np.ceil(last["untrained"] / 10)]],
          ["network", "silent maps at the last activation (%)"], digits=-1)  # fmt: skip

# %% [markdown]
# Silent is not dead: another photograph activates other maps, and exercise 1 counts those that
# nothing activates. The untrained network is the control. Its maps get just as small, but few of
# them fall silent, because each responds to a bit of everything. Responding only to something rare
# is learned.
#
# ## Ask every block a question
#
# What a block knows is what you can predict from its output. A **[linear
# probe](glossary.md#linear-probe)** (Alain and Bengio 2016,
# [arXiv:1610.01644](https://arxiv.org/abs/1610.01644)) averages the block's maps over the image
# and fits a linear classifier, which is just what a new head is. We use 30 labelled images per
# class. Here it is by hand, for three questions: which garment, which lesion (synthetic), which
# handwritten digit.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

pool = keras.layers.GlobalAveragePooling2D()
reader = keras.Model(network.input, [pool(output) for output in watch.outputs])


def probe(x, y, new, truth):
    """Return the balanced accuracy in % of a linear classifier."""
    ruler = StandardScaler().fit(x)
    classifier = LogisticRegression(C=0.01, max_iter=200).fit(ruler.transform(x), y)
    return 100 * balanced_accuracy_score(truth, classifier.predict(ruler.transform(new)))


# %%
live = {}
for name in ("clothes", "lesions", "digits"):
    asked = tlk.load_task(name, 30, SEED, image_size=64)
    (x, y), (new, truth) = asked.arrays("train"), (part[:600] for part in asked.arrays("test"))
    outputs = [reader.predict(scale(images), verbose=0) for images in (x, new)]
    pairs = zip(blocks.names, *outputs, strict=True)
    live[name] = {block: probe(a, y, b, truth) for block, a, b in pairs}
tlk.table(live, "30 labels per class, this run", digits=0)

# %% [markdown]
# This is one draw of labels and one run. Stored results have three draws, all test images, the
# strength of the classifier chosen on validation, and **the control**, the same network untrained.

# %% tags=["plumbing"] alt="Three line plots of balanced accuracy over depth, pretrained and untrained. Lesions: pretrained rises from 25 percent at the stem to 64 in block4-5 and 62 at the top; untrained stays near 30. Clothes: pixels 76, stem 48, 81 in block4-5, 76 at the top; untrained reaches 70. Digits: pixels 93, stem 65, 96 in block4-5, 89 at the top; untrained reaches 89."
stored = tlk.results("layers")
order = ["pixels", *blocks.names]
with tlk.plots.canvas(1, 3, (7.2, 3.8), sharey=True) as (figure, axes):
    for axis, name in zip(axes, live, strict=True):
        for weights, style in (("pretrained", "-o"), ("untrained", "--s")):
            scores = stored.where(task=name, network=weights).scores("block", scale=100)
            axis.plot(order, [scores[block].mean() for block in order], style, label=weights)
        axis.set_xticks(range(len(order)), order, rotation=60)
        axis.set(title=name + (" (synthetic)" if name == "lesions" else ""), ylim=(0, 100))
    axes[0].set_ylabel("balanced accuracy (%)")
    axes[0].legend(loc="lower left", frameon=False)
figure

# %% [markdown]
# For all three tasks, accuracy rises block by block up to the middle. At the top, clothes lose 4
# points again and digits 6, while lesions are a tie: the top was made for ImageNet's own classes.
# (Pixels keep their place in the image, while maps are averaged over it. This is why clothes and
# digits start high and drop at the stem.)
#
# ## The table, measured
#
# Now the table of section 1.5 of the course outline. Its last columns are measured: they show by
# how many points a probe after the pretrained part is better than one after **the same part
# untrained**, on the same images (at the end of each part: block2, block4-5, block6-7). Anything
# above zero was learned from photographs of other things and is useful here.

# %% tags=["plumbing", "nbval-check-output"]
says = {
    "bottom (stem)": ("edges, corners, textures", "highly reusable", "block2"),
    "middle": ("shapes, parts (an ear, a wheel)", "somewhat reusable", "block4-5"),
    "top": ("whole objects (cat, dog, bus)", "usually not reusable", "block6-7"),
}
rows = []
for part, (learns, reusable, block) in says.items():
    gains = []
    for name in live:
        scores = stored.where(task=name, block=block).scores("network", scale=100)
        gains.append(scores["pretrained"] - scores["untrained"])
    rows.append([part, learns, reusable, *gains])
rows.append(["head", "the decision (a Labrador)", "always replaced", "new", "new", "new"])
tlk.table(rows, ["part", "it learns", "the outline says", *live], digits=0, note=stored.note)

# %% [markdown]
# Clothes go as the outline says: what was learned from photographs is worth 15 points at the
# bottom, 12 in the middle, 7 at the top (with a spread of 5). For lesions, middle and top are a
# tie, and worth more than the bottom: "usually not reusable" is too strong there. The head gives
# 1,000 answers, and no lesion is among them.
#
# > Only the very top and the head have to be retrained.
#
# This is how the outline sums it up, and the probes agree: the blocks below the top can be kept as
# they are. How to retrain a top without spoiling the rest is the topic of chapter 6.
#
# ## Where it fails
#
# Look at digits again. At the top, the untrained network is as good as the pretrained one, and
# plain pixels beat both: pen strokes on an empty background are not what photographs taught.
# Reusable means reusable for what the source had to see. Another source may have seen what you
# need, for example printed letters:

# %% tags=["plumbing", "nbval-check-output"]
digits = tlk.results("tasks", task="digits", labels_per_class=30, method=["pixels", "frozen"])
probes = {
    "pixels": digits.where(method="pixels"),
    "ImageNet's best block": digits.where(method="frozen", preset="efficientnet_lite0"),
    "best block of the letters network": digits.where(method="frozen", preset="glyph_resnet"),
}
rows = {name: found.scores("task", scale=100)["digits"] for name, found in probes.items()}
tlk.table(rows, "digits: linear probe on", digits=0, note=digits.note)

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: silent or dead?
# Of the 1,280 maps at the very top, about 40 % were silent on each photograph. Show the network
# the first 300 images of `task.arrays("test")`, garments of 64 pixels. How many of the maps are
# activated by *none* of them? `reader` gives every block's maps averaged over the image, and a map
# is silent where that average is 0.

# %% [markdown] tags=["hint"]
# With `images` for the 300, `top = reader.predict(scale(images), verbose=0)[-1]` has one row per
# image and one column per map. A column that is 0 in every row belongs to a map that nothing
# activated.

# %% tags=["answer"]
images = tlk.load_task("clothes", image_size=64).arrays("test")[0][:300]
top = reader.predict(scale(images), verbose=0)[-1]
print(f"silent on one image: {100 * np.mean(top == 0):.0f} % of the maps")
print(f"silent on all 300: {np.sum(np.all(top == 0, axis=0))} of {top.shape[1]}")

# %% [markdown] tags=["answer"]
# At 64 pixels two in three maps are silent on any one image, but only about ten of the 1,280 are
# silent on all 300. Nearly every map responds to something, and even small grey garments contain
# it. Dead maps are rare.

# %% [markdown] tags=["question"]
# ### Exercise 2: not connected
# Load `efficientnet_lite0` again for 96 pixels, under another name than `backbone`, and get the
# output of its layer `block6d_add` in one line of plain Keras. The first attempt, from the input
# of the whole model to `layer.output`, fails. What does Keras say, and which output shape do you
# get when it is done right?

# %% [markdown] tags=["hint"]
# `outer = tlk.load_backbone("efficientnet_lite0", 96)` has three `layers`, and the network is the
# last. To which of the two inputs is the layer connected? The inner model leaves sizes open, so
# run it once, on `np.zeros((1, 96, 96, 3))`.

# %% tags=["answer"]
outer = tlk.load_backbone("efficientnet_lite0", image_size=96)
inner = outer.layers[-1]
layer = inner.get_layer("block6d_add")
try:
    keras.Model(outer.input, layer.output)
except ValueError as error:
    print("Keras says:", error)
right = keras.Model(inner.input, layer.output)
print("the shape:", right.predict(np.zeros((1, 96, 96, 3)), verbose=0).shape)

# %% [markdown] tags=["answer"]
# *Output is not connected to inputs*: the layer is part of the inner model's graph, which the
# outer model calls as if it were one layer. With the inner model's input it works. But then you
# have to scale the pixels yourself, to between -1 and 1, or all outputs are wrong without a
# warning. 96 pixels are halved five times, to 3 × 3, with 192 maps.

# %% [markdown] tags=["question"]
# ### Exercise 3: probe before you commit
# `tlk.probe` fits the probe of every block in one call and recommends what to do. Run it on this
# chapter's task, with 400 of its validation images. Is the middle ahead of the top?

# %% [markdown] tags=["hint"]
# `tlk.probe(backbone, task.arrays("train"), (x, y), strength=0.01)`, where `x` and `y` are the
# first 400 images and labels of `task.arrays("validation")`. With n images and a share p right,
# the standard error is the square root of p (1 - p) / n.

# %% tags=["answer"]
x, y = (part[:400] for part in task.arrays("validation"))
tlk.probe(backbone, task.arrays("train"), (x, y), strength=0.01)

# %% [markdown] tags=["answer"]
# These 400 images cannot tell: each score has a standard error of two points, and the two differ
# by less. The stored probes, with three draws and 1,000 test images each, do put the middle ahead
# (81 and 76 %). So follow a probe's advice where it is clear, as it is against the stem, and use
# more images where it is not.

# %% [markdown]
# ## What to remember
#
# - `keras.Model(model.input, layer.output)` shows what any layer knows. A linear probe on each
#   block tells you in seconds which block *your* task can use.
# - On the way up, maps get smaller, rarer and more specific to the source: edges and colours at
#   the bottom, shapes in the middle, the source's own classes at the top. The middle is often the
#   best place to build on.
# - The head is always new, and a layer is reusable only for what its source had to see.
#
# **Then**: what happens inside when these layers are allowed to learn again is [chapter
# 6](06_unfreezing.ipynb).
