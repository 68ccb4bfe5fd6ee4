# %% [markdown]
# # 8.2 · Fine-tuning: a part or all of it, on classes of unequal size
#
# **The question.** How many labelled images do you need before it pays to fine-tune a pretrained
# network, either its last block or all of it? And how do you notice that a rare class is missed?
#
# **The promise.** In about a minute on two cores you fine-tune the last block of a network in plain
# Keras, with weights for rare classes, and read the score class by class. You learn with how many
# images full fine-tuning overtakes partial fine-tuning, and what it costs. *(Section 1.8 of the
# course, number 2; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np
from sklearn.metrics import balanced_accuracy_score, recall_score

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_02")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# You take over a restaurant with its kitchen. With twenty guests a week you print a new menu and
# leave the kitchen alone. With two hundred you learn which dishes they send back, and it pays to
# train the cooks: first those who finish the plates, in the end everybody. The menu is the
# **[head](glossary.md#head)**. The finishing cooks are the last **[block](glossary.md#block)**
# (**partial [fine-tuning](glossary.md#fine-tuning)**), and all the cooks together are **full**
# fine-tuning. The guests are labelled images. Hence the usual advice: fine-tune a part of the
# network with a medium number of labels, or if the data differ slightly from the source; fine-tune
# all of it, at a small learning rate, with many labels, or if the data differ a lot.
#
# The network was trained on ImageNet photographs. The images are `lesions`: synthetic, with no
# medical validity, but as imbalanced as in a clinic. We take a random 300 of them and keep the
# imbalance.

# %% alt="Two rows of seven small synthetic images of skin spots, two of each of the seven classes, with the name of the class above."
task = tlk.load_task(setting.task, image_size=setting.image_size)
images, labels = task.arrays("train")
chosen = np.random.default_rng(SEED).permutation(len(labels))[:300]
images, labels = images[chosen], labels[chosen]
new, truth = (part[:400] for part in task.arrays("validation"))  # 400 for validation
task.show(rows=2, columns=7)

# %% [markdown]
# ## A score that hides what is missed
#
# How good is it to always answer with the most frequent class?

# %% tags=["nbval-check-output"]
counts = np.bincount(task.arrays("train")[1], minlength=len(task.classes))
always = np.full(len(truth), counts.argmax())
rows = [
    ["accuracy", 100 * np.mean(always == truth)],
    ["balanced accuracy", 100 * balanced_accuracy_score(truth, always)],
]
tlk.table(rows, [f"always {task.classes[counts.argmax()]!r}", "%"], digits=0)

# %% [markdown]
# Two thirds of the answers are right, yet six classes out of seven are never found. The share of a
# class that is found is its **[recall](glossary.md#recall)**, and **[balanced
# accuracy](glossary.md#balanced-accuracy)** is the mean recall over all classes. Here it is at
# [chance](glossary.md#chance). Unless a table says otherwise, every score below is balanced
# accuracy.
#
# ## By hand: the head, then the last block
#
# **[Class weights](glossary.md#class-weights)** make a mistake on a rare class count for more, so
# that each class has the same total weight in the loss. Keras takes them as a dictionary.

# %%
seen = np.maximum(np.bincount(labels, minlength=len(task.classes)), 1)
weights = dict(enumerate(len(labels) / len(seen) / seen))
print({name: round(float(weights[number]), 1) for number, name in enumerate(task.classes)})

# %%
keras.utils.set_random_seed(SEED)
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
backbone.trainable = False
features = keras.layers.GlobalAveragePooling2D()(backbone.output)
model = keras.Model(backbone.input, keras.layers.Dense(len(task.classes))(features))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.AdamW(3e-3), loss)
history = model.fit(images, labels, epochs=5, class_weight=weights, verbose=0)


# %%
def recalls():
    return recall_score(truth, model.predict(new, verbose=0).argmax(axis=-1), average=None)


rows = [["the head", *100 * recalls(), 100 * recalls().mean()]]

# %% [markdown]
# Now the last block, whose layers have names that start with `block6`, `block7` and `top` in this
# network. Set the flags, keep [BatchNorm](glossary.md#batchnorm) frozen, and
# [compile](glossary.md#compile) *again*, with a smaller learning rate ([chapter
# 6](06_unfreezing.ipynb) explains the traps).


# %%
def flat(model):
    """Return all layers, including those of models inside the model."""
    layers = []
    for layer in model.layers:
        layers += flat(layer) if isinstance(layer, keras.Model) else [layer]
    return layers


def open_last_block():
    model.trainable = True
    for layer in flat(model)[:-1]:
        last = layer.name.startswith(("block6", "block7", "top", "conv5", "post"))
        layer.trainable = last and not isinstance(layer, keras.layers.BatchNormalization)


