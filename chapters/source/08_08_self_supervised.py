# %% [markdown]
# # 8.8 · Self-supervised pretraining: learn first, label later
#
# **The question.** Pictures are cheap and labels are not. What can a network learn from pictures
# alone, and how many labels does that save?
#
# **The promise.** In about a minute on two cores you teach a small network without a label, by
# hand, in two ways; you see from one number whether it has *collapsed*; you use what every clinic
# has without labels, several pictures of one thing; and you know when ImageNet is the better start.
# *(Section 1.8 of the course, number 8; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras  # isort: skip
import numpy as np
from keras import ops
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

SEED = 0  # another draw of labels, another run
setting = tlk.setting("08_08")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# Shuffle photographs of strangers, two of each, and ask a child to find the pairs. Nobody says a
# name. To find them in spite of other clothes and other light, the child has to look at the faces;
# and whoever can do that learns names fast.
#
# **[Self-supervised](glossary.md#self-supervised)** learning is such a game: the answers come with
# the pictures. It is for those who have many pictures and few labels, as nearly everybody does. Two
# games are common. *Find the partner*: two **[views](glossary.md#view)** of a picture belong
# together (SimCLR, [Chen and others 2020](https://arxiv.org/abs/2002.05709)). *Fill in*: guess what
# is hidden (the masked autoencoder, MAE, [He and others 2021](https://arxiv.org/abs/2111.06377)).
# Then a few labels say what is called what, in a head or by [fine-tuning](08_02_fine_tuning.ipynb).
# [Named systems](named_systems.md) has lines for SimCLR and DINO on chest X-rays.
#
# We have 3,600 pictures of skin lesions (synthetic, of no medical validity) without labels, and
# labels for ten of each of seven kinds.

# %%
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
images, labels = task.arrays("train")
new, truth = task.arrays("validation")
whole = tlk.load_task(setting.task, image_size=setting.image_size)
(unlabelled,) = whole.arrays("train", "image")

# %% [markdown]
# What a network knows is measured by a **[linear probe](glossary.md#linear-probe)**: its features
# stay as they are, and a logistic regression learns from the 70 labels. (Features are brought to
# one scale by unlabelled pictures.)


# %%
def probe(encoder):
    """Percent right among new pictures, each class weighing the same."""
    parts = images, unlabelled[:400], new
    x, some, tests = (encoder.predict(part, 100, verbose=0) for part in parts)
    mean, spread = some.mean(axis=0), some.std(axis=0) + 1e-6
    reader = LogisticRegression(C=0.01, max_iter=1000).fit((x - mean) / spread, labels)
    return 100 * balanced_accuracy_score(truth, reader.predict((tests - mean) / spread))


# %% [markdown]
# The rival is ImageNet's network, with the same pictures, enlarged. The network that we teach is
# far smaller: three convolutions, 128 features. (`momentum=0.9`: with its default,
# [BatchNorm](glossary.md#batchnorm) needs some hundred steps to learn its statistics, more than our
# training has.)

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
tlk.table(list(found.items()), ["one draw, ten labels a class", "validation, %"])

# %% [markdown]
# ## By hand 1: find the partner
#
# First the **views**. They say what does *not* matter: where the lesion lies, how it is turned, how
# bright the room was.

# %% alt="Three rows of six small synthetic lesions: whole, and twice a part of each, turned, brighter or darker."
views = keras.Sequential([
    keras.layers.RandomFlip("horizontal"),
    keras.layers.RandomRotation(0.5, fill_mode="reflect"),
    keras.layers.RandomCrop(24, 24),
    keras.layers.RandomBrightness(0.2),
    keras.layers.RandomContrast(0.3),
])  # fmt: skip
rows = {"a picture": unlabelled[:6]}
rows |= {name: views(unlabelled[:6], training=True) for name in ("one view", "another")}
tlk.plots.strips(rows, title="Two views of each picture (synthetic)")

# %% [markdown]
# Then the **loss**, called NT-Xent. Of *n* pictures there are 2*n* views, each a vector. Take the
# cosine of every two: 1 if they point the same way. For each view ask "who is your partner?", a
# question with 2*n* answers, and take the usual cross-entropy. (A low
# [temperature](glossary.md#temperature) makes the question sharper.)


# %%
def nt_xent(_, pairs, temperature=0.1):
    both = ops.normalize(ops.concatenate([pairs[:, 0], pairs[:, 1]]), axis=1)
    n = ops.shape(pairs)[0]
    cosines = ops.matmul(both, ops.transpose(both)) / temperature
    cosines = cosines - 1e9 * ops.eye(2 * n)  # nobody is its own partner
    partner = ops.concatenate([ops.arange(n) + n, ops.arange(n)])
    return keras.losses.sparse_categorical_crossentropy(partner, cosines, from_logits=True)


