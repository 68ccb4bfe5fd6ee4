# %% [markdown]
# # 2 · What is transfer learning: what, when and how
#
# **The question.** A network has learned something. What of it can you take for your own task, when
# should you take nothing, and how do you take it?
#
# **The promise.** In a minute on two cores you read off at which depth a network knows your task,
# meet a network that makes things *worse* and find out why, and write feature extraction and
# fine-tuning in plain Keras, side by side.

# %%
import tlkeras as tlk
import keras
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("02")

# %% [markdown]
# ## The bicycle
#
# Who rides a bicycle and is given a motorbike does not start from nothing: balance and steering
# come along; clutch, gears and throttle are new. **[Transfer
# learning](glossary.md#transfer-learning)** is that, for networks: what was learned on a *source*
# task, where data were plenty, is used on a *target* task, where they are few.
#
# It works because knowledge is **reusable**. The bicycle here is `efficientnet_lite0`, which has
# learned from **ImageNet**: 1.28 million photographs of a thousand kinds of things (all of ImageNet
# has more than 14 million). The edges, shapes and colours by which it tells bananas from buses help
# with other pictures, too: X-rays of broken bones, leaves of sick plants. Where every label takes
# an expert there are few, and to learn everything from those is like learning a language from one
# page of its dictionary.
#
# Our target is `lesions`: seven kinds of marks on skin, thirty labelled images of each. They are
# **synthetic**, drawn by a program, of no medical validity. Three questions come first: *what*,
# *when* and *how*.

# %% alt="A row of seven small synthetic pictures of skin, one of each kind; they differ in colour, border and texture."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
task.show(rows=1, columns=7)

# %% [markdown]
# ## What can I transfer?
#
# All of the network, or its early part only? Ask it: cut it after one of its
# **[blocks](glossary.md#block)**, average what comes out over the image, and see how much of the
# answer a *linear* classifier can read off there: a **[linear probe](glossary.md#linear-probe)**.
# By hand, at one place:

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

network = tlk.load_backbone(setting.backbone, setting.image_size)
blocks = tlk.find_blocks(network)
blocks.names

# %%
below, above = blocks.split(blocks.names[-2])
pooled = keras.layers.GlobalAveragePooling2D()(below.output)
reader = keras.Model(below.input, pooled)

# %% [markdown]
# Test images are not for choosing, so we look at **validation** images, at most twenty of each
# kind. The score is **[balanced accuracy](glossary.md#balanced-accuracy)**, the share found in each
# kind, averaged over the kinds.

# %% tags=["plumbing"]
images, labels = task.arrays("train")[:2]
held, truth = task.arrays("validation")[:2]
places = np.concatenate([np.flatnonzero(truth == kind)[:20] for kind in np.unique(truth)])
held, truth = held[places], truth[places]


