# %% [markdown]
# # 8.11 · The cheat sheet: every flavour, its price and its gain
#
# **The question.** There are ten ways to transfer, and you have one afternoon. Which one do you try
# first?
#
# **The promise.** You leave with one table: what each flavour needs, what it costs, and what it
# gained here over the plain way, with its spread. You filter the table by what you have, and you
# measure one of its rows again. For each row you get the code for its well-known medical example.
# All of this takes about half a minute on two cores. *(Section 1.8 of the course, its cheat sheet;
# no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np
from sklearn.metrics import balanced_accuracy_score

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_11")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The menu
#
# A menu says what a dish is and when to order it, with the price next to it. The dishes first:
#
# | flavour | what it does | order it when you have | well-known medical example | in a word |
# |---|---|---|---|---|
# | [Feature extraction](08_01_feature_extraction.ipynb) | the network stays frozen; a small classifier is trained on its outputs | few images, little compute | [EfficientNet B0 on HAM10000](named_systems.md) | quick and safe |
# | [Fine-tuning a part](08_02_fine_tuning.ipynb) | the upper layers continue training | a medium number of images, a slight shift | [ResNet on chest X-rays](named_systems.md) | the middle way |
# | [Full fine-tuning](08_02_fine_tuning.ipynb) | every layer continues training | many images, a large shift | [ViT on diabetic retinopathy](named_systems.md) | flexible, and expensive |
# | [Domain adaptation](08_04_domain_adaptive.ipynb) | source and target are made to look alike to the network, without target labels | another camera, another clinic | [BioViT to HAM10000](named_systems.md) | the same things in another dialect |
# | [Adapters](10_1_adapters.ipynb) | small new modules are trained inside a frozen network | little memory, many tasks | [LoRA in a ViT](named_systems.md) | a task in a few kilobytes |
# | [Prompts](08_09_zero_and_few_shot.ipynb) | the prompt is chosen or learned; the network stays as it is | a large model of words and images | [BioGPT](named_systems.md) | ask, do not train |
# | [Self-supervision](08_08_self_supervised.ipynb) | learns from images without labels, then from a few with labels | many images, few labels | [DINO on radiographs](named_systems.md) | look first, name later |
# | [Zero and few shots](08_09_zero_and_few_shot.ipynb) | names or a handful of examples are enough | next to nothing | [GPT-4V](named_systems.md) | for what nobody has labelled |
# | [Cross-modal](08_10_cross_modal.ipynb) | images and texts are combined | two kinds of evidence | [MedCLIP](named_systems.md) | two witnesses |
# | [Several tasks](08_07_multi_task.ipynb) | one network answers several questions | several labels for each image | [lesion and its outline](08_07_multi_task.ipynb) | one pass for all |
#
# Not on the course's sheet, but flavours as well: [other heads](08_03_head_swapping.ipynb),
# [step-by-step unfreezing](08_05_progressive_unfreezing.ipynb),
# [distillation](08_06_distillation.ipynb), and [pretraining on your own
# images](10_3_domain_adaptive_pretraining.ipynb).
#
# ## The prices
#
# All results below were measured by the chapters and stored, each together with a control, which is
# named below the table. `clothes` are real photographs and `digits` real handwriting. `lesions`,
# `scenes` and the blinds over the digits are synthetic, and nothing here is medical advice.

# %% tags=["plumbing"]
sheet = []
more = "unlabelled images, too"
NEEDS = {"domain adaptation": more, "self-supervision": more, "distillation": more,
         "zero-shot": "names alone", "cross-modal": "reports, too",
         "several tasks": "several labels each"}  # fmt: skip


def rows_of(stored):
    name, where = stored
    return sorted(tlk.results(name, **where).rows, key=lambda row: row["seed"])


def mean_of(values):
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else "-"