# %% [markdown]
# And a **monitor**: the mean cosine of views of *different* pictures. Near 0 they point in all
# directions. Near 1 the network says the same of everything: it has
# **[collapsed](glossary.md#collapse)**.


# %%
def others(_, pairs):
    first, second = ops.normalize(pairs[:, 0], axis=1), ops.normalize(pairs[:, 1], axis=1)
    cosines = ops.matmul(first, ops.transpose(second))
    n = ops.cast(ops.shape(pairs)[0], "float32")
    return (ops.sum(cosines) - ops.trace(cosines)) / (n * (n - 1))


# %% [markdown]
# The model shows two views of each picture to one encoder, and what comes out to two Dense layers
# that are thrown away afterwards: the loss wants views to be *equal*, and what they differ in may
# get lost there without harm to the features. The labels that `fit` asks for are zeros that nobody
# reads.


# %%
def train(loss, pictures, epochs):
    keras.utils.set_random_seed(SEED)
    encoder, picture = new_encoder(), keras.Input(unlabelled.shape[1:])
    project = keras.Sequential([keras.layers.Dense(128, "relu"), keras.layers.Dense(64)])
    pairs = ops.stack([project(encoder(views(picture))) for _ in range(2)], axis=1)
    model = keras.Model(picture, pairs)
    model.compile(keras.optimizers.AdamW(2e-3), loss, metrics=[others], jit_compile=False)
    nobody = np.zeros(len(pictures))
    return encoder, model.fit(pictures, nobody, batch_size=64, epochs=epochs, verbose=0).history


encoder, history = train(nt_xent, unlabelled, epochs=2)
found["find the partner"] = probe(encoder)

# %% [markdown]
# ## Collapse, on purpose
#
# Why all the other pictures in the loss? Ask only that partners be equal. The best answer then is
# to say the same of every picture.


# %%
def alignment(_, pairs):
    return -ops.sum(ops.normalize(pairs[:, 0], axis=1) * ops.normalize(pairs[:, 1], axis=1), axis=1)


_, collapsed = train(alignment, unlabelled[:1600], epochs=2)

# %% tags=["nbval-check-output"]
rows = [["who is your partner?", history["others"][-1]], ["be equal", collapsed["others"][-1]]]
tlk.table(rows, ["loss", "cosine of different pictures, at the end"], digits=0)

# %% [markdown]
# Its loss falls to the best that there is, and nothing is learned. So never judge such a training
# by its loss: watch the cosine of different pictures, and probe with a few labels.
#
# ## The same with tlkeras, and pictures of one lesion
#
# `contrastive.SimCLR` is the model above, for any encoder, with the cosines of partners and of
# others in its history. KerasCV has the loss, too; it adds up the two directions, of which ours
# takes the mean:

# %% tags=["plumbing", "nbval-check-output"]
import keras_cv

first, second = np.random.default_rng(SEED).normal(size=(2, 8, 64)).astype("float32")
ours = np.mean(nt_xent(None, np.stack([first, second], axis=1)))
theirs = float(keras_cv.losses.SimCLRLoss(0.1)(first, second))
tlk.table([["KerasCV's loss, divided by ours", theirs / ours]], ["", "times"], digits=3)

# %% [markdown]
# Views are a guess of ours about what does not matter. A clinic knows better: it has **several
# pictures of one lesion**, in other light, nearer or farther. Who filed them knows that it is the
# same lesion, not which kind it is.

# %% alt="Two rows of six small synthetic lesions; below each another picture of the same lesion: turned, nearer or farther, in other light."
lesion = np.arange(len(unlabelled))
if "lesion" in whole.features:  # downloads do not say which pictures show one lesion
    (lesion,) = whole.arrays("train", "lesion")
contrastive = tlk.flavors.contrastive
several = contrastive.Pairs(unlabelled, lesion, batch_size=64, seed=SEED)
((first, second),) = several[0]
rows = {"a lesion": first[:6], "another picture": second[:6]}
tlk.plots.strips(rows, title="Partners by lesion (synthetic)")

# %%
keras.utils.set_random_seed(SEED)
encoder = new_encoder()
model = contrastive.SimCLR(encoder, views)
model.compile(keras.optimizers.AdamW(2e-3), jit_compile=False)
model.fit(several, epochs=2, verbose=0)
found["find the other picture of the lesion"] = probe(encoder)

# %% [markdown]
# ## By hand 2: fill in what is hidden
#
# Cover three of four squares with grey and let one more layer, thrown away afterwards, paint them.
# Only what was hidden counts: `sample_weight` is 1 there and 0 elsewhere.


