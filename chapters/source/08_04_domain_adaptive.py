# %% [markdown]
# # 8.4 · Domain-adaptive transfer: another look, no labels for it
#
# **The question.** You have labelled images from one camera and unlabelled ones from another. How
# much of the accuracy lost on the second camera can you win back without a single label there?
#
# **The promise.** In about a minute on two cores you write the shortest remedy (five lines) and a
# famous one, the gradient reversal layer (ten), in plain Keras. You choose between settings without
# target labels, and you can tell beforehand when a network can be taught by its own answers.
# *(Section 1.8 of the course, number 4; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_04")
domain = tlk.flavors.domain
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# You move to a place where they speak your language in another accent, and nobody gives you
# lessons. First you get used to the sound: how high, how loud. Then you stop listening for what
# only tells you where somebody comes from. In the end you guess words from what you have understood
# so far, which helps if most of it was right. These are the three kinds of **[domain
# adaptation](glossary.md#domain-adaptation)** in this chapter: *statistics*, an *adversary*, and
# *[pseudo-labels](glossary.md#pseudo-label)*. Use them if source and target look different and
# nobody has labelled the target.
#
# If you do have target labels, the usual advice is to freeze the lower layers and retrain the
# middle and top. Measure before you follow it. From letters to lesions, with all labels (three
# draws, as in [chapter 8.2](08_02_fine_tuning.ipynb)):
#
# | trained | balanced accuracy, % |
# |---|---|
# | head, middle and top: the usual advice | 32.5 ± 0.8 |
# | head and the two *lower* blocks of four | 34.9 ± 1.4 |
# | everything | 35.6 ± 1.5 |
#
# There the images look different, and it is the lower layers that have to adapt.
#
# The [source](glossary.md#source) here is printed digits (synthetic), with 30 labelled images per
# class. The [target](glossary.md#target) is real handwritten digits. Their labels stay hidden until
# the end, where they are used to measure the gain.

# %% alt="Two rows of eight small images: printed digits in many colours and typefaces; grey handwritten digits."
source = tlk.load_task(setting.source, setting.labels_per_class, SEED, setting.image_size)
target = tlk.load_task(setting.task, image_size=setting.image_size)
images, labels = source.arrays("train")
unlabelled, hidden = target.arrays("train")
tests, truth = target.arrays("test")
rows = {"source, with labels": images[::37], "target, without": unlabelled}
tlk.plots.strips(rows, columns=8, title="Printed digits (synthetic) and handwritten ones")

# %% [markdown]
# ## By hand: the target's own mean and spread
#
# A [frozen](glossary.md#freeze) network turns every image into [features](glossary.md#feature). It
# was trained on printed *letters* and has never seen a digit of either kind.

# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
network = keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D()])
x, z, test = (network.predict(part, verbose=0) for part in (images, unlabelled, tests))

# %% [markdown]
# Handwriting is thinner and softer than print, so a feature that responds to thick strokes is lower
# in *all* target images. Standardise every feature to mean 0 and [spread](glossary.md#spread) 1,
# using each domain's own statistics. This needs no labels and no training:

# %%
mean, spread = z.mean(axis=0), z.std(axis=0) + 1e-6
z_own = (z - mean) / spread
test_own = (test - mean) / spread
mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
x_own, test_as_it_is = (x - mean) / spread, (test - mean) / spread

# %% [markdown]
# All methods of this chapter share a small classifier, trained for the same number of steps:

# %%
width, classes = x.shape[1], len(source.classes)
STEPS, BATCH = 600, 64
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def new_classifier():
    features = keras.Input((width,))
    hidden = keras.layers.Dropout(0.2)(features)
    hidden = keras.layers.Dense(64, "relu", name="hidden")(hidden)
    return keras.Model(features, keras.layers.Dense(classes)(hidden))


def new_optimizer():
    return keras.optimizers.AdamW(1e-3, weight_decay=1.0)


