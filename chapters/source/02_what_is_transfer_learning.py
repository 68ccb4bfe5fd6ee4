# %% [markdown]
# # 2 · What is transfer learning: what, when and how
#
# **The question.** A network has learned something. Which part of it can you use for your own
# task, when should you use nothing, and how do you use it?
#
# **The promise.** In about a minute on two cores you find out at which depth a network knows about
# your task, meet a network that makes things *worse* and find out why, and write feature extraction
# and fine-tuning in plain Keras, side by side.

# %%
import tlkeras as tlk
import keras
import numpy as np

SEED = 0  # change it for another draw of labels and another run
setting = tlk.setting("02")

# %% [markdown]
# ## The bicycle
#
# If you can ride a bicycle and are given a motorbike, you do not start from nothing. Balance and
# steering carry over; clutch, gears and throttle are new. **[Transfer
# learning](glossary.md#transfer-learning)** is the same for networks: what was learned on a
# *source* task, where data were plentiful, is used on a *target* task, where they are few.
#
# It works because knowledge is **reusable**. The bicycle here is `efficientnet_lite0`, which was
# trained on **ImageNet**: 1.28 million photographs of a thousand kinds of things (all of ImageNet
# has more than 14 million). The edges, shapes and colours by which it tells bananas from buses
# also help with other images, such as X-rays of broken bones or leaves of sick plants. Where every
# label takes an expert, labels are few, and learning everything from those few is like learning a
# language from one page of its dictionary.
#
# Our target is `lesions`: seven classes of marks on skin, with thirty labelled images per class.
# They are **synthetic**, drawn by a program, and of no medical validity. Three questions come
# first: *what*, *when* and *how*.

# %% alt="A row of seven small synthetic images of skin, one per class; they differ in colour, border and texture."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
task.show(rows=1, columns=7)

# %% [markdown]
# ## What can I transfer?
#
# The whole network, or only its early part? Ask the network: cut it after one of its
# **[blocks](glossary.md#block)**, average the output over the image, and see how well a *linear*
# classifier can predict the class from that. This is a **[linear
# probe](glossary.md#linear-probe)**. Here it is by hand, after one block:

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
# The test images are not for making choices, so we use **validation** images, at most twenty per
# class. The score is **[balanced accuracy](glossary.md#balanced-accuracy)**: the share of each
# class that is recognised, averaged over the classes.

# %% tags=["plumbing"]
images, labels = task.arrays("train")[:2]
held, truth = task.arrays("validation")[:2]
places = np.concatenate([np.flatnonzero(truth == label)[:20] for label in np.unique(truth)])
held, truth = held[places], truth[places]


# %%
def probe(seen, unseen):
    """Return the balanced accuracy in % of a linear classifier on features of images."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return 100 * balanced_accuracy_score(truth, classifier.fit(seen, labels).predict(unseen))


middle = [reader.predict(x, 70, verbose=0) for x in (images, held)]
print(f"{blocks.names[-2]}: {probe(*middle):.0f} % balanced accuracy (guessing: 14 %)")

# %% [markdown]
# `tlk.probe` does this for every block (it reports plain accuracy), and adds what it would
# recommend. This is one draw of labels and 140 images, so a few points mean nothing. (*LogME* is
# explained in chapter 7.)

# %%
tlk.probe(network, (images, labels), (held, truth), strength=0.01)

# %% [markdown]
# Now with more care: five draws, all test images, the strength of each probe chosen on validation,
# and the same network **untrained** for comparison. We also add a real task, `clothes`: ten
# classes of clothes, shoes and bags in photographs from an online shop.


# %% tags=["plumbing"]
def by_depth(target, start):
    """Return the scores of stored probes in %, by block."""
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
tlk.table(table, "linear probe after")

# %% [markdown]
# So the answer is: most of the network, but not the last block, which is already specialised on
# cats and buses. On clothes the block before it is better by more than four points; on lesions the
# two are a tie. The stem alone, with its edges and spots, is not enough for either task. And the
# control: after the last block, the untrained network comes within about four points on clothes,
# so there the architecture alone does much of the work. On lesions it does little.
#
# ## When should I not?
#
# Now take another source. `glyph_resnet` has learned to name printed letters in any font, colour
# and light, which is worth a lot on handwriting. And on lesions? We compare it with two rivals
# that know nothing: the same network untrained, and **six numbers**, the mean and spread of an
# image's red, green and blue.


# %%
def last_block(network):
    """Return a model that outputs the network's last block, averaged over the image."""
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
rows = [(name, probe(*seen)) for name, seen in views.items()]
tlk.table(rows, ["features", "balanced accuracy (%)"], digits=0)

