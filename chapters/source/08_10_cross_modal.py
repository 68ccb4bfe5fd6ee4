# %% [markdown]
# # 8.10 · Cross-modal transfer: an image and what is written about it
#
# **The question.** You have an image of a lesion and a short report. What do the two tell together
# that neither tells alone, and what if one is missing?
#
# **The promise.** In about a minute on two cores you build a network with two inputs in plain
# Keras, in the two usual ways. You see it fail when an image is missing, and fix that with a layer
# you know. *(Section 1.8 of the course, number 10; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np
from sklearn.metrics import balanced_accuracy_score

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_10")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# One witness saw it through a window, another heard it through a wall. Ask both, and you know more
# than from either. But if you have only ever listened to both at once, you may not understand one
# alone.
#
# A **[modality](glossary.md#modality)** is a kind of data: images, text, sound. If a case has two,
# you can combine them ([fusion](glossary.md#fusion)): EfficientNet's
# [features](glossary.md#feature) of a scan with BioBERT's features of the report, or MedCLIP's
# ([named systems](named_systems.md) has both). Here an ImageNet network processes the image, and
# the words of the report are counted. The lesions are **synthetic, of no medical validity**, and so
# are the reports: some of their stock phrases point to a class, many do not, and some are wrong.
# There are 30 labelled cases per class.

# %% alt="A row of seven synthetic skin lesions, one of each class, with the class's short name above."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
images, reports, labels = task.arrays("train", "image", "report", "label")
test_images, test_reports, truth = task.arrays("test", "image", "report", "label")
first = [int(np.argmax(labels == number)) for number in range(len(task.classes))]
title = "One lesion of each class (synthetic)"
tlk.plots.samples(images[first], labels[first], task.classes, columns=7, title=title)

# %%
tlk.table([[task.classes[labels[i]], str(reports[i])] for i in first], ["class", "its report"])

# %% [markdown]
# ## By hand 1: each becomes a vector
#
# **The image.** The output of the [frozen](glossary.md#freeze) network after its middle blocks,
# averaged over all positions: 112 numbers. `Normalization` scales each to mean 0 and spread 1, so
# that a vector of zeros is the average image.

# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
blocks = tlk.find_blocks(backbone)
middle = [block.name for block in blocks if block.role == "middle"]
below, _ = blocks.split(middle[-1])
network = keras.Sequential([below, keras.layers.GlobalAveragePooling2D()])
normal = keras.layers.Normalization()
raw = network.predict(images, verbose=0)
normal.adapt(raw)
features = np.asarray(normal(raw))
test_features = np.asarray(normal(network.predict(test_images, verbose=0)))

# %% [markdown]
# **The report.** `TextVectorization` collects the words. With `multi_hot` a report becomes a vector
# of ones and zeros, which says which of the known words occur in it, regardless of order. That is a
# **[bag of words](glossary.md#bag-of-words)**; an empty report is a vector of zeros.

# %%
bag = keras.layers.TextVectorization(output_mode="multi_hot")
bag.adapt(reports)
words, test_words = (np.asarray(bag(part), "float32") for part in (reports, test_reports))
features.shape, words.shape

# %% [markdown]
# ## By hand 2: alone, early fusion, late fusion
#
# All models get the same small [head](glossary.md#head) and the same number of steps.


# %%
def head(x):
    x = keras.layers.Dense(64, "relu")(keras.layers.Dropout(0.2)(x))
    return keras.layers.Dense(len(task.classes))(x)


def trained(model, data):
    keras.utils.set_random_seed(SEED)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(3e-3), loss)
    model.fit(data, labels, batch_size=32, epochs=50, verbose=0)
    return model


# %%
image = keras.Input(features.shape[1:])
report = keras.Input(words.shape[1:])
image_alone = trained(keras.Model(image, head(image)), features)
report_alone = trained(keras.Model(report, head(report)), words)

# %% [markdown]
# **Early fusion**: concatenate the two vectors and train one head on the result. A model with two
# inputs takes a list of two arrays.

# %%
together = keras.layers.Concatenate()([image, report])
early = trained(keras.Model([image, report], head(together)), [features, words])

# %% [markdown]
# **Late fusion**: two separate networks, and the mean of their outputs as log-probabilities.
# Nothing is trained together.


