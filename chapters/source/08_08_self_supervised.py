# %% [markdown]
# # 8.8 · Self-supervised pretraining: learn first, label later
#
# **The question.** Images are cheap and labels are not. What can a network learn from images alone,
# and how many labels does that save?
#
# **The promise.** In about a minute on two cores you train a small network without labels, by hand,
# in two ways. One number shows you whether it has *collapsed*. You use something every clinic has
# without labels: several images of the same thing. And you learn when ImageNet is the better start.
# *(Section 1.8 of the course, number 8; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np
from keras import ops
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_08")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# Shuffle photographs of strangers, two of each, and ask a child to find the pairs. Nobody says a
# name. To find them despite different clothes and different light, the child has to look at the
# faces; and a child who can do that learns names fast.
#
# **[Self-supervised](glossary.md#self-supervised)** learning is such a game: the answers come with
# the images. It is for anyone who has many images and few labels, which is nearly everybody. Two
# games are common. *Find the partner*: two **[views](glossary.md#view)** of an image belong
# together (SimCLR, [Chen and others 2020](https://arxiv.org/abs/2002.05709)). *Fill in*: predict
# what is hidden (the masked autoencoder, MAE, [He and others
# 2021](https://arxiv.org/abs/2111.06377)). Afterwards a few labels are enough to attach class
# names, by training a head or by [fine-tuning](08_02_fine_tuning.ipynb). [Named
# systems](named_systems.md) has the code for SimCLR and DINO on chest X-rays.
#
# We have 3,600 images of skin lesions (synthetic, of no medical validity) without labels, and ten
# labelled images for each of seven classes.

# %%
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
images, labels = task.arrays("train")
new, truth = task.arrays("validation")
whole = tlk.load_task(setting.task, image_size=setting.image_size)
unlabelled = whole.arrays("train", "image")[0]

# %% [markdown]
# A **[linear probe](glossary.md#linear-probe)** measures what a network has learned: its features
# stay as they are, and a logistic regression is trained on the 70 labels. (The features are
# standardised with statistics of unlabelled images.)


# %%
def probe(encoder):
    """Balanced accuracy in % on new images."""
    parts = images, unlabelled[:400], new
    x, some, tests = (encoder.predict(part, 100, verbose=0) for part in parts)
    mean, spread = some.mean(axis=0), some.std(axis=0) + 1e-6
    reader = LogisticRegression(C=0.01, max_iter=1000).fit((x - mean) / spread, labels)
    return 100 * balanced_accuracy_score(truth, reader.predict((tests - mean) / spread))


# %% [markdown]
# The competitor is the ImageNet network, with the same images, enlarged. The network that we train
# is far smaller: three convolutions, 128 features. (Why `momentum=0.9`? With the default,
# [BatchNorm](glossary.md#batchnorm) needs several hundred steps to learn its statistics, more than
# our training has.)

# %% tags=["plumbing"]
imagenet = keras.Sequential([
    keras.layers.Resizing(96, 96),
    tlk.load_backbone(setting.backbone, 96),
    keras.layers.GlobalAveragePooling2D(),
])  # fmt: skip
found = {"ImageNet": probe(imagenet)}


# %%
def new_encoder():
    layers = [keras.Input((None, None, 3)), keras.layers.Rescaling(1 / 127.5, -1)]
    for filters in (32, 64, 128):
        layers.append(keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False))
        layers += [keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU()]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])


keras.utils.set_random_seed(SEED)
found["untrained"] = probe(new_encoder())
tlk.table(list(found.items()), ["one draw, ten labels per class", "validation, %"])

# %% [markdown]
# ## By hand 1: find the partner
#
# First the **views**. They define what does *not* matter: where the lesion is, how it is rotated,
# how bright the room was.

# %% alt="Three rows of six small synthetic lesions: whole, and twice a part of each, turned, brighter or darker."
views = keras.Sequential([
    keras.layers.RandomFlip("horizontal"),
    keras.layers.RandomRotation(0.5, fill_mode="reflect"),
    keras.layers.RandomCrop(24, 24),
    keras.layers.RandomBrightness(0.2),
    keras.layers.RandomContrast(0.3),
])  # fmt: skip
rows = {"an image": unlabelled[:6]}
rows |= {name: views(unlabelled[:6], training=True) for name in ("one view", "another")}
tlk.plots.strips(rows, title="Two views of each image (synthetic)")