# %%
open_last_block()
model.compile(keras.optimizers.AdamW(1e-4), loss)
model.fit(images, labels, epochs=3, class_weight=weights, verbose=0)
rows.append(["then the last block", *100 * recalls(), 100 * recalls().mean()])
tlk.table(rows, ["found (%)", *task.classes, "mean"], digits=0, note="Validation, a single draw.")

# %% [markdown]
# ## The same with tlkeras
#
# `fit_stages` runs the two stages of a [recipe](glossary.md#plan-stage-recipe). It computes the
# outputs of the frozen part below the open block only once, and accepts `class_weight` as `fit`
# does.

# %%
plan = tlk.recipes.two_stage(head_epochs=5, tune_epochs=3, head_lr=3e-3, tune_lr=1e-4)
model = tlk.add_head(tlk.load_backbone(setting.backbone, setting.image_size), len(task.classes))
run = tlk.fit_stages(
    model, plan, (images, labels), (new, truth), class_weight=weights, seed=SEED, verbose=0
)
found = 100 * recalls()
print(f"Balanced accuracy on validation: {found.mean():.0f} %, in {run.seconds:.0f} s")

# %% tags=["nbval-check-output"]
rows = []
for policy in (tlk.policies.head_only(), tlk.policies.last_blocks(1), tlk.policies.all_blocks()):
    learns = tlk.freeze(model, policy).trainable_params
    rows.append([policy, learns, round(8 * learns / 2**20, 1)])
tlk.table(rows, ["what is trained", "trainable parameters", "optimizer (MiB)"])

# %% [markdown]
# ## The experiment: what do class weights do?
#
# The same network, with 300 images and with all 3,600, imbalanced as they are. Either the head
# alone is trained, or the head and then the last block, at 1e-4, a rate 30 times smaller than the
# head's. Each is run with and without class weights. The number of steps is the same every time,
# each part has one learning rate, and there are five [draws](glossary.md#draw).

# %% tags=["plumbing"]
stored = tlk.results("finetuning")
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
LEARNS = {"head": "the head", "last block": "partial"}


def uneven(images, learns, weights):
    return stored.where(images=images, learns=learns, weights=weights)


rows = []
for images_used in (300, 3600):
    for learns, label in LEARNS.items():
        for weights_used, how in ((0, "no"), (1, "yes")):
            found = uneven(images_used, learns, weights_used)
            cells = [
                found.scores("learns", value=v, scale=100)[learns] for v in ("score", "accuracy")
            ]
            rows.append([f"{images_used:,}", label, how, *cells])

# %% tags=["nbval-check-output"]
tlk.table(rows, ["images", "trained", "class weights", "balanced (%)", "accuracy (%)"],
          note=stored.note)  # fmt: skip

# %% [markdown]
# With 3,600 images and the head alone, class weights gain nine points of balanced accuracy (9.2 ±
# 1.3; ± is the standard error of the mean difference within the same draws) and cost seventeen
# points of plain accuracy. Which of the two you want depends on the purpose. With 300 images they
# gain four points (± 1.5).
#
# And the last block? With class weights it ties with the head alone (1.5 ± 1.6 points ahead with
# 300 images, 2.8 ± 1.5 behind with 3,600). Without them it is 2.3 ± 1.4 ahead with 300, a tie, and
# 4.5 ± 0.9 behind with 3,600. A likely reason, not measured: 200 steps in batches of 16 are less
# than one pass over 3,600 images, which is little training for 2.7 million parameters.

# %% tags=["plumbing"] alt="Bars of the share found of seven classes. Without class weights: akiec 53, bcc 53, bkl 56, df 2, mel 67, nv 90, vasc 55. With: akiec 73, bcc 59, bkl 53, df 53, mel 67, nv 63, vasc 72."
found = {}
for weights_used, how in ((0, "no class weights"), (1, "class weights")):
    draws = uneven(3600, "head", weights_used)
    found[how] = {c: draws.scores("learns", value=c, scale=100)["head"] for c in CLASSES}
tlk.plots.bars(found, x="found (%)", digits=0, title="Rare classes gain, the common one pays\n"
               "(lesions, synthetic; the head, 3,600 images)")  # fmt: skip

# %% [markdown]
# `df` is 59 times rarer than `nv`. Without weights, 2 % of its images are found, with weights 53 %.
# `nv` pays for this: of a hundred of its images, 27 more are now assigned to another class.
#
# ## Where full overtakes partial
#
# Printed letters are a very distant source for lesions. Take `glyph_resnet`, which was trained on
# them: train the head first, then for as many steps again the last block, the last two, or all
# four. All runs use class weights, with three draws each.