# %% [markdown]
# That was one draw. The next table has the five stored draws, on all test images, with each
# start's best block and its last. (The best block favours starts with more blocks to choose from.)

# %% tags=["plumbing", "nbval-check-output"]
# "colour" stands for the six numbers.
starts = ("ImageNet", "letters", "letters, untrained", "pixels", "colour")
rows = []
for start in starts:
    scores = list(by_depth("lesions", start).values())
    rows.append((start, max(scores, key=np.mean), scores[-1]))
tlk.table(rows, ["lesions, 30 labels", "best block", "last block"])

# %% [markdown]
# After its last block, the letters network is worse than the same network untrained, worse than
# the pixels, and worse than six numbers (*colour* in the table): what it has learned made it
# *worse*. That is **[negative transfer](glossary.md#negative-transfer)**: on the same labels and
# images, you do worse with the knowledge than without it. A low score alone is not negative
# transfer.
#
# ### Why?
#
# Here is a suspicion. Letters come in all colours, so learning to name them rewarded the network
# for ignoring colour, and these lesions differ in colour. The **tint** of an image is its mean
# colour with the brightness removed. How much of the tint of new images can a linear fit predict
# from the features?

# %%
from sklearn.linear_model import Ridge


def tint(images):
    colour = images.mean(axis=(1, 2))
    return colour - colour.mean(axis=1, keepdims=True)


def tint_found(seen, unseen):
    """Return the share of the variance of new images' tint that is predicted, in %; at least 0."""
    fit = make_pipeline(StandardScaler(), Ridge(10.0)).fit(seen, tint(images))
    return 100 * max(0, fit.score(unseen, tint(held)))


rows = [(name, tint_found(*seen)) for name, seen in views.items()]
tlk.table(rows, ["features", "predicted share of the tint (%)"], digits=0)

# %% [markdown]
# From the letters features it predicts nothing. (210 images are few for such a fit: in stored fits
# on 630 images, the untrained network's last block shows 57 % of the tint, and the letters
# network's still none.)
#
# Is this true of letters in general? Of the course's five networks, three learned letters and one
# photographs. The fifth, `scene_clip`, learned coloured shapes with captions such as *a red ring*,
# so it was rewarded for **seeing** colour. The table counts the blocks from which more than half
# of the tint can be predicted, and shows how far the trained network is ahead of the same network
# untrained on lesions, each at its best block.

# %% tags=["plumbing", "nbval-check-output"]
rows = []
for name in ("glyph_resnet", "glyph_resnet_small", "glyph_vit", "scene_clip", "efficientnet_lite0"):
    shares = [row["score"] for row in tlk.results("questions", experiment="tint", start=name)]
    kept = sum(share > 0.5 for share in shares)
    case = {"preset": name, "task": "lesions", "labels_per_class": 30}
    trained, untrained = (tlk.results("tasks", method=m, **case).rows for m in ("frozen", "random"))
    gain = [100 * (a["score"] - b["score"]) for a, b in zip(trained, untrained, strict=True)]
    rows.append((name, f"{kept} of {len(shares)}", gain))
header = ["network", "blocks that keep half of the tint", "gain from training (points)"]
tlk.table(rows, header)

# %% [markdown]
# All three letters networks lose colour on the way up, whether they are made of convolutions or of
# attention (`glyph_vit`). What they learned is worth two points on lesions or costs twelve and
# more. The two networks that keep colour through most blocks gain eighteen points and more.
#
# If colour is the reason, then on **grey** lesions the letters network should lose nothing, and
# its rivals should fall back.

# %% tags=["plumbing", "nbval-check-output"]
rows = []
for start in starts:
    with_colour, without = (by_depth(f"lesions{end}", start) for end in ("", ", grey"))
    rows.append((start, *(max(d.values(), key=np.mean) for d in (with_colour, without))))
tlk.table(rows, ["lesions, best block", "in colour", "in grey"])

# %% [markdown]
# The letters network loses nothing, and its rivals fall to its level or below. ImageNet is still
# ahead, because it knows shape and texture as well. This does not rule out a second reason.
#
# ### Can training mend it?
#
# A frozen network cannot bring colour back, but training it might. So the whole letters network
# was trained for twenty epochs, starting either from its learned weights or from random ones,
# eight draws each.

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
tlk.plots.bars(trained, title="lesions (synthetic): letters hurt in colour and help in grey")

# %% [markdown]
# Not in twenty epochs: in colour, the network that starts from random weights is five points ahead
# on average. In grey, the same knowledge is worth three points. (Single draws overlap in both
# cases.) So *when* is a question about a **pair**: what the source made the network keep or throw
# away, and what the target needs.
#
# ## How do I transfer?
#
# **[Feature extraction](glossary.md#feature-extraction)**: freeze the **backbone**, which is
# everything but the last layer, and train a new last layer, the **head**.
# **[Fine-tuning](glossary.md#fine-tuning)**: then also train some or all of the blocks below, at a
# small learning rate. First the part that both share:

# %%
keras.utils.set_random_seed(SEED)
model = keras.Sequential([network, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def accuracy(model):
    """Return the balanced accuracy on the validation images, as text."""
    predicted = model.predict(held, 70, verbose=0).argmax(axis=1)
    return f"{100 * balanced_accuracy_score(truth, predicted):.0f} %"


# %%
network.trainable = False
model.compile(keras.optimizers.AdamW(1e-2), loss)
model.fit(images, labels, batch_size=16, epochs=4, verbose=0)
head_alone, extracted = model.get_weights(), accuracy(model)

# %% [markdown]
# That was feature extraction. Next comes fine-tuning of the last block, `block6-7`, except for its
# BatchNorm layers: thirty images per class would only spoil their averages (chapter 6). Then
# **compile again**, because that is when Keras reads the `trainable` flags. The learning rate
# should be ten to a hundred times smaller than the head's. First we try a hundred times smaller.

# %%
network.trainable = True
for block in blocks:
    for layer in block.layers:
        batchnorm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = block.name == "block6-7" and not batchnorm

model.compile(keras.optimizers.AdamW(1e-4), loss)
model.fit(images, labels, batch_size=16, epochs=3, verbose=0)
tuned = accuracy(model)

# %% [markdown]
# And only ten times smaller, starting from the same head?

# %%
model.set_weights(head_alone)
model.compile(keras.optimizers.AdamW(1e-3), loss)
model.fit(images, labels, batch_size=16, epochs=3, verbose=0)
rows = [["feature extraction", extracted], ["block6-7 at 1e-4", tuned]]
rows.append(["block6-7 at 1e-3", accuracy(model)])
tlk.table(rows, ["one draw, one run", "balanced accuracy on validation"])

# %% [markdown]
# At a hundredth of the head's rate the score rose a little, which on 140 images is a tie. At a
# tenth it fell: in three epochs the block lost what it knew faster than it learned about lesions.
#
# With tlkeras the same is a plan of two stages. It computes the outputs of the frozen layers once,
# and keeps BatchNorm frozen without being told. It does not choose the learning rate for you.

# %%
keras.utils.set_random_seed(SEED)
network = tlk.load_backbone(setting.backbone, setting.image_size)
model = tlk.add_head(network, classes=7)
plan = tlk.recipes.two_stage(4, 3, head_lr=1e-2, tune_lr=1e-4, blocks=1)
tlk.fit_stages(model, plan, (images, labels), seed=SEED, verbose=0)

# %% [markdown]
# One run says little. The stored results have five draws each, at 96 pixels and on all test
# images. They compare frozen features from the best block with fine-tuning of **all** blocks after
# the head (at ten labels, three and four draws).

# %% tags=["plumbing", "nbval-check-output"]
rows = {}
for target in ("lesions", "clothes"):
    for how in ("frozen", "fine-tuned"):
        case = {"task": target, "method": how, "preset": "efficientnet_lite0"}
        found = tlk.results("tasks", labels_per_class=[5, 10], **case)
        scores = found.scores("labels_per_class", scale=100)
        rows[f"{target}, {how}"] = {f"{count} labels": draws for count, draws in scores.items()}
tlk.table(rows, "balanced accuracy (%)", note=found.note)

# %% [markdown]
# With so few labels, fine-tuning gains nothing: a tie on lesions and three to four points *less* on
# clothes, for a hundred to three hundred times as many passes through the network. (The frozen
# features come from the best block, while fine-tuning starts from the last; chapter 3 compares like
# for like.) So begin with feature extraction. When to train deeper is the question of chapter 7.
#
# ## Ask before you train
#
# Probes answer all three questions, in seconds. *When*: is the best block ahead of the best rival?
# *What*: which block is it? *How*: if it is the last block, train the head; if not, cut there, or
# tune the blocks above it. Here is the probe of the letters network compared with what training
# found:

# %% tags=["plumbing", "nbval-check-output"]
rows = []
for target in ("digits", "glyphs/styles", "lesions", "lesions, grey"):
    probes = {s: max(map(np.mean, by_depth(target, s).values())) for s in starts[1:]}
    ahead = probes["letters"] - max(probes[rival] for rival in starts[2:])
    runs = tlk.results("questions", experiment="training", target=target)
    means = {s: draws.mean() for s, draws in runs.scores("start", scale=100).items()}
    rows.append((target, float(ahead), float(means["letters"] - means["letters, untrained"])))
header = ["from letters to", "probe: lead over best rival", "training: lead over random weights"]
tlk.table(rows, header)

# %% [markdown]
# The signs agree in all four cases, and the sizes do roughly. (`glyphs/styles` are the letters
# themselves, to be classified as bold, italic and so on.) Four cases are no proof.
#
# ## Where this fails
#
# A probe is linear and the network is frozen, so it cannot see what training would bring out. On
# digits, for example, a small network trained from scratch with thirty labels per class is ahead
# of ImageNet's features (98 against 96 %, chapter 1). Run the probe with as many labels as you
# will have.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: put back what is missing
#
# The letters features lack colour, and the six numbers contain nothing else. Put them side by side
# as one feature vector. Is transfer still negative?

# %% [markdown] tags=["hint"]
# `np.hstack([a, b])` puts arrays side by side. Do it once for the labelled and once for the new
# images. Compare with the six numbers alone.

# %% tags=["answer"]
both = [np.hstack(pair) for pair in zip(views["letters"], views["six numbers"], strict=True)]
alone = {
    name: probe(*views[name]) for name in ("letters", "six numbers", "ImageNet, up to block4-5")
}
rows = [*alone.items(), ("letters and six numbers", probe(*both))]
tlk.table(rows, ["features", "balanced accuracy (%)"], digits=0)

# %% [markdown] tags=["answer"]
# It is: about 30 %, hardly more than the letters alone and less than the six numbers alone, in
# each of three runs. Six features that know colour drown among 256 that know letters, and thirty
# labels per class are too few to tell which are which. ImageNet's features, which have colour and
# shape, are far ahead. It is easier to choose another source than to repair one.

# %% [markdown] tags=["question"]
# ### Exercise 2: cut lower
#
# On lesions, compare the accuracy of a linear classifier after `block4-5` with its accuracy at the
# end of the network. How many parameters does the network have in each case?

# %% [markdown] tags=["hint"]
# `network` was fine-tuned above, so load it again. `below` was cut off before the blocks that were
# trained, so it is unchanged, and `middle` holds its outputs. `last_block` and `probe` do the
# rest. Every model has `count_params()`.

# %% tags=["answer"]
network = tlk.load_backbone(setting.backbone, setting.image_size)
whole = last_block(network)
last = [whole.predict(x, 70, verbose=0) for x in (images, held)]
rows = [
    ("block4-5", below.count_params(), probe(*middle)),
    ("block6-7", network.count_params(), probe(*last)),
]
tlk.table(rows, ["up to", "parameters", "balanced accuracy (%)"], digits=0)

# %% [markdown] tags=["answer"]
# The cut network has a fifth of the parameters and does about as well (on 140 images, a few points
# mean nothing; the stored probes have 62 and 60 %). What you do not need, you need not carry
# around: a smaller network is faster in training and in use.

# %% [markdown] tags=["question"]
# ### Exercise 3: would you transfer?
#
# For each pair, say what the source was rewarded for overlooking, and whether the target needs it.
# (a) From recognising faces in any light to telling daytime from night-time photographs. (b) From
# ImageNet to naming a plant by a photograph of its leaf. (c) From reading printed text to telling
# which printer printed it.

# %% [markdown] tags=["hint"]
# Ask about the source task: which two images that differ had to get the *same* answer?

# %% tags=["answer"]
pairs = [
    ("a", "light", "exactly that", "no, or only the first blocks"),
    ("b", "place, size, lighting", "none of it", "yes"),
    ("c", "ink, grain, font", "exactly that", "no, or only the first blocks"),
]
tlk.table(pairs, ["pair", "rewarded for overlooking", "the target needs", "transfer?"])

# %% [markdown] tags=["answer"]
# If two images with the same answer differ in something, the source is rewarded for throwing that
# away, and it is thrown away block by block. The first blocks may still have it: the letters
# network recognises styles of type at 38 % after its second block and at 24 % after its last. None
# of the three pairs was measured here, so probe before you believe it.

# %% [markdown]
# ## What to remember
#
# - *What*: a linear probe of every block tells you in seconds what a network knows about your
#   task.
# - *When*: transfer if the source made the network keep what the target needs. What it was
#   rewarded for overlooking is gone, and then transfer is **negative**. Always compare with rivals
#   that know nothing.
# - *How*: if the answer is in the last block, freeze the network and train the head. If it is
#   deeper, cut there or tune the blocks above, with BatchNorm frozen, a second compile and a small
#   rate.
#
# **Then:** which of the two words, transfer or fine-tuning, fits what you are doing: [chapter
# 3](03_transfer_vs_fine_tuning.ipynb).