# %% [markdown]
# Then the **loss**, called NT-Xent. From *n* images there are 2*n* views, each a vector. Compute
# the cosine of every pair; it is 1 if both point the same way. For each view, ask "which one is
# your partner?", a classification with 2*n* possible answers, and take the usual cross-entropy. (A
# low [temperature](glossary.md#temperature) makes the question sharper.)


# %%
def nt_xent(_, pairs, temperature=0.1):
    both = ops.normalize(ops.concatenate([pairs[:, 0], pairs[:, 1]]), axis=1)
    n = ops.shape(pairs)[0]
    cosines = ops.matmul(both, ops.transpose(both)) / temperature
    cosines = cosines - 1e9 * ops.eye(2 * n)  # nobody is its own partner
    partner = ops.concatenate([ops.arange(n) + n, ops.arange(n)])
    return keras.losses.sparse_categorical_crossentropy(partner, cosines, from_logits=True)


# %% [markdown]
# And a **monitor**: the mean cosine of views of *different* images. Near 0, the vectors point in
# all directions. Near 1, the network gives the same output for everything: it has
# **[collapsed](glossary.md#collapse)**.


# %%
def others(_, pairs):
    first, second = ops.normalize(pairs[:, 0], axis=1), ops.normalize(pairs[:, 1], axis=1)
    cosines = ops.matmul(first, ops.transpose(second))
    n = ops.cast(ops.shape(pairs)[0], "float32")
    return (ops.sum(cosines) - ops.trace(cosines)) / (n * (n - 1))


# %% [markdown]
# The model passes two views of each image through the same encoder, and then through two Dense
# layers that are discarded afterwards. The loss wants the views to be *equal*; these two layers can
# throw away the differences between views without harm to the features. The labels that `fit` asks
# for are zeros that the loss ignores.


# %%
def train(loss, inputs, epochs):
    keras.utils.set_random_seed(SEED)
    encoder, image = new_encoder(), keras.Input(unlabelled.shape[1:])
    project = keras.Sequential([keras.layers.Dense(128, "relu"), keras.layers.Dense(64)])
    pairs = ops.stack([project(encoder(views(image))) for _ in range(2)], axis=1)
    model = keras.Model(image, pairs)
    model.compile(keras.optimizers.AdamW(2e-3), loss, metrics=[others], jit_compile=False)
    nobody = np.zeros(len(inputs))
    return encoder, model.fit(inputs, nobody, batch_size=64, epochs=epochs, verbose=0).history


encoder, history = train(nt_xent, unlabelled, epochs=2)
found["find the partner"] = probe(encoder)

# %% [markdown]
# ## Collapse, on purpose
#
# Why does the loss need all the other images? Try asking only that partners be equal. The best
# answer then is to output the same vector for every image.


# %%
def alignment(_, pairs):
    return -ops.sum(ops.normalize(pairs[:, 0], axis=1) * ops.normalize(pairs[:, 1], axis=1), axis=1)


_, collapsed = train(alignment, unlabelled[:1600], epochs=2)

# %% tags=["nbval-check-output"]
rows = [["who is your partner?", history["others"][-1]], ["be equal", collapsed["others"][-1]]]
tlk.table(rows, ["loss", "cosine of different images, at the end"], digits=0)

# %% [markdown]
# Its loss falls to the best possible value, and nothing is learned. So never judge such a training
# by its loss: watch the cosine of different images, and probe with a few labels.
#
# ## The same with tlkeras, and images of one lesion
#
# `contrastive.SimCLR` is the model above for any encoder, with the cosines of partners and of
# others in its history. KerasCV has the loss, too. It adds up the two directions, where ours takes
# the mean:

# %% tags=["plumbing", "nbval-check-output"]
import keras_cv