# %%
def probe(seen, unseen):
    """Balanced accuracy in % of a linear classifier on what is seen of images."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return 100 * balanced_accuracy_score(truth, classifier.fit(seen, labels).predict(unseen))


middle = [reader.predict(x, 70, verbose=0) for x in (images, held)]
print(f"{blocks.names[-2]}: {probe(*middle):.0f} %, guessing: 14 %")

# %% [markdown]
# `tlk.probe` does that for every block (it counts plain accuracy), and says what it would make of
# it. One draw of labels, 140 images: a few points mean nothing. (*LogME* is chapter 7's.)

# %%
tlk.probe(network, (images, labels), (held, truth), strength=0.01)

# %% [markdown]
# So with more care: five draws, all test images, each probe's strength chosen on validation, and
# the same network **untrained** beside it; and a real task, `clothes`, ten kinds of clothes, shoes
# and bags in photographs from a shop.


# %% tags=["plumbing"]
def by_depth(target, start):
    """Scores in % of stored probes, by block."""
    found = tlk.results("questions", experiment="probe", target=target, start=start)
    return found.scores("where", scale=100)


# %% tags=["plumbing"] alt="Two line plots of probe scores by block, bottom to top. Lesions (synthetic): ImageNet rises from 27 over 40, 55 and 62 to 60 %, the same network untrained from 25 to 36 and 33 %. Clothes (real): ImageNet rises from 54 over 68, 72 and 80 and falls to 76 %, untrained from 50 to 72 and 71 %."
with tlk.plots.canvas(1, 2, size=(6.5, 3.4), sharey=True) as (figure, axes):
    for axis, target in zip(axes, ("lesions", "clothes"), strict=True):
        for start, style in (("ImageNet", "o-"), ("ImageNet, untrained", "s--")):
            depth = by_depth(target, start)
            means, spreads = np.transpose([(d.mean(), d.std(ddof=1)) for d in depth.values()])
            axis.errorbar(list(depth), means, spreads, fmt=style, capsize=3)
        axis.set_title(f"{target} ({'synthetic' if target == 'lesions' else 'real'})")
        axis.tick_params("x", labelrotation=30)
    axes[0].set_ylabel("balanced accuracy of a linear probe (%)")
    axes[0].legend(["ImageNet", "the same, untrained"], frameon=False, loc="upper left")
figure

# %% tags=["plumbing", "nbval-check-output"]
table = {}
for target in ("lesions", "clothes"):
    depth = by_depth(target, "ImageNet")
    blank = by_depth(target, "ImageNet, untrained")
    table[f"{target}, ImageNet"] = depth
    table[f"{target}, untrained"] = blank
tlk.table(table, "read off after")

# %% [markdown]
# So: most of it, but not the last block, which has gone on towards cats and buses. On clothes the
# block before serves better by more than four points; on lesions the two are a tie. The stem alone,
# edges and spots, is not enough for either. The control: at the last block the untrained network
# comes within about four points on clothes, so being built as it is does much there; on lesions
# little.
#
# ## When should I not?
#
# Now another source. `glyph_resnet` has learned to name printed letters in any font, colour and
# light, which is worth much on handwriting. And on lesions? Its rivals know nothing: itself
# untrained, and **six numbers**, the mean and spread of an image's red, green and blue.


# %%
def last_block(network):
    """A model from images to what the network's last block says, averaged over the image."""
    pooled = keras.layers.GlobalAveragePooling2D()(network.output)
    return keras.Model(network.input, pooled)


letters = last_block(tlk.load_backbone("glyph_resnet"))
keras.utils.set_random_seed(SEED)
blank = last_block(tlk.load_backbone("glyph_resnet", weights=None))


# %%
def six_numbers(images):
    return np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)


small = [keras.ops.convert_to_numpy(keras.ops.image.resize(x, (32, 32))) for x in (images, held)]
views = {
    "ImageNet, up to block4-5": middle,
    "letters": [letters.predict(x, 70, verbose=0) for x in small],
    "letters' network, untrained": [blank.predict(x, 70, verbose=0) for x in small],
    "six numbers": [six_numbers(x) for x in (images, held)],
}
tlk.table([(name, probe(*seen)) for name, seen in views.items()], ["features", "%"], digits=0)

# %% [markdown]
# That was one draw. Of the stored five, on all test images, each start's best block, which flatters
# whoever has more blocks to choose from, and its last:

# %% tags=["plumbing", "nbval-check-output"]
starts = ("ImageNet", "letters", "letters, untrained", "pixels", "colour")  # six numbers of it
rows = []
for start in starts:
    scores = list(by_depth("lesions", start).values())
    rows.append((start, max(scores, key=np.mean), scores[-1]))
tlk.table(rows, ["lesions, 30 labels", "best block", "last block"])

# %% [markdown]
# Letters' last block is below its own network untrained, below the pixels, and below six numbers
# (*colour*, in the table): what it has learned made it *worse*. That is **[negative
# transfer](glossary.md#negative-transfer)**: you do worse with the knowledge than without it, on
# the same labels and images. A low score alone is none.
#
# ### Why?
#
# A suspicion: letters come in all colours, so naming them paid the network for overlooking colour;
# and these lesions differ in colour. How much of the **tint** of new images, their mean colour with
# the brightness taken out, does a linear fit find in the features?

# %%
from sklearn.linear_model import Ridge


def tint(images):
    colour = images.mean(axis=(1, 2))
    return colour - colour.mean(axis=1, keepdims=True)