# %%
def hide(pictures, rng):
    squares = rng.random((len(pictures), 8, 8)) < 0.75
    hidden = np.repeat(np.repeat(squares, 4, axis=1), 4, axis=2)  # 4 x 4 pixels each
    return np.where(hidden[..., None], np.float32(127.5), pictures), hidden


# %%
encoder, rng = new_encoder(), np.random.default_rng(SEED)
places = encoder.layers[-2].output  # 4 x 4 of them; each paints a square of 8 x 8 pixels
painter = keras.Model(encoder.inputs, keras.layers.Conv2DTranspose(3, 8, strides=8)(places))
painter.compile(keras.optimizers.AdamW(2e-3), "mse", jit_compile=False)
for _ in range(2):
    seen, hidden = hide(unlabelled, rng)  # other squares in each epoch
    painter.fit(seen, unlabelled / 127.5 - 1, batch_size=64, sample_weight=hidden, verbose=0)

# %% tags=["plumbing"] alt="Three rows of six synthetic lesions: three of four squares grey; painted by the network, blurred, the lesion in its place; the whole picture."
seen, hidden = hide(new[:6], rng)
painted = 127.5 * (painter.predict(seen, verbose=0) + 1)
rows = {"what it sees": seen, "what it paints": painted, "the picture": new[:6]}
tlk.plots.strips(rows, title="Three of four squares were hidden (synthetic)")

# %% [markdown]
# Its BatchNorm has seen grey squares only; `adapt_batchnorm` gives it the statistics of whole
# pictures.

# %%
tlk.flavors.domain.adapt_batchnorm(encoder, unlabelled)
found["fill in"] = probe(encoder)
tlk.table(list(found.items()), ["one draw, ten labels a class; two epochs", "validation, %"])

# %% [markdown]
# ## The experiment: what does each game teach?
#
# Stored are three trainings of each kind, each probed with five [draws](glossary.md#draw) of 5, 10
# and 30 labels a class and tested on 1,600 other pictures. All have the same network, the same
# 3,600 unlabelled pictures and 19 to 32 seconds of one core. *Random pairs* are the
# [control](glossary.md#control) of *lesion pairs*: the lesions' numbers are shuffled, so that
# partners show different lesions.
#
# *From scratch* trains the whole network on views of the labelled pictures alone. **It is no
# matched control**: it had 200 steps, four seconds, where the others had about five times as long.
# With as much time it may well be better: read its line as a lower limit.

# %% tags=["plumbing"] alt="Five lines over 5, 10 and 30 labels a class. ImageNet: 39, 47, 63 percent; lesion pairs 35, 41, 50; views 27, 30, 42; from scratch 27, 28, 37; untrained 25, 26, 34."
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
# Ten labels on top of lesion pairs (41 %) are a tie with thirty on top of views (42 %). What either
# saves over training from scratch for as long, this table cannot say.
#
# Training by training and draw by draw, against the same first weights, untrained:

# %% tags=["plumbing", "nbval-check-output"]
gained = {}
for name in order[1:]:
    both = [(n, scores[name][n], scores["untrained"][n]) for n in (5, 10, 30)]
    gained[name] = {f"{n} labels": after - before for n, after, before in both}
tlk.table(gained, "points over untrained")

# %% [markdown]
# At ten labels lesion pairs bring 15 points and views four; at five labels views are a tie. Lesion
# pairs are ahead of views in each of fifteen draws, at every number of labels. Shuffled partners
# bring nothing: it is the *lesions* that teach, not that there are two pictures. Filling in brings
# nothing either. (MAE's networks are a thousand times larger and see a million pictures, hundreds
# of times: with more time than ours it may come out otherwise.)
#
# **A caveat.** Two pictures of one lesion have the same class, so the lesions' numbers say
# something about classes, though nobody has named one. Views do not.
#
# ## How much is a picture without a label worth?

# %% tags=["plumbing", "nbval-check-output"]
fewer = tlk.results("selfsupervised", part="sizes")
fewer = fewer.scores("unlabelled", "labels_per_class", scale=100)
rows = {"none, untrained": scores["untrained"]}
rows |= {f"{count:,}": fewer[count] for count in sorted(fewer)}
rows["3,600"] = scores["lesion pairs"]
tlk.table(rows, "unlabelled pictures; test (%)")

# %% [markdown]
# A hundred pictures bring 36 to 78 % of the gain of 3,600, six hundred 86 % of it at ten labels and
# all of it at five and thirty: what the next 3,000 add is a tie. All had the same 280 steps;
# whether more pictures pay in a longer training was not measured. (The probe's scale comes from all
# 3,600.)
#
# To count it in labels, ask how many the *untrained* network needs, with the same probe, for what
# lesion pairs reach with five:

# %% tags=["plumbing", "nbval-check-output"]
counts = (5, 10, 30)
untaught = [np.mean(scores["untrained"][n]) for n in counts]
reached = float(np.mean(scores["lesion pairs"][5]))
rows = [["lesion pairs", 5, reached]]
rows += [["untrained", n, score] for n, score in zip(counts, untaught, strict=True)]
tlk.table(rows, ["features", "labels a class", "test (%)"])

# %% [markdown]
# Thirty labels do what five do with lesion pairs: a tie. So 600 pictures without labels did the
# work of 25 labels for each of seven classes, 175 in all: **three or four pictures for one label**.
# That is the price here, not a law, and it is counted in labels for an untrained network.
#
# ## Where it fails: beside ImageNet
#
# With the same small pictures, enlarged, the frozen ImageNet network is ahead of everything that we
# taught. In pictures of 96 pixels it is further ahead:

# %% tags=["plumbing", "nbval-check-output"]
frozen = {"preset": "efficientnet_lite0", "task": "lesions", "method": "frozen"}
large = tlk.results("tasks", **frozen, labels_per_class=[5, 10, 30])
rows = {name: scores[name] for name in ("lesion pairs", "ImageNet, 32 pixels")}
rows["ImageNet, 96 pixels"] = large.scores("labels_per_class", scale=100)
tlk.table(rows, "test (%)")

# %% [markdown]
# So 3,600 pictures do not replace a million. Begin with a pretrained network, and teach one from
# nothing where none fits: sensors other than cameras (spectra, radar, sound), or a device too small
# for one. The same game may also go on *from* ImageNet's weights: [chapter
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
tlk.table(
    rows, ["", "seconds of teaching, one core", "numbers in the network", "test, 10 labels (%)"]
)

# %% [markdown]
# Twenty to thirty seconds of a busy core, once, for all tasks to come. (ImageNet's network cost
# nothing only because others have paid for it.) The network that is left has a thirty-sixth of the
# weights of ImageNet's.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: what does the loss start at?
#
# What loss has a network that guesses the partner, in batches of 16, 64 and 256 pictures? And why
# are the losses of two batch sizes not to be compared?

# %% [markdown] tags=["hint"]
# Of 2*n* views, one is oneself. Cross-entropy of guessing among *k* is the logarithm of *k*.

# %% tags=["answer"]
tlk.table(
    [[n, 2 * n - 2, np.log(2 * n - 1)] for n in (16, 64, 256)], ["batch", "others", "guessing"]
)

# %% [markdown] tags=["answer"]
# In a larger batch each picture has to be told from more others, a harder question: its loss is
# higher for that reason alone.

# %% [markdown] tags=["question"]
# ### Exercise 2: partners by patient
#
# Many clinics file pictures by patient, not by lesion. Draw a partner for every picture: another
# one of the same patient, of the same lesion, or any other. How often has it one, and how often is
# that of the same kind? (`"patient"` and `"lesion"` come with the pictures, as labels do.)

# %% [markdown] tags=["hint"]
# `Pairs(labels, groups, batch_size=len(labels))` gives partners of labels as well as of pictures:
# `((first, second),) = pairs[0]`. Take it with the groups `patient`, `lesion`, and all zeros.

# %% tags=["answer"]
pictures = tlk.load_task("lesions", image_size=setting.image_size)
kind, patient, lesions = pictures.arrays("train", "label", "patient", "lesion")
rows = []
for name, groups in {"one lesion": lesions, "one patient": patient, "any two": 0 * kind}.items():
    pairs = contrastive.Pairs(kind, groups, batch_size=len(kind), seed=SEED)
    ((first, second),) = pairs[0]
    paired = pairs.partner[pairs.order] != pairs.order
    rows.append([name, 100 * np.mean(paired), 100 * np.mean((first == second)[paired])])
tlk.table(rows, ["partners", "have one, %", "of the same kind, %"], digits=0)

# %% [markdown] tags=["answer"]
# Partners by lesion are always of one kind, but three pictures of ten have none. By patient more
# have one, and a quarter of the partners are of different kinds: the network is told to overlook
# what tells them apart. Which is better was not measured; random pairs show where it ends.

# %% [markdown]
# ## What to remember
#
# - A game whose answers come with the pictures teaches a network without labels. What views or
#   partners differ in is what it learns to overlook: choose them with care.
# - Watch for collapse: a falling loss says nothing; the cosine of different pictures does.
# - Several pictures of one thing taught more than changed copies of one. But where a pretrained
#   network fits, it comes first.
#
# **Then:** networks that have learned from pictures *and* their captions, and can be asked by name,
# [chapter 8.9](08_09_zero_and_few_shot.ipynb).