first, second = np.random.default_rng(SEED).normal(size=(2, 8, 64)).astype("float32")
ours = np.mean(nt_xent(None, np.stack([first, second], axis=1)))
theirs = float(keras_cv.losses.SimCLRLoss(0.1)(first, second))
tlk.table([["KerasCV's loss, divided by ours", theirs / ours]], ["", "times"], digits=3)

# %% [markdown]
# Views are our guess about what does not matter. A clinic knows better: it has **several images of
# one lesion**, in different light, nearer or farther. Whoever filed them knows that they show the
# same lesion, but not which class it is. (A lesion with only one image is its own partner.)

# %% alt="Two rows of six small synthetic lesions; below four of them another image of the same lesion: turned, nearer or farther, in other light. The second and the third lesion have only one image, which is shown twice."
lesion = np.arange(len(unlabelled))
if "lesion" in whole.features:  # downloads do not say which images show one lesion
    lesion = whole.arrays("train", "lesion")[0]
contrastive = tlk.flavors.contrastive
several = contrastive.Pairs(unlabelled, lesion, batch_size=64, seed=SEED)
batch = several[0]
first, second = batch[0]
rows = {"a lesion": first[:6], "another image": second[:6]}
tlk.plots.strips(rows, title="Partners by lesion (synthetic)")

# %%
keras.utils.set_random_seed(SEED)
encoder = new_encoder()
model = contrastive.SimCLR(encoder, views)
model.compile(keras.optimizers.AdamW(2e-3), jit_compile=False)
model.fit(several, epochs=2, verbose=0)
found["find the other image of the lesion"] = probe(encoder)

# %% [markdown]
# ## By hand 2: fill in what is hidden
#
# Cover three of four squares with grey, and train one more layer, discarded afterwards, to paint
# them. Only the hidden squares count: `sample_weight` is 1 there and 0 elsewhere.


# %%
def hide(images, rng):
    squares = rng.random((len(images), 8, 8)) < 0.75
    hidden = np.repeat(np.repeat(squares, 4, axis=1), 4, axis=2)  # 4 x 4 pixels each
    return np.where(hidden[..., None], np.float32(127.5), images), hidden


# %%
encoder, rng = new_encoder(), np.random.default_rng(SEED)
positions = encoder.layers[-2].output  # 4 x 4 of them; each paints a square of 8 x 8 pixels
painter = keras.Model(encoder.inputs, keras.layers.Conv2DTranspose(3, 8, strides=8)(positions))
painter.compile(keras.optimizers.AdamW(2e-3), "mse", jit_compile=False)
for _ in range(2):
    seen, hidden = hide(unlabelled, rng)  # other squares in each epoch
    painter.fit(seen, unlabelled / 127.5 - 1, batch_size=64, sample_weight=hidden, verbose=0)

# %% tags=["plumbing"] alt="Three rows of six synthetic lesions: three of four squares grey; painted by the network, blurred, the lesion in its place; the whole image."
seen, hidden = hide(new[:6], rng)
painted = 127.5 * (painter.predict(seen, verbose=0) + 1)
rows = {"what it sees": seen, "what it paints": painted, "the image": new[:6]}
tlk.plots.strips(rows, title="Three of four squares were hidden (synthetic)")

# %% [markdown]
# Its BatchNorm layers have only seen images with grey squares; `adapt_batchnorm` gives them the
# statistics of whole images.

# %%
tlk.flavors.domain.adapt_batchnorm(encoder, unlabelled)
found["fill in"] = probe(encoder)
tlk.table(list(found.items()), ["one draw, ten labels per class; two epochs", "validation, %"])

# %% [markdown]
# ## The experiment: what does each game teach?
#
# The stored results cover three trainings of each kind. Each is probed with five
# [draws](glossary.md#draw) of 5, 10 and 30 labels per class and tested on 1,600 other images. All
# trainings use the same network, the same 3,600 unlabelled images, and 19 to 32 seconds of one
# core. *Random pairs* are the [control](glossary.md#control) for *lesion pairs*: the lesion IDs are
# shuffled, so that partners show different lesions.
#
# *From scratch* trains the whole network on augmented views of the labelled images alone. **It is
# not a matched control**: it had 200 steps, four seconds, while the others had five to seven times
# as long. With as much time it may well be better, so take its row as a lower bound.