def tint_found(seen, unseen):
    """Share of the variance of new images' tint, in %; 0 where the fit is no better than none."""
    fit = make_pipeline(StandardScaler(), Ridge(10.0)).fit(seen, tint(images))
    return 100 * max(0, fit.score(unseen, tint(held)))


tlk.table([(name, tint_found(*seen)) for name, seen in views.items()], ["features", "%"], digits=0)

# %% [markdown]
# For letters nothing is found. (210 images are few for such a fit: in stored fits of 630 the
# untrained network's last block shows 57 %, and the letters' none.)
#
# Is that so for letters in general? Of the course's five networks three learned letters, one
# photographs, and `scene_clip` learned coloured shapes with captions such as *a red ring*, and so
# was paid for **seeing** colour. The table counts the blocks in which more than half of the tint is
# found, and says how far the network is ahead of itself untrained on lesions, each at its best
# block.

# %% tags=["plumbing", "nbval-check-output"]
rows = []
for name in ("glyph_resnet", "glyph_resnet_small", "glyph_vit", "scene_clip", "efficientnet_lite0"):
    shares = [row["score"] for row in tlk.results("questions", experiment="tint", start=name)]
    kept = sum(share > 0.5 for share in shares)
    case = {"preset": name, "task": "lesions", "labels_per_class": 30}
    trained, untrained = (tlk.results("tasks", method=m, **case).rows for m in ("frozen", "random"))
    gain = [100 * (a["score"] - b["score"]) for a, b in zip(trained, untrained, strict=True)]
    rows.append((name, f"{kept} of {len(shares)}", gain))
header = ["network", "blocks that keep half of the tint", "gain by its training, points"]
tlk.table(rows, header)

# %% [markdown]
# All three networks of letters lose colour on the way up, whether made of convolutions or of
# attention (`glyph_vit`), and what they learned is worth two points on lesions or costs twelve and
# more. The two that keep it through most blocks gain eighteen and more.
#
# If colour is the reason, then on **grey** lesions the letters must lose nothing, and their rivals
# must fall back.

# %% tags=["plumbing", "nbval-check-output"]
rows = []
for start in starts:
    with_colour, without = (by_depth(f"lesions{end}", start) for end in ("", ", grey"))
    rows.append((start, *(max(d.values(), key=np.mean) for d in (with_colour, without))))
tlk.table(rows, ["lesions, best block", "in colour", "in grey"])

# %% [markdown]
# Letters lose nothing, their rivals fall to them or below; ImageNet is still ahead, for it knows
# shape and texture as well. That does not exclude a second reason.
#
# ### Can training mend it?
#
# A frozen network cannot bring colour back, one that is trained might. So all of the letters'
# network was trained for twenty epochs, from its learned weights or from random ones, eight draws
# each.

# %% tags=["plumbing"] alt="Bars of balanced accuracy after training the whole network on 30 labels. Lesions in colour: from random weights 44, from letters 39 %. Lesions in grey: from random weights 35, from letters 38 %."
names = {"letters, untrained": "from random weights", "letters": "from letters"}
trained = {
    target: {
        title: tlk.results("questions", experiment="training", target=target, start=start).scores(
            "start", scale=100
        )[start]
        for start, title in names.items()
    }
    for target in ("lesions", "lesions, grey")
}
tlk.plots.bars(trained, title="lesions (synthetic): letters cost in colour and help in grey")

# %% [markdown]
# Not in twenty epochs: on average the network that starts from nothing is five points ahead. Take
# the colour away, and the same knowledge is worth three. (Single draws overlap in both.) So *when*
# is a question about a **pair**: what the source made the network keep or throw away, and what the
# target needs.
#
# ## How do I transfer?
#
# **[Feature extraction](glossary.md#feature-extraction)**: freeze the **backbone**, all but the
# last layer, and train a new last layer, the **head**. **[Fine-tuning](glossary.md#fine-tuning)**:
# then let some or all of the blocks below learn, too, at a small rate. First what both share:

# %%
keras.utils.set_random_seed(SEED)
model = keras.Sequential([network, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def right(model):
    said = model.predict(held, 70, verbose=0).argmax(axis=1)
    return f"{100 * balanced_accuracy_score(truth, said):.0f} %"


# %%
network.trainable = False
model.compile(keras.optimizers.AdamW(1e-2), loss)
model.fit(images, labels, batch_size=16, epochs=4, verbose=0)
head_alone, extracted = model.get_weights(), right(model)

# %% [markdown]
# That was feature extraction. Now fine-tuning of the last block, `block6-7`, except for BatchNorm,
# whose averages thirty images a class would only spoil (chapter 6). Then **compile again**, for
# Keras reads the flags there, with a rate ten to a hundred times smaller. First a hundred.

# %%
network.trainable = True
for block in blocks:
    for layer in block.layers:
        batchnorm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = block.name == "block6-7" and not batchnorm

model.compile(keras.optimizers.AdamW(1e-4), loss)
model.fit(images, labels, batch_size=16, epochs=3, verbose=0)
tuned = right(model)

# %% [markdown]
# And only ten times smaller, from the same head?

# %%
model.set_weights(head_alone)
model.compile(keras.optimizers.AdamW(1e-3), loss)
model.fit(images, labels, batch_size=16, epochs=3, verbose=0)
rows = [["feature extraction", extracted], ["block6-7 at 1e-4", tuned]]
rows.append(["block6-7 at 1e-3", right(model)])
tlk.table(rows, ["one draw, one run", "validation"])

# %% [markdown]
# At a hundredth of the head's rate the score rose a little, on 140 images a tie. At a tenth it
# fell: three rounds spoiled what the block knew faster than they taught it lesions.
#
# The same with tlkeras is a plan of two stages. It computes what stays frozen once, and keeps
# BatchNorm still without being told. It does not choose the rate.

# %%
keras.utils.set_random_seed(SEED)
network = tlk.load_backbone(setting.backbone, setting.image_size)
model = tlk.add_head(network, classes=7)
plan = tlk.recipes.two_stage(4, 3, head_lr=1e-2, tune_lr=1e-4, blocks=1)
tlk.fit_stages(model, plan, (images, labels), seed=SEED, verbose=0)

# %% [markdown]
# One run says little. Stored are five draws each, at 96 pixels and on all test images: frozen
# features read at the best block, and fine-tuning of **all** blocks after the head (at ten labels,
# three and four draws).

# %% tags=["plumbing", "nbval-check-output"]
rows = {}
for target in ("lesions", "clothes"):
    for how in ("frozen", "fine-tuned"):
        case = {"task": target, "method": how, "preset": "efficientnet_lite0"}
        found = tlk.results("tasks", labels_per_class=[5, 10], **case)
        scores = found.scores("labels_per_class", scale=100)
        rows[f"{target}, {how}"] = {f"{count} labels": draws for count, draws in scores.items()}
tlk.table(rows, "balanced accuracy, %", note=found.note)

# %% [markdown]
# With so few labels the deep way gains nothing: a tie on lesions, some three points *less* on
# clothes, for two hundred times as many passes through the network. (Frozen features come from the
# best block, fine-tuning starts from the last; chapter 3 compares like for like.) So begin with the
# light way. When to dig deeper is chapter 7's question.
#
# ## Ask before you train
#
# Probes answer all three, in seconds. Is the best block ahead of the best rival? That is *when*.
# Which block is it? That is *what*. Is it the last? Then train the head; if not, cut there, or tune
# what lies above: that is *how*. Against what training found for the letters' network:

# %% tags=["plumbing", "nbval-check-output"]
rows = []
for target in ("digits", "glyphs/styles", "lesions", "lesions, grey"):
    probes = {s: max(map(np.mean, by_depth(target, s).values())) for s in starts[1:]}
    ahead = probes["letters"] - max(probes[rival] for rival in starts[2:])
    runs = tlk.results("questions", experiment="training", target=target)
    means = {s: draws.mean() for s, draws in runs.scores("start", scale=100).items()}
    rows.append((target, float(ahead), float(means["letters"] - means["letters, untrained"])))
header = [
    "from letters to",
    "probe ahead of its best rival by",
    "training ahead of random start by",
]
tlk.table(rows, header)

# %% [markdown]
# The signs agree in all four cases, and the sizes roughly. (`glyphs/styles` are the letters
# themselves, asked for bold or italic.) Four cases are no proof.
#
# ## Where this fails
#
# A probe is linear and frozen. It cannot see what training would bring out: on digits, a small
# network from scratch with thirty labels of each is ahead of ImageNet's features (98 against 96 %,
# chapter 1). Ask with as many labels as you will have.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: put back what is missing
#
# The letters' features lack colour, the six numbers have nothing else. Put them side by side, as
# one row of features. Is transfer still negative?

# %% [markdown] tags=["hint"]
# `np.hstack([a, b])` puts rows side by side, once for the labelled and once for the new images.
# Compare with the six numbers alone.

# %% tags=["answer"]
both = [np.hstack(pair) for pair in zip(views["letters"], views["six numbers"], strict=True)]
alone = {
    name: probe(*views[name]) for name in ("letters", "six numbers", "ImageNet, up to block4-5")
}
tlk.table([*alone.items(), ("letters and six numbers", probe(*both))], ["features", "%"], digits=0)

# %% [markdown] tags=["answer"]
# It is: about 30 %, hardly more than the letters alone and less than the six numbers alone, in
# each of three runs. Six features that know colour drown among 256 that know letters, with only
# thirty labels a class to tell which are which. ImageNet's features, which have colour and shape,
# are far ahead. It is easier to choose another source than to repair one.

# %% [markdown] tags=["question"]
# ### Exercise 2: cut lower
#
# Compare what a linear classifier reads after `block4-5` with what it reads at the end of the
# network, on lesions. How many numbers does the network have in each case?

# %% [markdown] tags=["hint"]
# `network` has been tuned above: load it anew. `below`, cut before the blocks that learned, is as
# it was, and `middle` is what it says. `last_block` and `probe` do the rest; every model has
# `count_params()`.

# %% tags=["answer"]
network = tlk.load_backbone(setting.backbone, setting.image_size)
whole = last_block(network)
last = [whole.predict(x, 70, verbose=0) for x in (images, held)]
rows = [
    ("block4-5", below.count_params(), probe(*middle)),
    ("block6-7", network.count_params(), probe(*last)),
]
tlk.table(rows, ["up to", "numbers in the network", "probe, %"], digits=0)

# %% [markdown] tags=["answer"]
# The cut network has a fifth of the numbers and is read about as well (on 140 images, a few points
# mean nothing; the stored probes have 62 and 60 %). What you do not need you need not carry: it is
# faster in training and in use.

# %% [markdown] tags=["question"]
# ### Exercise 3: would you transfer?
#
# For each pair, say what the source was paid to overlook, and whether the target needs it. (a) From
# recognising faces in any light to telling photographs taken by day from those by night. (b) From
# ImageNet to naming a plant by a photograph of its leaf. (c) From reading printed text to telling
# which printer printed it.

# %% [markdown] tags=["hint"]
# Ask of the source task: which two images that differ had to get the *same* answer?

# %% tags=["answer"]
pairs = [
    ("a", "light", "exactly that", "no, or only the first blocks"),
    ("b", "place, size, lighting", "none of it", "yes"),
    ("c", "ink, grain, font", "exactly that", "no, or only the first blocks"),
]
tlk.table(pairs, ["pair", "paid for overlooking", "the target needs", "transfer?"])

# %% [markdown] tags=["answer"]
# What two images with the same answer differ in is what a source is paid to throw away, and it is
# thrown away block by block. The first blocks may still have it: the letters' network tells styles
# of type at 38 % by its second block and at 24 % by its last. None of the three was measured here:
# probe before you believe.

# %% [markdown]
# ## What to remember
#
# - *What* a network knows of your task, a linear probe of every block tells in seconds.
# - *When*: if the source made the network keep what the target needs. What it was paid to overlook
#   is gone, and then transfer is **negative**; set rivals that know nothing beside it.
# - *How*: if the answer is in the last block, freeze and train the head; if deeper, cut there, or
#   tune what is above, with BatchNorm still, a second compile and a small rate.
#
# **Then:** which of the two words, transfer or fine-tuning, fits what you are doing: [chapter
# 3](03_transfer_vs_fine_tuning.ipynb).