# %% tags=["plumbing"]
def enter(flavour, data, labels, stored, control, column="score", control_column=None):
    """Add a row to the sheet. stored, control: a name for `tlk.results`, and the rows wanted."""
    rows, others = rows_of(stored), rows_of(control)
    score = np.array([100 * row[column] for row in rows])
    without = np.array([100 * row[control_column or column] for row in others])
    parameters = rows[0].get("parameters", np.nan)
    sheet.append({
        "flavour": flavour, "needs": NEEDS.get(flavour, "labelled images"), "data": data,
        "labels": labels or "all", "score": score, "control": without, "gain": score - without,
        "seconds": mean_of([row["seconds"] for row in rows]),
        "parameters": "-" if np.isnan(parameters) else int(parameters),
    })  # fmt: skip


# %% tags=["plumbing"]
lesions = {"preset": "efficientnet_lite0", "task": "lesions", "labels_per_class": 30}
enter("feature extraction", "lesions", 30, ("tasks", lesions | {"method": "frozen"}),
      ("tasks", lesions | {"method": "random"}))  # fmt: skip
for flavour, labels, depth in (
    ("fine-tuning a part", 30, "last 2"),
    ("full fine-tuning", 0, "all"),
):
    far = {"part": "grid", "target": "blinds", "labels_per_class": labels}
    enter(flavour, "blinds", labels, ("depths", far | {"depth": depth}),
          ("depths", far | {"depth": "head"}))  # fmt: skip

# %% tags=["plumbing"]
pair = {"part": "features", "pair": "digits"}
enter(
    "domain adaptation",
    "print to handwriting",
    30,
    ("domain", pair | {"method": "DANN", "strength": 1}),
    ("domain", pair | {"method": "as it is"}),
)
vit = {"part": "draws", "network": "glyph_vit"}
head = ("adapters", vit | {"method": "head"})
enter("adapters", "blinds", 30, ("adapters", vit | {"method": "LoRA"}), head)
enter("prompts", "blinds", 30, ("shots", {"part": "visual", "method": "deep"}), head)

# %% tags=["plumbing"]
probe = {"part": "probe", "unlabelled": 3600, "labels_per_class": 10}
enter("self-supervision", "lesions, 32 pixels", 10,
      ("selfsupervised", probe | {"method": "lesion pairs"}),
      ("selfsupervised", probe | {"method": "untrained"}))  # fmt: skip
clean = {"data": "clean"}
enter(
    "zero-shot",
    "scenes, new pairs",
    "none",
    ("shots", clean | {"part": "prompts", "method": "a {}"}),
    ("shots", clean | {"part": "shots", "method": "linear", "labels_per_class": 4}),
    "unseen",
)

# %% tags=["plumbing"]
two = {"part": "test", "labels_per_class": 30, "strength": 0}
enter("cross-modal", "lesions, reports", 30, ("modalities", two | {"method": "early"}),
      ("modalities", two | {"method": "image"}))  # fmt: skip
many = {"part": "heads", "labels": 5, "weighting": "1:1:1"}
enter("several tasks", "lesions", 5, ("multitask", many | {"tasks": "type+malignant"}),
      ("multitask", many | {"tasks": "type"}), "type")  # fmt: skip
small = {"part": "test", "temperature": 1}
enter("distillation", "clothes", 30, ("distillation", small | {"method": "soft, all"}),
      ("distillation", small | {"method": "alone"}))  # fmt: skip
heads = {"part": "test", "labels_per_class": 30}
enter("another head", "lesions", 30, ("heads", heads | {"head": "convolution"}),
      ("heads", heads | {"head": "large MLP"}))  # fmt: skip

# %%
names = {"flavour": "flavour", "needs": "you need", "data": "data", "labels": "labels per class",
         "control": "control, %", "score": "with it, %", "gain": "gain", "seconds": "seconds",
         "parameters": "trainable parameters"}  # fmt: skip
table = tlk.table([[row[name] for name in names] for row in sheet], list(names.values()))
tlk.filtered(table, "you need", "labels per class")

# %% [markdown]
# How to read a row:
#
# - *you need*: the data that the flavour requires.
# - *control, %*: what the flavour is compared with. Feature extraction: the same network untrained.
#   Fine-tuning, adapters and prompts: the head alone. Domain adaptation: no adaptation.
#   Self-supervision: the untrained network. Zero-shot: a linear classifier with **four** labels per
#   pair. Cross-modal: the image alone. Several tasks (type, and benign or malignant): the type
#   alone. Distillation: the same student trained on the 30 labels. Another head (a convolution): an
#   MLP of the same size.
# - *seconds*: training time alone, on one core of a busy machine, so only the order of magnitude
#   counts.
#
# Spreads are standard deviations over draws.
#
# **What the table cannot do** is rank the flavours: each row has its own data, chosen so that the
# flavour *can* win. It does show how large the gain was here, where the condition for the flavour
# held.