# %% tags=["nbval-check-output"]
DEPTHS = {"head": "the head", "last 1": "last block", "last 2": "last 2", "all": "full"}
far = tlk.results("depths", part="grid", target="lesions").scores(
    "depth", "labels_per_class", scale=100
)
rows = [[label, *(far[depth][n] for n in (5, 30, 0))] for depth, label in DEPTHS.items()]
header = ["from letters", "5 labels per class", "30", "all"]
tlk.table(rows, header, note=tlk.results("depths").note)

# %% [markdown]
# With five labels per class all four tie. With 30, full fine-tuning is five points ahead of the
# last block, in every draw, and with all labels it is three points ahead of the last two blocks (±
# 0.6). The more there is to learn, and the more labels to learn it from, the more blocks it pays to
# train. ImageNet is a closer source: from there the scores are twice as high, and with few labels
# full fine-tuning gains nothing over frozen features:

# %% tags=["nbval-check-output"]
near = tlk.results("tasks", preset="efficientnet_lite0", task="lesions", labels_per_class=[5, 10])
near.where(method=["frozen", "fine-tuned"]).mean_by("method", "labels_per_class", scale=100)

# %% [markdown]
# Both are ties (with ten labels, over the three draws that both methods have: 1.4 ± 1.5). So choose
# the source first: it makes the difference between 46 and 23 % with five labels (network and image
# size differ as well). Choose the depth after that.
#
# ## Where it fails
#
# Fine-tuning assumes that the pretrained weights are worth something. Is that so for letters? The
# control is the same network **[from scratch](glossary.md#from-scratch)**:

# %% tags=["nbval-check-output"]
control = tlk.results(
    "tasks", preset="glyph_resnet", task="lesions", method=["fine-tuned", "scratch"]
)
control.mean_by("method", "labels_per_class", scale=100)

# %% [markdown]
# From random weights it scores 8 to 22 points higher, at every number of labels, and higher than
# any row of the previous table from letters. This is **[negative
# transfer](glossary.md#negative-transfer)**. Both methods trained the whole network for the same
# number of steps, each at the better of two learning rates. One more thing differs: fine-tuning
# keeps the BatchNorm statistics from the letters. (Steps and rates are not those of the table from
# letters, so its row *full* is not the same run as *fine-tuned* here.) No choice of depth repairs a
# source that does not fit.
#
# ## What it costs
#
# The optimizer stores two numbers for each trainable parameter (see the table under *The same with
# tlkeras*), and the last block holds most of the parameters. On one core, the stored runs with 300
# images took 3 seconds for the head and 17 with the last block after it, for the same number of
# steps and with everything below computed once. Full fine-tuning runs the whole network, forwards
# and backwards, at every step.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: weights by hand
#
# Of 1,000 images in seven classes, one class has 400 and another has 10. Which weights do they get
# by the formula above? And how many images of the first weigh as much as one of the second?

# %% [markdown] tags=["hint"]
# All images / number of classes / images of the class.

# %% tags=["answer"]
tlk.table([[n, 1000 / 7 / n] for n in (400, 10)], ["images of the class", "weight"])

# %% [markdown] tags=["answer"]
# 0.4 and 14.3: one image of the rare class changes the network as much as 40 of the common one. It
# is as if each image were shown 40 times, with the usual consequence that the network easily
# memorises them. Weights shift the balance, but they add no images.

# %% [markdown] tags=["question"]
# ### Exercise 2: which score for which purpose?
#
# A clinic wants to miss as few `mel` (the synthetic melanoma) as possible. Which of the runs above
# would you choose, and what does it cost?

# %% [markdown] tags=["hint"]
# `uneven(3600, "head", 1).scores("learns", value="mel")` has one of them.

# %% tags=["answer"]
rows = []
for weights_used in (0, 1):
    draws = uneven(3600, "head", weights_used)
    cells = [draws.scores("learns", value=v, scale=100)["head"] for v in ("mel", "nv")]
    rows.append([bool(weights_used), *cells])
tlk.table(rows, ["class weights", "mel found (%)", "nv found (%)"])

# %% [markdown] tags=["answer"]
# The class weights do not decide it: `mel` is found equally often with and without them, 67 of 100,
# because it is not rare here. Nor does the last block: all four runs with 3,600 images find 66 to
# 68 of 100, and all four with 300 find 51 to 54. More images helped, and without weights there is
# no loss in `nv` to pay for them. A lower decision threshold for `mel` alone would find more of
# them, at the price of false alarms: [chapter 0](00_start_here.ipynb) looks at such mistakes one by
# one.

# %% [markdown]
# ## What to remember
#
# - With imbalanced classes, report balanced accuracy and the recall of each class, not accuracy.
# - Class weights move errors from rare classes to common ones; they do not add knowledge.
# - With few labels and a near source, train the head or the last block. With many labels or a far
#   source, go deeper, and train the same network from scratch as a control.
#
# **Then:** another order of opening blocks, [chapter 8.5](08_05_progressive_unfreezing.ipynb).