# %% tags=["plumbing"]
def log_chances(model, data):
    return np.asarray(keras.ops.log_softmax(model.predict(data, verbose=0)))


def score(answers):
    return 100 * balanced_accuracy_score(truth, answers.argmax(axis=1))


# %%
says_image = log_chances(image_alone, test_features)
says_report = log_chances(report_alone, test_words)
both = [test_features, test_words]
found = {
    "image alone": score(says_image), "report alone": score(says_report),
    "early fusion": score(log_chances(early, both)),
    "late fusion": score((says_image + says_report) / 2),
}  # fmt: skip
tlk.table(list(found.items()), ["one draw", "balanced accuracy, %"])

# %% [markdown]
# In this draw both kinds of fusion are better than either input. (The score is [balanced
# accuracy](glossary.md#balanced-accuracy).)
#
# ## By hand 3: a missing image
#
# The camera is broken today. Late fusion simply leaves out one of its two terms. Early fusion needs
# an image. Give it a black one, as many programs do when a file is missing, or a vector of zeros,
# the average image:

# %%
dark = network.predict(np.zeros_like(images[:1]), verbose=0)
fillers = {
    "a black image": np.repeat(np.asarray(normal(dark)), len(truth), axis=0),
    "zeros, the average": np.zeros_like(test_features),
}
rows = [["report alone", found["report alone"]]]
for name, filler in fillers.items():
    rows.append([f"early fusion, {name}", score(log_chances(early, [filler, test_words]))])
tlk.table(rows, ["no image; one draw", "balanced accuracy, %"], digits=0)

# %% tags=["plumbing", "nbval-check-output"]
lead = rows[2][1] - rows[1][1]
rows = [["zeros, ahead of a black image", "more than 10" if lead > 10 else lead]]
tlk.table(rows, ["no image", "points"])

# %% [markdown]
# A black image is not the same as *no* image: its features are far from anything the head has seen.
# Zeros cost nothing in this draw. Over the five stored trainings below they cost eight points
# compared with the report alone, because the head was trained with an image in every case.
#
# **[Modality dropout](glossary.md#modality-dropout)** ([Neverova and others
# 2014](https://arxiv.org/abs/1501.00102)) sets the whole vector of a modality to zero for a random
# part of the examples, in training only. Keras has the layer: `Dropout` with `noise_shape=(None,
# 1)` makes one random choice per example, for its whole vector.

# %% tags=["plumbing", "nbval-check-output"]
drop = keras.layers.Dropout(0.5, noise_shape=(None, 1))
rows = np.asarray(drop(np.ones((1000, 112)), training=True))
whole = int(np.sum(rows.min(axis=1) == rows.max(axis=1)))
values = ", ".join(str(value) for value in np.unique(rows))
tlk.table([[f"{whole:,} of 1,000", values]], ["rows of one value only", "the values"])

# %% [markdown]
# With a rate of 0.5, the values that are kept are doubled, as in every Dropout. (A layer that does
# not double was better by 3 ± 2 points with 30 labels per class, and a tie with all labels.) Each
# modality gets its own layer:

# %%
kept = [keras.layers.Dropout(0.3, noise_shape=(None, 1))(x) for x in (image, report)]
sturdy = keras.Model([image, report], head(keras.layers.Concatenate()(kept)))
sturdy = trained(sturdy, [features, words])

# %% tags=["plumbing"]
average, silence = fillers["zeros, the average"], np.zeros_like(test_words)
cases = {"both": both, "no image": [average, test_words], "no report": [test_features, silence]}
rows = [["early fusion"], ["with modality dropout"]]
for row, model in zip(rows, (early, sturdy), strict=True):
    row += [score(log_chances(model, data)) for data in cases.values()]
tlk.table(rows, ["one draw, balanced accuracy, %", *cases], digits=0)

# %% [markdown]
# A single draw says little; five follow below.
#
# ## The same with tlkeras: fine-tuning with two inputs
#
# A model can also take images and words directly and be fine-tuned in two stages ([chapter
# 6](06_unfreezing.ipynb)). `tlk.find_blocks` finds the network inside and its blocks. The report
# branch belongs to the **head**, so it is trained from the first stage on.