# %% alt="Bars of points gained, with spreads: feature extraction 26, fine-tuning a part 12, full fine-tuning 16, domain adaptation 17, adapters 17, prompts 11, self-supervision 15, zero-shot 12, cross-modal 9, several tasks 3, distillation 4, another head 6."
gains = {row["flavour"]: row["gain"] for row in sheet}
tlk.plots.bars({"": gains}, "points gained", "What each flavour gained over its control")

# %% [markdown]
# ## Order by what you have
#
# In JupyterLab, once its cell is run, the table above has two lists to choose from: the data you
# have, and the number of labels. (They need ipywidgets, which `make lab` installs.) For any other
# question there is the plain way: the sheet is a list of dictionaries, so one line of Python
# filters it. Change the condition and run the cell again. The second cell counts the gains that are
# more than twice their standard error.

# %%
quick = [row for row in sheet if row["seconds"] != "-" and row["seconds"] < 10]
chosen = [row for row in quick if row["labels"] == 30]
rows = [[row["flavour"], row["gain"], row["seconds"]] for row in chosen]
tlk.table(rows, ["30 labels, under ten seconds", "gain, points", "seconds"])


# %% tags=["nbval-check-output"]
def sure(gain):
    return len(gain) > 1 and gain.mean() > 2 * gain.std(ddof=1) / len(gain) ** 0.5


counts = [row["flavour"] for row in sheet if sure(row["gain"])]
print(len(counts), "of", len(sheet), "gains are more than twice their standard error.")

# %% [markdown]
# ## By hand: measure one row again
#
# Trust no table, including this one. Here is the first row, feature extraction, by hand in plain
# Keras: the features of the frozen network, once pretrained and once untrained, and one Dense layer
# on each.

# %%
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
(images, labels), (tests, truth) = task.arrays("train"), task.arrays("validation")


def features(weights, pixels):
    backbone = tlk.load_backbone(setting.backbone, setting.image_size, weights=weights)
    pool = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, pool).predict(pixels, verbose=0)


# %%
def right(weights):
    keras.utils.set_random_seed(SEED)
    x, new = features(weights, images), features(weights, tests)
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    head = keras.Sequential([keras.layers.Dense(len(task.classes))])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head.compile(keras.optimizers.AdamW(1e-3), loss)
    head.fit((x - mean) / spread, labels, epochs=30, verbose=0)
    answers = head.predict((new - mean) / spread, verbose=0).argmax(axis=1)
    return 100 * balanced_accuracy_score(truth, answers)


# %%
mine = {"ImageNet": right("pretrained"), "untrained": right(None)}
tlk.table(list(mine.items()), ["one draw, validation", "balanced accuracy, %"], digits=0)

# %% tags=["nbval-check-output"]
lead = mine["ImageNet"] - mine["untrained"]
tlk.table([["ImageNet, ahead of untrained", "more than 15" if lead > 15 else lead]], ["", "points"])

# %% [markdown]
# The head and the depth are different here, and this is a single draw on validation, but as in the
# stored row the pretrained network is far ahead. With `TLKERAS_PROFILE=online` the same cells run
# the cheat sheet's own example: EfficientNet B0 on HAM10000 (as DermaMNIST). For the code of all
# the other examples see [named systems](named_systems.md).
#
# ## Where each of them fails
#
# The same flavours in cases where they did not pay, from the same stored results:

# %% tags=["plumbing"]
won, sheet = sheet, []
enter("fine-tuning a part", "lesions", 0,
      ("finetuning", {"images": 3600, "weights": 1, "learns": "last block"}),
      ("finetuning", {"images": 3600, "weights": 1, "learns": "head"}))  # fmt: skip
