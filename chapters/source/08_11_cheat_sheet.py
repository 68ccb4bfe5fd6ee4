# %% [markdown]
# # 8.11 · The cheat sheet: every flavour, its price and its gain
#
# **The question.** Ten ways to transfer, and one afternoon. Which one first?
#
# **The promise.** You leave with one table: what each flavour needs, what it costs, and what it
# gained here over the plain way, with its spread. You filter it by what you have, you measure one
# of its rows again, and for each row you get the lines that run its well-known medical example. In
# about half a minute on two cores. *(Section 1.8 of the course, its cheat sheet; no internet
# needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras  # isort: skip
import numpy as np
from sklearn.metrics import balanced_accuracy_score

SEED = 0  # another draw of labels, another run
setting = tlk.setting("08_11")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The menu
#
# A menu says what a dish is and when to order it; the price stands beside it. The dishes first:
#
# | flavour | what it does | order it when you have | well-known medical example | in a word |
# |---|---|---|---|---|
# | [Feature extraction](08_01_feature_extraction.ipynb) | the network stays frozen; a small classifier reads what it puts out | few images, little compute | [EfficientNet B0 on HAM10000](named_systems.md) | quick and safe |
# | [Fine-tuning a part](08_02_fine_tuning.ipynb) | the upper layers learn on | a medium number of images, a slight shift | [ResNet on chest X-rays](named_systems.md) | the middle way |
# | [Full fine-tuning](08_02_fine_tuning.ipynb) | every layer learns on | many images, a large shift | [ViT on diabetic retinopathy](named_systems.md) | flexible, and dear |
# | [Domain adaptation](08_04_domain_adaptive.ipynb) | the source's look is fitted to the target's, without labels there | another camera, another clinic | [BioViT to HAM10000](named_systems.md) | the same things in another dialect |
# | [Adapters](10_1_adapters.ipynb) | small new modules learn inside a frozen network | little memory, many tasks | [LoRA in a ViT](named_systems.md) | a task in a few kilobytes |
# | [Prompts](08_09_zero_and_few_shot.ipynb) | the question is chosen or learned, the network is not | a large model of words and pictures | [BioGPT](named_systems.md) | ask, do not train |
# | [Self-supervision](08_08_self_supervised.ipynb) | learns from pictures without labels, then from a few with | many pictures, few labels | [DINO on radiographs](named_systems.md) | look first, name later |
# | [Zero and few shots](08_09_zero_and_few_shot.ipynb) | names or a handful of examples are enough | next to nothing | [GPT-4V](named_systems.md) | for what nobody has labelled |
# | [Cross-modal](08_10_cross_modal.ipynb) | pictures and texts are read together | two kinds of evidence | [MedCLIP](named_systems.md) | two witnesses |
# | [Several tasks](08_07_multi_task.ipynb) | one network answers several questions | several labels for each picture | [lesion and its outline](08_07_multi_task.ipynb) | one pass for all |
#
# Not on the course's sheet, but flavours as well: [other heads](08_03_head_swapping.ipynb),
# [step-by-step unfreezing](08_05_progressive_unfreezing.ipynb),
# [distillation](08_06_distillation.ipynb), and [pretraining on your own
# pictures](10_3_domain_adaptive_pretraining.ipynb).
#
# ## The prices
#
# What follows was measured by the chapters and stored, each time beside a control, which is named
# below the table. `clothes` are real photographs and `digits` real handwriting; `lesions`, `scenes`
# and the blinds before digits are synthetic, and nothing here is medical advice.