# %% tags=["plumbing"] alt="Five lines over 5, 10 and 30 labels per class. ImageNet: 39, 47, 63 percent; lesion pairs 35, 41, 50; views 27, 30, 42; from scratch 27, 28, 37; untrained 25, 26, 34."
stored = tlk.results("selfsupervised", part=["probe", "scratch", "control"])
measured = stored.scores("method", "labels_per_class", scale=100)
order = ("ImageNet, 32 pixels", "lesion pairs", "views", "masks", "random pairs")
scores = {name: measured[name] for name in (*order, "from scratch", "untrained")}
shown = {name: scores[name] for name in (*order[:3], "from scratch", "untrained")}
title = "Without labels, lesions teach more than views (synthetic)"
tlk.plots.curves(shown, x="labels per class", title=title, log=True)

# %% tags=["plumbing", "nbval-check-output"]
tlk.table(scores, "test (%)", note=stored.note)

# %% [markdown]
# Ten labels with lesion pairs (41 %) tie with thirty labels with views (42 %). This table cannot
# say what either saves over training from scratch for as long.
#
# The next table shows the gain over the same initial weights, untrained, for each training and
# draw:

# %% tags=["plumbing", "nbval-check-output"]
gained = {}
for name in order[1:]:
    both = [(n, scores[name][n], scores["untrained"][n]) for n in (5, 10, 30)]
    gained[name] = {f"{n} labels": after - before for n, after, before in both}
tlk.table(gained, "points over untrained")

# %% [markdown]
# At ten labels lesion pairs gain 15 points and views four; at five labels views are a tie. Lesion
# pairs are ahead of views in each of fifteen draws, at every number of labels. Shuffled partners
# gain nothing: it is the *lesions* that teach, not the fact that there are two images. Filling in
# gains nothing either. (MAE's networks are a thousand times larger and see a million images,
# hundreds of times: with more time than ours the result may be different.)
#
# **A caveat.** Two images of one lesion have the same class, so the lesion IDs carry some
# information about classes, although nobody has named one. Views do not.
#
# ## How much is an image without a label worth?

# %% tags=["plumbing", "nbval-check-output"]
fewer = tlk.results("selfsupervised", part="sizes")
fewer = fewer.scores("unlabelled", "labels_per_class", scale=100)
rows = {"none, untrained": scores["untrained"]}
rows |= {f"{count:,}": fewer[count] for count in sorted(fewer)}
rows["3,600"] = scores["lesion pairs"]
tlk.table(rows, "unlabelled images; test (%)")

# %% [markdown]
# A hundred images bring 36 to 78 % of the gain of 3,600. Six hundred bring 86 % of it at ten labels
# and all of it at five and thirty: what the next 3,000 add is a tie. All runs had the same 280
# steps; whether more images pay in a longer training was not measured. (The probe's standardisation
# always uses all 3,600.)
#
# To express the gain in labels, ask how many the *untrained* network needs, with the same probe, to
# reach what lesion pairs reach with five:

# %% tags=["plumbing", "nbval-check-output"]
counts = (5, 10, 30)
untaught = [np.mean(scores["untrained"][n]) for n in counts]
reached = float(np.mean(scores["lesion pairs"][5]))
rows = [["lesion pairs", 5, reached]]
rows += [["untrained", n, score] for n, score in zip(counts, untaught, strict=True)]
tlk.table(rows, ["features", "labels per class", "test (%)"])

# %% [markdown]
# Thirty labels with the untrained network match five with lesion pairs: a tie. So 600 images
# without labels did the work of 25 labels for each of seven classes, 175 in all: **three or four
# images for one label**. That is the price in this case, not a law, and it is counted in labels for
# an untrained network.
#
# ## Where it fails: compared with ImageNet
#
# With the same small images, enlarged, the frozen ImageNet network is ahead of everything that we
# trained. With images of 96 pixels it is further ahead:

# %% tags=["plumbing", "nbval-check-output"]
frozen = {"preset": "efficientnet_lite0", "task": "lesions", "method": "frozen"}
large = tlk.results("tasks", **frozen, labels_per_class=[5, 10, 30])
rows = {name: scores[name] for name in ("lesion pairs", "ImageNet, 32 pixels")}
rows["ImageNet, 96 pixels"] = large.scores("labels_per_class", scale=100)
tlk.table(rows, "test (%)")

# %% [markdown]
# So 3,600 images do not replace a million. Start with a pretrained network. Train your own only
# where none fits: for sensors other than cameras (spectra, radar, sound), or a device too small for
# one. The same game can also continue *from* ImageNet's weights: [chapter
# 10.3](10_3_domain_adaptive_pretraining.ipynb) does that, with its controls.
#
# ## What it costs

# %% tags=["plumbing"]
rows = []
for name in order:
    runs = stored.where(method=name, labels_per_class=10)
    seconds = [row["seconds"] for row in runs if row["seed"] % 5 == 0]
    network = imagenet if name.startswith("ImageNet") else encoder
    rows.append([name, seconds, network.count_params(), scores[name][10]])
tlk.table(rows, ["", "training seconds, one core", "parameters", "test, 10 labels (%)"])

# %% [markdown]
# Twenty to thirty seconds of a busy core, once for all later tasks. (The ImageNet network cost
# nothing only because others have paid for it.) The resulting network has a thirty-sixth of the
# parameters of the ImageNet network.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: what does the loss start at?
#
# What is the loss of a network that guesses the partner at random, with batches of 16, 64 and 256
# images? And why can you not compare the losses of two batch sizes?

# %% [markdown] tags=["hint"]
# One of the 2*n* views is the view itself. The cross-entropy of guessing among *k* answers is the
# logarithm of *k*.

# %% tags=["answer"]
tlk.table(
    [[n, 2 * n - 2, np.log(2 * n - 1)] for n in (16, 64, 256)], ["batch", "others", "guessing"]
)

# %% [markdown] tags=["answer"]
# In a larger batch each image has to be told apart from more others, which is a harder question:
# the loss is higher for that reason alone.

# %% [markdown] tags=["question"]
# ### Exercise 2: partners by patient
#
# Many clinics file images by patient, not by lesion. Draw a partner for every image: another image
# of the same patient, of the same lesion, or any other image. How many images have a partner, and
# how often is it of the same class? (`"patient"` and `"lesion"` come with the images, as labels
# do.)

# %% [markdown] tags=["hint"]
# `Pairs(labels, groups, batch_size=len(labels))` pairs up labels as well as images: `pairs[0][0]`
# holds the first and the second of every pair. Use it with the groups `patient`, `lesion`, and all
# zeros.

# %% tags=["answer"]
filed = tlk.load_task("lesions", image_size=setting.image_size)
classes, patient, lesions = filed.arrays("train", "label", "patient", "lesion")
rows = []
for name, groups in {"one lesion": lesions, "one patient": patient, "any two": 0 * classes}.items():
    pairs = contrastive.Pairs(classes, groups, batch_size=len(classes), seed=SEED)
    first, second = pairs[0][0]
    paired = pairs.partner[pairs.order] != pairs.order
    rows.append([name, 100 * np.mean(paired), 100 * np.mean((first == second)[paired])])
tlk.table(rows, ["partners", "have one, %", "of the same class, %"], digits=0)

# %% [markdown] tags=["answer"]
# Partners by lesion are always of one class, but three images of ten have none. By patient more
# images have a partner, and a quarter of the partners are of different classes, which teaches the
# network to ignore the differences between those classes. Which is better was not measured; random
# pairs show the extreme case.

# %% [markdown]
# ## What to remember
#
# - A game whose answers come with the images teaches a network without labels. The network learns
#   to ignore whatever the views or partners differ in, so choose them with care.
# - Watch for collapse: a falling loss says nothing; the cosine of different images does.
# - Several images of one thing taught more than altered copies of one. But where a pretrained
#   network fits, start with it.
#
# **Then:** networks that have learned from images *and* their captions, and can be asked by name,
# [chapter 8.9](08_09_zero_and_few_shot.ipynb).