skin = {"part": "features", "pair": "lesions"}
enter(
    "domain adaptation",
    "dermatoscope to phone",
    30,
    ("domain", skin | {"method": "self-training"}),
    ("domain", skin | {"method": "own statistics"}),
)

# %% tags=["plumbing"]
grain = {"data": "grain"}
enter(
    "zero-shot",
    "scenes under grain",
    "none",
    ("shots", grain | {"part": "prompts", "method": "a {}"}),
    ("shots", grain | {"part": "shots", "method": "linear", "labels_per_class": 4}),
    "unseen",
)
enter("cross-modal", "no image at test", 0,
      ("modalities", {"part": "test", "labels_per_class": 0, "strength": 0, "method": "early"}),
      ("modalities", {"part": "test", "labels_per_class": 0, "strength": 0,
                      "method": "report, multi-hot"}), "no_image", "score")  # fmt: skip
enter("several tasks", "lesions' outline", 30, ("multitask", many | {"labels": 30, "tasks": "type+mask"}),
      ("multitask", many | {"labels": 30, "tasks": "mask"}), "dice")  # fmt: skip
enter("distillation", "no other images", 30, ("distillation", small | {"method": "soft, labelled"}),
      ("distillation", small | {"method": "alone"}))  # fmt: skip
lost, sheet = sheet, won

# %% tags=["nbval-check-output"]
rows = [[row["flavour"], row["data"], row["control"], row["score"], row["gain"]] for row in lost]
tlk.table(rows, ["flavour", "data", "control, %", "with it, %", "gain"])

# %% [markdown]
# Training the last block on `lesions` with all 3,600 labels ties with the head alone or is somewhat
# behind it: the middle way did not pay here. Self-training lost seven points on lesions seen by
# phone, because it believed wrong answers. A name is worth less than four labels once the images
# look unlike those of the pretraining. Early fusion relies on the image, and without it is worse
# than the report alone. A network that also predicts the type draws a slightly worse outline than
# one that does nothing else. And a teacher that only sees the same 300 images adds nothing to their
# labels. Each chapter says why.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: the smallest that gains
#
# Which row of the sheet gained ten points or more with the fewest trainable parameters?

# %% [markdown] tags=["hint"]
# Keep the rows whose mean gain is at least 10 and whose `"parameters"` are not `"-"`; sort by them.

# %% tags=["answer"]
able = [row for row in sheet if row["gain"].mean() >= 10 and row["parameters"] != "-"]
able = sorted(able, key=lambda row: row["parameters"])
rows = [[row["flavour"], row["parameters"], row["gain"]] for row in able]
tlk.table(rows, ["flavour", "trainable parameters", "gain, points"])

# %% [markdown] tags=["answer"]
# Zero-shot, with none at all, because others have trained the words. Among the flavours that train
# something, prompts. The point is that the list is not sorted by gain: between five thousand
# parameters and a million there is a difference of a few points here, and also the optimizer's
# memory and the size of the file for each task.

# %% [markdown] tags=["question"]
# ### Exercise 2: a row of your own
#
# Add a row for distillation with a poor teacher, one trained on five labels per class (`"method":
# "poor teacher"`), compared with the student alone. Does a poor teacher help?

# %% [markdown] tags=["hint"]
# Copy the call that entered distillation, and change one word.

# %% tags=["answer"]
enter("poor teacher", "clothes", 30, ("distillation", small | {"method": "poor teacher"}),
      ("distillation", small | {"method": "alone"}))  # fmt: skip
line = sheet.pop()
tlk.table([[line["control"], line["score"], line["gain"]]], ["alone, %", "distilled, %", "gain"])

# %% [markdown] tags=["answer"]
# No: it costs about two points. The student cannot know which of its teacher's answers are wrong,
# and with 30 labels per class it does better without this teacher. Before you let a teacher teach,
# measure its score on the same validation images.

# %% [markdown]
# ## What to remember
#
# - Every flavour has a condition; where it does not hold, the flavour gains nothing or makes things
#   worse.
# - Most cost seconds to try once the features are stored. So try two, on validation, with several
#   draws.
# - A gain without its spread and its control is an anecdote.
#
# **Then**: what goes wrong on the way, and how to see it, [chapter 9](09_pitfalls.ipynb).