# %% tags=["plumbing"]
sheet = []
more = "unlabelled pictures, too"
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
def enter(flavour, data, labels, stored, control, column="score", beside=None):
    """A line of the sheet. stored, control: a name for `tlk.results`, and the rows wanted."""
    rows, others = rows_of(stored), rows_of(control)
    score = np.array([100 * row[column] for row in rows])
    without = np.array([100 * row[beside or column] for row in others])
    numbers = rows[0].get("parameters", np.nan)
    sheet.append({
        "flavour": flavour, "needs": NEEDS.get(flavour, "labelled pictures"), "data": data,
        "labels": labels or "all", "score": score, "control": without, "gain": score - without,
        "seconds": mean_of([row["seconds"] for row in rows]),
        "numbers": "-" if np.isnan(numbers) else int(numbers),
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
names = {"flavour": "flavour", "needs": "you need", "data": "data", "labels": "labels a class",
         "control": "control, %", "score": "with it, %", "gain": "gain", "seconds": "seconds",
         "numbers": "numbers that learn"}  # fmt: skip
table = tlk.table([[row[name] for name in names] for row in sheet], list(names.values()))
tlk.filtered(table, "you need", "labels a class")

# %% [markdown]
# How to read a line. *You need*: the data for it. *Control*: feature extraction against the same
# network untrained; fine-tuning, adapters and prompts against the head alone; domain adaptation
# against none; self-supervision against the untrained network; zero-shot against a linear
# classifier with **four** labels of each pair; cross-modal against the image alone; several tasks
# (type, and benign or malignant) against the type alone; distillation against the same student
# taught by the 30 labels; the head, a convolution, against a perceptron of its size. Spreads are
# standard deviations over draws. *Seconds* are those of one core, of training alone, on a machine
# that was busy: orders of magnitude.
#
# **What the table cannot do** is rank the flavours: each line has data of its own, and they were
# chosen so that the flavour *can* win. What it can say is how large a gain was here, where its
# condition held.

# %% alt="Bars of points gained, with spreads: feature extraction 26, fine-tuning a part 12, full fine-tuning 16, domain adaptation 17, adapters 17, prompts 11, self-supervision 15, zero-shot 12, cross-modal 9, several tasks 3, distillation 4, another head 6."
gains = {row["flavour"]: row["gain"] for row in sheet}
tlk.plots.bars({"": gains}, "points gained", "What each flavour gained over its control")

# %% [markdown]
# ## Order by what you have
#
# In JupyterLab the table above has two lists to choose from, once its cell is run: what you have,
# and how many labels. (They need ipywidgets, which `make lab` installs.) For any other question the
# plain way: the sheet is a list of dictionaries, so one line of Python filters it. Change the
# condition and run the cell again. A gain counts here as one when it is more than twice its
# standard error.

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
# ## By hand: measure one line again
#
# Trust no table, this one included. The first line, feature extraction, by hand in plain Keras: the
# frozen network's features, once pretrained and once untrained, and one Dense layer on either.

# %%
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
(images, labels), (tests, truth) = task.arrays("train"), task.arrays("validation")


def features(weights, pictures):
    backbone = tlk.load_backbone(setting.backbone, setting.image_size, weights=weights)
    pool = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, pool).predict(pictures, verbose=0)


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
print("More than 15 points gained:", mine["ImageNet"] > mine["untrained"] + 15)

# %% [markdown]
# Another head, another depth, a single draw on validation; and as in the stored line the pretrained
# network is far ahead. With `TLKERAS_PROFILE=online` the same cells run the cheat sheet's own
# example: EfficientNet B0 on HAM10000 (as DermaMNIST). For the lines of all the other examples see
# [named systems](named_systems.md).
#
# ## Where each of them fails
#
# The same flavours where they did not pay, from the same stored results:

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
# The last block of `lesions` with all 3,600 labels is a tie with the head, or somewhat behind it:
# the middle of the road was no road there. Self-training took seven points from lesions seen by
# phone, since it believed wrong answers. A name is worth less than four labels once the pictures
# look unlike those of pretraining. Early fusion leans on the picture, and is worse than the report
# alone when it is missing. A network that names the type as well draws a slightly worse outline
# than one that does nothing else. And a teacher that is asked about the same 300 pictures only adds
# nothing to their labels. Each chapter says why.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: the smallest that gains
#
# Which line of the sheet gained ten points or more with the fewest numbers that learn?

# %% [markdown] tags=["hint"]
# Keep the rows whose mean gain is at least 10 and whose `"numbers"` are not `"-"`; sort by them.

# %% tags=["answer"]
able = [row for row in sheet if row["gain"].mean() >= 10 and row["numbers"] != "-"]
able = sorted(able, key=lambda row: row["numbers"])
rows = [[row["flavour"], row["numbers"], row["gain"]] for row in able]
tlk.table(rows, ["flavour", "numbers that learn", "gain, points"])

# %% [markdown] tags=["answer"]
# Zero-shot, with none at all: the words were learned by others. Of those that train, the prompts.
# That the list is not sorted by gain is the point: between five thousand numbers and a million lie
# a few points here, and an optimizer's memory, and a file for each task.

# %% [markdown] tags=["question"]
# ### Exercise 2: a line of your own
#
# Enter a line for distillation with a poor teacher, one that knows five labels a class (`"method":
# "poor teacher"`), against the student alone. Does a poor teacher help?

# %% [markdown] tags=["hint"]
# Copy the call that entered distillation, and change one word.

# %% tags=["answer"]
enter("poor teacher", "clothes", 30, ("distillation", small | {"method": "poor teacher"}),
      ("distillation", small | {"method": "alone"}))  # fmt: skip
line = sheet.pop()
tlk.table([[line["control"], line["score"], line["gain"]]], ["alone, %", "taught, %", "gain"])

# %% [markdown] tags=["answer"]
# No: it takes about two points. The student cannot know which of its teacher's answers are wrong,
# and with 30 labels a class it knew better than this teacher. Ask of a teacher what it scores, on
# the same validation, before you let it teach.

# %% [markdown]
# ## What to remember
#
# - Every flavour has a condition; where it does not hold, it gains nothing or takes something away.
# - Most cost seconds to try once the features are stored. So try two, on validation, with several
#   draws.
# - A gain without its spread and its control is an anecdote.
#
# **Then**: what goes wrong on the way, and how to see it, [chapter 9](09_pitfalls.ipynb).