# %% tags=["nbval-check-output"]
pixels = keras.Input(images.shape[1:], name="image")
report = keras.Input(words.shape[1:], name="report")
seen = keras.layers.GlobalAveragePooling2D()(backbone(pixels))
read = keras.layers.Dense(64, "relu", name="words")(report)
answer = keras.layers.Dense(len(task.classes), name="answer")
inputs = {"image": pixels, "report": report}
model = keras.Model(inputs, answer(keras.layers.Concatenate()([seen, read])))
blocks = tlk.find_blocks(model)
tlk.table([[b.name, b.role, ", ".join(x.name for x in b.layers[-2:])] for b in blocks[-2:]],
          ["block", "role", "its last layers"])  # fmt: skip

# %%
plan = tlk.recipes.two_stage(head_epochs=2, tune_epochs=1)
data = {"image": images[::3], "report": words[::3]}  # every third case: only to see it run
run = tlk.fit_stages(model, plan, (data, labels[::3]), verbose=0, seed=SEED)
run

# %% [markdown]
# The column *cache* shows what two inputs cost: the outputs of frozen blocks are not stored,
# because the report bypasses them, and each epoch of the head processes all images again. For many
# epochs, compute the features first.
#
# ## A network for the text as well
#
# A bag of words knows neither order nor meaning. **BERT** ([Devlin and others
# 2018](https://arxiv.org/abs/1810.04805)) reads words in their order; **BioBERT** ([Lee and others
# 2019](https://arxiv.org/abs/1901.08746)) is a BERT trained on medical papers. Online you would
# load it. Here is a tiny one of the same class with random weights:

# %%
import keras_hub

# bert = keras_hub.models.BertBackbone.from_preset("hf://dmis-lab/biobert-v1.1")
bert = keras_hub.models.BertBackbone(
    vocabulary_size=500, num_layers=2, num_heads=2, hidden_dim=64, intermediate_dim=128
)

# %% [markdown]
# A pretrained BERT knows words only by *its own* token IDs. Use the tokenizer of the same preset
# (`BertTokenizer.from_preset`), not a vocabulary of your own, as we do for the tiny one. (BioBERT
# itself was not run here. KerasHub reads Hugging Face's files as `model.safetensors`; if a
# repository has none, convert it once with `transformers`.)

# %%
numbers = keras.layers.TextVectorization(output_sequence_length=40)
numbers.adapt(reports)
tokens = keras.Input((40,), dtype="int32")
there = keras.ops.cast(tokens > 0, "int32")  # 0: the report was shorter
given = {"token_ids": tokens, "segment_ids": keras.ops.zeros_like(tokens), "padding_mask": there}
text = keras.Model(tokens, bert(given)["pooled_output"])
text.predict(np.asarray(numbers(reports[:2])), verbose=0).shape

# %% [markdown]
# The result is again one vector per report, in place of the bag.
#
# ## The experiment: five draws
#
# The stored results are five [draws](glossary.md#draw) of 30 labels per class, and five trainings
# with all 3,600 labels. All methods have 400 steps and their own learning rate, chosen on
# validation with other draws. The image features come from two blocks. The
# **[control](glossary.md#control)** is early fusion trained *and* tested with other patients'
# reports: the same number of inputs and of parameters.

# %% tags=["plumbing"]
stored = tlk.results("modalities", part="test")
names = {
    "image": "image alone", "report, multi-hot": "report alone",
    "shuffled": "image, another's report", "early": "early fusion",
    "late": "late fusion", "modality dropout": "modality dropout 0.3",
}  # fmt: skip


def draws(count, column="score", **case):
    there = stored.where(labels_per_class=count, method=list(names), strength=[0, 0.3], **case)
    measured = there.scores("method", value=column, scale=100)
    return {label: measured[name] for name, label in names.items()}


# %% tags=["plumbing"] alt="Bars of balanced accuracy. 30 labels per class: image alone 62 percent, report alone 55, image and another's report 62, early fusion 71, late fusion 72, modality dropout 71. All labels: 74, 62, 72, 81, 82, 81."
groups = {"30 labels per class": draws(30), "all labels": draws(0)}
tlk.plots.bars(groups, title="Together they know more than either (synthetic lesions)")

# %% tags=["plumbing", "nbval-check-output"]
gained = {name: {} for name in list(names.values())[2:]}
for name in gained:
    for count, there in groups.items():
        gained[name][count] = there[name] - there["image alone"]
tlk.table(gained, "points above the image alone", note=stored.note)