# %%
def right(model, features):
    answers = np.argmax(model(features), axis=1)
    return 100 * np.mean(answers == truth)


keras.utils.set_random_seed(SEED)
plain = new_classifier()
plain.compile(new_optimizer(), loss)
plain.fit(x_own, labels, BATCH, epochs=STEPS * BATCH // len(x), verbose=0)
found = {"as it is": right(plain, test_as_it_is), "own statistics": right(plain, test_own)}
tlk.table(list(found.items()), ["one draw", "right on the target, %"])

# %% [markdown]
# Five lines and the same classifier: this is the first thing to try. A related method, **CORAL**
# ([Sun, Feng and Saenko 2016](https://arxiv.org/abs/1511.05547)), also gives the source features
# the correlations of the target, in closed form: `domain.coral(x, z)`.
#
# ## By hand: an adversary
#
# [Ganin and others 2016](https://arxiv.org/abs/1505.07818) add a second classifier on the hidden
# layer, which guesses the **domain**: source or target? If it cannot, the hidden layer no longer
# separates the two domains, and what was learned on one may carry over to the other. The domain
# classifier learns to guess, while the layers below learn to make it *fail*. All this takes is a
# layer that passes its input on unchanged and flips the sign of the gradient on the way back:


# %%
class Reversal(keras.layers.Layer):
    def __init__(self, strength, **options):
        super().__init__(**options)
        self.strength = strength

    def call(self, inputs):
        fixed = keras.ops.stop_gradient(inputs)
        return fixed - self.strength * (inputs - fixed)  # the bracket is 0, its gradient is not


# %% [markdown]
# To see it work, take a chain of two weights, both 1, that should output 0 for an input of 1. One
# step makes each weight smaller. With the layer in between, the lower weight grows instead, away
# from the goal.

# %% tags=["plumbing", "nbval-check-output"]
rows = []
for name, between in {"nothing": keras.layers.Identity(), "Reversal(1)": Reversal(1)}.items():
    low = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    high = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    chain = keras.Sequential([keras.Input((1,)), low, between, high])
    chain.compile(keras.optimizers.SGD(0.1), "mean_absolute_error")
    chain.fit(np.ones((1, 1)), np.zeros((1, 1)), verbose=0)
    rows.append([name, float(low.kernel[0, 0]), float(high.kernel[0, 0])])
tlk.table(rows, ["between the two", "lower weight, after", "upper weight, after"])

# %% [markdown]
# Now build one model with two outputs. Target images have no label, so give them an arbitrary label
# with a weight of 0; ordinary `fit` does the rest.

# %%
model = new_classifier()
guess = Reversal(1.0)(model.get_layer("hidden").output)
guess = keras.layers.Dense(64, "relu")(guess)
guess = keras.layers.Dense(1, name="domain")(guess)
both = keras.Model(model.input, {"label": model.output, "domain": guess})

# %%
losses = {"label": loss, "domain": keras.losses.BinaryCrossentropy(from_logits=True)}
both.compile(new_optimizer(), losses)
inputs = np.concatenate([x_own, z_own])
is_target = np.repeat([0, 1], [len(x), len(z)])
answers = {"label": np.concatenate([labels, 0 * hidden]), "domain": is_target[:, None]}
weights = {"label": 1.0 - is_target, "domain": np.ones(len(inputs))}
epochs = STEPS * BATCH // len(inputs)
both.fit(inputs, answers, BATCH, sample_weight=weights, epochs=epochs, verbose=0)
print(f"{right(model, test_own):.0f} % right with an adversary, at full strength from the start.")

# %% [markdown]
# ## The same with tlkeras
#
# In the first steps the hidden layer has not learned anything yet, and working against it only gets
# in the way. So in the paper (**DANN**) the strength rises from 0 to its full value. The library's
# layer counts its steps to do this. `two_domains` builds the inputs, answers and weights so that
# both domains and both losses carry equal weight.


# %%
def adapted(strength, known=labels, features=x_own):
    """The classifier, trained together with a domain classifier whose reversed gradient has this
    strength."""
    keras.utils.set_random_seed(SEED)
    model = new_classifier()
    both = domain.adversarial(model, "hidden", strength, rise=STEPS)
    both.compile(new_optimizer(), losses)
    inputs, answers, weights = domain.two_domains(features, known, z_own)
    epochs = STEPS * BATCH // len(inputs)
    both.fit(inputs, answers, BATCH, sample_weight=weights, epochs=epochs, verbose=0)
    return model


# %%
found["adversary"] = right(adapted(1), test_own)

# %% [markdown]
# ## By hand: pseudo-labels
#
# Take the network's most confident answers as labels, train on them, and predict again. Here
# **[self-training](glossary.md#pseudo-label)** is three rounds of this, with a quarter, a half and
# three quarters of the target.


# %%
def surest(model, share):
    """The most confident answers of the model; -1 for all other images."""
    chances = keras.ops.convert_to_numpy(keras.ops.softmax(model(z_own)))
    believed = np.argmax(chances, axis=1)
    order = np.argsort(-np.max(chances, axis=1))
    believed[order[int(share * len(z)) :]] = -1
    return believed


model, all_features = plain, np.concatenate([x_own, z_own])
for share in (0.25, 0.5, 0.75):
    believed = np.concatenate([labels, surest(model, share)])
    model = adapted(0, believed, all_features)
found["self-training"] = right(model, test_own)

# %%
tlk.table(list(found.items()), ["one draw", "right on the target, %"])

# %% [markdown]
# ## The experiment: two pairs, five draws
#
# The stored results cover five [draws](glossary.md#draw) of this pair and of a second one:
# **lesions (synthetic, of no medical validity)** seen through a dermatoscope (the source, with
# labels for half of its patients) and by phone (the target), on features of `efficientnet_lite0`.
# All methods share the classifier and its 1,200 steps. *Target labels* is the ceiling: the same
# classifier with as many labels, but on the target. The strength of DANN is chosen without them, as
# the next section explains.

# %% tags=["plumbing"] alt="Two rows of eight synthetic skin lesions. Through a dermatoscope: dark corners, even light, sharp. By phone: no dark corners, warmer and uneven light, blurred."
domains = ("dermatoscope", "phone")
seen = [tlk.load_task("lesions", image_size=64, domain=name) for name in domains]
rows = {name: part.arrays("validation")[0] for name, part in zip(domains, seen, strict=True)}
tlk.plots.strips(rows, columns=8, title="Synthetic lesions: labels on the first row's camera")

# %% tags=["plumbing"]
stored = tlk.results("domain", part="features")
shown = ("as it is", "AdaBN", "own statistics", "CORAL", "DANN", "self-training", "target labels")
rivals = [row for row in stored if row["method"] in shown[:-1]]


def chosen(pair, by, methods):
    """Percent, per draw: the score of the run with the highest value in column `by`."""
    runs = [row for row in rivals if row["pair"] == pair and row["method"] in methods]
    seeds = sorted({row["seed"] for row in runs})
    best = [max((r for r in runs if r["seed"] == seed), key=lambda r: r[by]) for seed in seeds]
    return 100 * np.array([row["score"] for row in best])


# %% tags=["plumbing"] alt="Bars of balanced accuracy on the target. Lesions: as it is 54 percent, AdaBN 54, own statistics 59, CORAL 59, DANN 58, self-training 52, target labels 60. Digits: as it is 76, AdaBN 76, own statistics 81, CORAL 79, DANN 93, self-training 90, target labels 99."
adversaries, scores = ("own statistics", "DANN"), {}
for pair in ("lesions", "digits"):
    runs = stored.where(pair=pair, method=[name for name in shown if name != "DANN"])
    found_there = runs.scores("method", scale=100)
    found_there["DANN"] = chosen(pair, "information", adversaries)
    scores[pair] = {name: found_there[name] for name in shown}
tlk.plots.bars(scores, title="Self-training helps one pair and not the other")

# %% tags=["nbval-check-output"]
gained = {name: {} for name in shown[1:]}
for pair, there in scores.items():
    for name in gained:
        gained[name][pair] = there[name] - there["as it is"]
tlk.table(gained, "points gained, draw by draw", note=stored.note)

# %% [markdown]
# On both pairs the target's own mean and spread gain four to five points. CORAL adds nothing to
# that (on digits it is 1.6 ± 1.1 points behind). **AdaBN**, which replaces the statistics of every
# BatchNorm *inside* the network, ties with doing nothing. Beyond that the two pairs differ. On
# digits an adversary gains 17 points, three quarters of what target labels would gain; on lesions
# it gains only as much as its statistics. Self-training starts from own statistics: it adds 9 ± 2
# points to them on digits and loses 7 ± 4 on lesions. (The ceiling there is low, because a rare
# class has few labels in either domain and about twenty test images.)
#
# ## Choosing without target labels
#
# DANN has one setting, its strength, and nobody has labelled validation images of the target to
# choose it by. Two measures are available without them. **Source validation**: is the classifier
# still right on the source? And **information**: are its answers on the target confident, one by
# one, and do they cover all classes? Information is the entropy of the mean answer minus the mean
# entropy of the answers, `domain.information(chances)`. How well does each of them choose between
# no adversary and four strengths from 0.1 to 3?

# %% tags=["plumbing", "nbval-check-output"]
ways = {"source validation": "validation", "information": "information", "hindsight": "score"}
rows = {pair: {"no adversary": there["own statistics"]} for pair, there in scores.items()}
for pair in rows:
    for name, column in ways.items():
        rows[pair][name] = chosen(pair, column, adversaries)
    rows[pair]["information, of all methods"] = chosen(pair, "information", shown[:-1])
tlk.table(rows, "target, %, chosen by")

# %% [markdown]
# On digits, information picks strength 1 in every draw, which is also the best in hindsight. Source
# validation is blind: it is 97 to 99 % at every strength, so it picks no adversary or nearly none,
# and misses ten points. On lesions there is nothing to gain, and neither loses much.
#
# ## Where it fails: believing too much
#
# The last column is a warning. Information compares the strengths of one method fairly, but not
# different methods: self-training is *made* to be confident about its own answers. On lesions,
# information picks self-training in every draw, and the score is back where it was without any
# adaptation.
#
# Why is the same method good on one pair and bad on the other? Look at what it believed first: its
# answers for the most confident quarter of the target images. The labels are only hidden, so we can
# see how many of those answers were right, class by class:

# %% tags=["plumbing", "nbval-check-output"]
class_names = {"lesions": seen[0].classes, "digits": range(10)}
believed = [row for row in tlk.results("domain", part="believed") if "equal" not in row["method"]]
rows = []
for pair, names in class_names.items():
    for number, name in enumerate(names):
        method = f"self-training: {number}"
        those = [row for row in believed if row["pair"] == pair and row["method"] == method]
        share = [100 * row["score"] for row in those if row["number"]]
        rows.append([pair, name, [row["number"] for row in those], share or "-"])
tlk.table(rows, ["pair", "class", "images believed", "of them right, %"], digits=0)

# %% [markdown]
# On digits, 6 of the 995 believed answers in five draws were wrong, all of them sevens. On lesions
# 98 of 100 believed moles (nv) are right, but only one in six dermatofibromas (df), and four other
# classes are below 90 %. All classes have the same weight in the loss, as they do in the score. So
# nine believed df, most of them wrong, count as much as 470 moles, and the next round believes what
# they taught. With the *true* labels of as many of its most confident images, self-training would
# have reached 65 % on lesions and 98 % on digits. What fails is not the method but the labels it is
# given.
#
# So before you let a network teach itself, check how often its most confident answers are right,
# **class by class**: have somebody who knows look at a dozen images of each. With one doubtful
# class of ten, much of the gain was left here; with five of seven, nothing.
#
# ## What it costs

# %% tags=["plumbing"]
both = domain.adversarial(new_classifier(), "hidden")
learns = {"DANN": both.count_params() - 1}
rows = []
for name in ("own statistics", "CORAL", "DANN", "self-training"):
    seconds = [row["seconds"] for row in stored.where(pair="digits", method=name)]
    rows.append([name, seconds, learns.get(name, plain.count_params()), scores["digits"][name]])
tlk.table(rows, ["digits", "seconds of one core", "trainable parameters", "right, %"])

# %% [markdown]
# Training on features takes seconds; self-training takes four trainings instead of one. (The core
# was busy, so compare the seconds only with each other.) The domain classifier is discarded after
# training, so all methods cost the same at inference. AdamW keeps two more numbers in memory for
# each trainable parameter.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: deeper statistics
#
# *Own statistics* corrects the output of the network. **AdaBN** does the same at every
# [BatchNorm](glossary.md#batchnorm) inside it: `domain.adapt_batchnorm(network, unlabelled)`. Is
# that better for the digits?

# %% [markdown] tags=["hint"]
# After that call, let `network` process the target's training and test images again. Standardise
# their features with the target's statistics, then predict with `plain`, the classifier trained
# first.

# %% tags=["answer"]
domain.adapt_batchnorm(network, unlabelled)
z_deep, test_deep = (network.predict(part, verbose=0) for part in (unlabelled, tests))
test_deep = (test_deep - z_deep.mean(axis=0)) / (z_deep.std(axis=0) + 1e-6)
rows = [["own statistics", right(plain, test_own)], ["and inside", right(plain, test_deep)]]
tlk.table(rows, ["one draw", "right on the target, %"])

# %% [markdown] tags=["answer"]
# It is not, in this draw. In the five stored draws AdaBN is a tie with doing nothing (0.8 ± 2.5
# points below it), while own statistics are 4.1 ± 2.7 above. A likely reason: the layers inside
# were tuned to one another on letters, and under new statistics a layer receives inputs it has
# never seen.

# %% [markdown] tags=["question"]
# ### Exercise 2: half of the classes
#
# Statistics need no labels, but they assume that both domains contain the same classes. What if the
# unlabelled images show only the digits 0 to 4, and the test images all ten?

# %% [markdown] tags=["hint"]
# `hidden` contains the classes: `some = hidden < 5`. Compute mean and spread from `z[some]` only.

# %% tags=["answer"]
some = hidden < 5
mean, spread = z[some].mean(axis=0), z[some].std(axis=0) + 1e-6
rows = []
for name, new in {"of all": test_own, "of 0 to 4": (test - mean) / spread}.items():
    answers = np.argmax(plain(new), axis=1) == truth
    rows.append([name, 100 * np.mean(answers[truth < 5]), 100 * np.mean(answers[truth >= 5])])
tlk.table(rows, ["statistics", "0 to 4 right, %", "5 to 9 right, %"])

# %% [markdown] tags=["answer"]
# The effect is smaller than you might fear: in a single draw, four points lost on the digits that
# were shown, and one or two gained on the others. Mean and spread are coarse. An adversary is more
# precise, and it is told to make ten digits look like five; we have not measured that. Know which
# classes are in your unlabelled images before you adapt.

# %% [markdown]
# ## What to remember
#
# - Start with the target's own mean and spread: five lines, no training, nothing to set.
# - An adversary or pseudo-labels may gain much more. Whether they do depends on how often the
#   network is already right on the target, class by class.
# - Use information to choose the strength of one method, never to decide whether to use
#   pseudo-labels.
#
# **Then**: images of the target can teach more than their statistics. [Chapter
# 4](04_strategies.ipynb) shows what images teach without any label, and how to rehearse an
# adaptation.