# %% [markdown]
# With 30 labels per class the right patient's report is worth nine to eleven points, and with all
# labels six to eight, in every draw. Somebody else's report is worth nothing: what counts is the
# information, not the longer vector. The three kinds of fusion nearly tie (late fusion is ahead by
# a point or two), so the simplest one, two networks and a mean, is no worse.
#
# **Which features of the report?** (0: all labels; three draws of BERT.)

# %% tags=["plumbing", "nbval-check-output"]
readers = ["report, multi-hot", "report, tf-idf", "report, bert"]
stored.where(method=readers).mean_by("method", "labels_per_class", scale=100)

# %% [markdown]
# The bag of words is ahead of the tiny BERT by nine points with 30 labels and by six with all. A
# likely reason is that BERT's random weights first have to learn what a word is. How good a
# *pretrained* BERT is on real reports was not measured. Weighting by rarity (tf-idf) loses four
# points with 30 labels. Start with the bag: it is the control for every text network.
#
# ## What each knows that the other does not

# %% tags=["plumbing", "nbval-check-output"]
recalls, kept = {}, tlk.results("modalities", part="recall", labels_per_class=0)
for number, name in enumerate(task.classes):
    recalls[name] = {}
    for method in ("image", "report, multi-hot", "early"):
        those = kept.where(method=f"{method}: {number}")
        recalls[name][method.partition(",")[0]] = [100 * row["score"] for row in those]
tlk.table(recalls, "recall of (all labels, %)", digits=0)

# %% tags=["plumbing", "nbval-check-output"]
overlap = tlk.results("modalities", part="overlap")
shares = {}
for count, name in ((30, "30 labels"), (0, "all labels")):
    shares[name] = overlap.where(labels_per_class=count).scores("method", scale=100)
tlk.table(shares, "balanced accuracy (%)", digits=0)

# %% [markdown]
# Of dermatofibroma (df, 18 test cases) the report finds 70 % and the image 48 %; of actinic
# keratosis (akiec) the image finds 88 % and the report 60 %. With all labels, at least one of the
# two is right in 89 % of the cases. Early fusion reaches 81 %, about half of the way from the
# image's 74 to an **oracle** that always knew which one to believe.
#
# ## Where it fails
#
# **One is missing.**

# %% tags=["plumbing"] alt="Three lines over the share left out in training, 0, 0.1, 0.3 and 0.5. Both present: flat at 80 to 82 percent. No report: flat at 71 to 73. No image: 54 at a share of 0, then 58, 60 and 61."
lines = {}
for name, column in {"both": "score", "no report": "no_report", "no image": "no_image"}.items():
    lines[name] = {}
    for share in (0, 0.1, 0.3, 0.5):
        method = "modality dropout" if share else "early"
        those = stored.where(method=method, strength=share, labels_per_class=0)
        lines[name][share] = [100 * row[column] for row in those]
tlk.plots.curves(
    lines,
    x="share of examples without a modality, in training",
    title="With modality dropout a missing image costs less (all labels)",
)

# %% tags=["plumbing", "nbval-check-output"]
rows = []
black = tlk.results("modalities", part="black", labels_per_class=0)
for name, method, share in (
    ("early fusion", "early", 0), ("plain dropout 0.3", "plain dropout", 0.3),
    ("modality dropout 0.3", "modality dropout", 0.3), ("late fusion", "late", 0),
):  # fmt: skip
    those = stored.where(method=method, strength=share, labels_per_class=0)
    row = [name, *[[100 * r[c] for r in those] for c in ("score", "no_report", "no_image")]]
    there = [100 * r["score"] for r in black if r["method"] == method]
    rows.append([*row, there or "-"])
tlk.table(rows, ["all labels, %", "both", "no report", "no image", "a black image"])

# %% [markdown]
# With a black image, early fusion is near chance (14 %), and modality dropout is not far above.
# With zeros, early fusion is eight points below the report alone (62 %). **Modality dropout**
# recovers seven of them, and ties when both inputs are present. **Plain dropout** is its control:
# it drops as many numbers, but never a whole vector, and recovers nothing (1 ± 4 points). Late
# fusion needs none of this. Without the *report*, early fusion ties with the image alone (74 %).
#
# **One belongs to somebody else, or says too much.** Reports get mixed up, and some are written
# after the diagnosis is known. For the **leak**, the class was written into every report for
# training and validation, but not for the test, as with new patients:

# %% tags=["plumbing", "nbval-check-output"]
rows = []
for name, method, share, column in (
    ("image alone, test", "image", 0, "score"),
    ("early fusion, test", "early", 0, "score"),
    ("early fusion, reports of other patients", "early", 0, "strangers"),
    ("modality dropout 0.3, the same", "modality dropout", 0.3, "strangers"),
    ("late fusion, the same", "late", 0, "strangers"),
    ("early fusion, validation", "early", 0, "validation"),
    ("early fusion and a leak, validation with it", "leak", 0, "validation"),
    ("early fusion and a leak, test without it", "leak", 0, "score"),
):
    those = stored.where(method=method, strength=share)
    columns = [those.where(labels_per_class=count) for count in (30, 0)]
    rows.append([name, *[[100 * r[column] for r in there] for there in columns]])
tlk.table(rows, ["balanced accuracy, %", "30 labels", "all labels"])

# %% [markdown]
# With mixed-up reports and all labels, early fusion is ten points *worse* than the image alone: it
# believes what it reads. Modality dropout does not help, and late fusion loses most.
#
# The leak hardly harms the network: on test it ties with early fusion without a leak (after 400
# steps). But **validation is misleading**, by 11 points with 30 labels and by 18 with all. (Compare
# validation with validation, because here it is lower than test anyway.) For every text, ask when
# it was written.
#
# ## What it costs
#
# Computing the features of the frozen network takes most of the time, but is done once. A head then
# trains in about a second of one core, with 36,000 parameters for early fusion, and for late fusion
# 37,000 in two heads. The tiny BERT takes twenty times as long as the head on the bag.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: whom to believe more
#
# In late fusion, weight the report by 0, 0.25, 0.5, 0.75 and 1, and the image by the rest. Is the
# middle the best? How would you choose without the test?

# %% [markdown] tags=["hint"]
# `says_image` and `says_report` are all you need.

# %% tags=["answer"]
rows = [[w, score((1 - w) * says_image + w * says_report)] for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
tlk.table(rows, ["weight of the report", "one draw, %"], digits=2)

# %% [markdown] tags=["answer"]
# The middle is best or close to it. A weight of a quarter for the report does about as well; three
# quarters costs a lot, because the report is the weaker of the two. Choose the weight on validation
# cases that have both; if you have few of them, the middle is the safe choice.

# %% [markdown] tags=["question"]
# ### Exercise 2: the leak
#
# Write the diagnosis into every training report, train early fusion again, and test it twice: on
# reports with the diagnosis, and without it, as a new patient's would be.

# %% [markdown] tags=["hint"]
# `np.char.add` joins texts element by element. The bag has to collect the new words first, so make
# a new one. The input of the new model is longer.

# %% tags=["answer"]
note = np.array([f" code{name}" for name in task.classes])
told, test_told = np.char.add(reports, note[labels]), np.char.add(test_reports, note[truth])
bag = keras.layers.TextVectorization(output_mode="multi_hot")
bag.adapt(told)
parts = (told, test_told, test_reports)
told, test_told, untold = (np.asarray(bag(part), "float32") for part in parts)
long = keras.Input(told.shape[1:])
leaky = keras.Model([image, long], head(keras.layers.Concatenate()([image, long])))
leaky = trained(leaky, [features, told])
cases = {"with the diagnosis": test_told, "a new patient": untold}
rows = [[name, score(log_chances(leaky, [test_features, x]))] for name, x in cases.items()]
tlk.table(rows, ["one draw", "balanced accuracy, %"])

# %% [markdown] tags=["answer"]
# It looks far better than it is for a new patient. For new patients it is about as good as early
# fusion before: the leak has not ruined the network, but it has ruined the only way to see how good
# it is. The remedy is in the data, not in the model.

# %% [markdown]
# ## What to remember
#
# - Turn each input into a vector, concatenate them, and train one head. Or average the
#   log-probabilities of two networks, which was at least as good and still works when one input is
#   missing.
# - Fill in a missing modality with the average, never with black, and let early fusion learn to
#   work without it: `Dropout(share, noise_shape=(None, 1))`.
# - Ask where a text comes from: a wrong report is believed, and a leak makes validation misleading.
#
# **Then:** which way for which data, [chapter 11](11_decision_guide.ipynb).
