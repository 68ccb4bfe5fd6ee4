# %% [markdown]
# # 3 · Transfer or fine-tuning: which of the two am I doing?
#
# **The question.** You have a trained network, and it cannot yet do what you want. Is what you
# want a *new* task for it, or its *old* task in a narrower form?
#
# **The promise.** In a minute on two cores you learn one question that tells the two apart before
# any training, do both in plain Keras, and measure what each costs the network on the task it
# could do before.

# %%
import tlkeras as tlk
import keras
import numpy as np

SEED = 0  # change it for another draw of labels and another run
setting = tlk.setting("03")

# %% [markdown]
# ## Two cousins
#
# A cook from Naples opens a sushi bar: knife skills and taste carry over, the recipes are new.
# Another keeps making pizza, but in an oven that runs hotter: the recipes stay, the hands adapt.
# The first is **transfer**: what was learned is taken to a new, related problem. The second is
# **fine-tuning** as this chapter uses the word: polishing what is there for the same problem, or
# one very close to it.
#
# Both start from a complete network, including its **[head](glossary.md#head)** (the last layer,
# which gives the answers). Here is one that recognises ten classes of **clothes** in real
# photographs. It has the lower and middle blocks of `efficientnet_lite0`, trained on ImageNet, and
# a head trained on a hundred photographs per class.

# %%
clothes = tlk.load_task(setting.source, image_size=setting.image_size)
images, labels = clothes.arrays("train")[:2]
members = [np.flatnonzero(labels == label) for label in range(10)]
known = np.concatenate([places[:100] for places in members])
others = np.concatenate([places[100:300] for places in members])
test_images, truth = (part[::5] for part in clothes.arrays("test")[:2])


# %%
def new_model(classes):
    """Return ImageNet's network without its last block, with a new head."""
    keras.utils.set_random_seed(SEED)
    blocks = tlk.find_blocks(tlk.load_backbone(setting.backbone, setting.image_size))
    return tlk.add_head(blocks.split(blocks.names[-2])[0], classes, dropout=0)


namer = new_model(10)
head = tlk.policies.head_only()
plan = tlk.Plan([tlk.Stage("fast", head, 1e-2, 12), tlk.Stage("slow", head, 1e-3, 4)])
original = (images[known], labels[known])
tlk.fit_stages(namer, plan, original, seed=SEED, batch_size=16, verbose=0)

# %% [markdown]
# ## Two things it cannot do yet
#
# The first: the same classes of clothes as a camera sees them from above a moving **belt**,
# smeared sideways. The photographs are real, the smear is ours.


# %%
def on_the_belt(images, smear=9):
    """Return the images smeared sideways, as a camera takes them while they pass."""
    side = smear // 2
    wide = np.pad(images, ((0, 0), (0, 0), (side, side), (0, 0)), mode="edge")
    return np.mean([wide[:, :, i : i + images.shape[2]] for i in range(smear)], axis=0)


belt_test = on_the_belt(test_images)

# %% [markdown]
# The second: `lesions`, seven classes of marks on skin, **synthetic**, drawn by a program, and of
# no medical validity. Above each image is the network's answer.

# %% tags=["plumbing"]
skin = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
skin_images, skin_truth = skin.arrays("test")[:2]
members = [np.flatnonzero(skin_truth == label)[:50] for label in np.unique(skin_truth)]
places = np.concatenate(members)
skin_images, skin_truth = skin_images[places], skin_truth[places]

# %% tags=["plumbing"] alt="Three rows of six images, each with the class the network predicts. Clothes: all six are right. The same clothes smeared sideways: five of the six are right. Synthetic skin lesions: five are classified as sandals and one as a bag."
some = [np.flatnonzero(truth == label)[0] for label in (0, 1, 3, 5, 8, 9)]
shown = np.concatenate(
    [test_images[some], belt_test[some], skin_images[:: len(skin_images) // 6][:6]]
)
predicted = namer.predict(shown, 64, verbose=0).argmax(axis=1)
title = "clothes (real); the same on the belt; lesions (synthetic)"
tlk.plots.samples(shown, predicted, clothes.classes, columns=6, title=title)

# %% [markdown]
# ## Do the old answers still fit?
#
# Ask this before you train anything, and measure it. The score is **[balanced
# accuracy](glossary.md#balanced-accuracy)**: the share of each class that is recognised, averaged
# over the classes.

# %%
from sklearn.metrics import balanced_accuracy_score


def accuracy(model, images, truth):
    """Return balanced accuracy in %."""
    predicted = model.predict(images, 100, verbose=0).argmax(axis=1)
    return 100 * balanced_accuracy_score(truth, predicted)


before = {
    "clothes": accuracy(namer, test_images, truth),
    "clothes on the belt": accuracy(namer, belt_test, truth),
}
fitting = len(set(clothes.classes) & set(skin.classes))

# %% tags=["plumbing", "nbval-check-output"]
least = {"clothes": 75, "clothes on the belt": 45}
rows = [
    (name, "10 of 10", f"more than {least[name]}" if share > least[name] else share)
    for name, share in before.items()
]
rows.append((skin.name, f"{fitting} of {len(skin.classes)}", "none"))
tlk.table(rows, ["task", "answers that fit", "balanced accuracy before training (%)"])

# %% [markdown]
# - On the belt they fit. The task is the same, the images are a narrow part of the world, and many
#   of the network's answers are right already. Improving them is **fine-tuning**.
# - On lesions they do not. However well the network sees, it is always wrong. Its head is useless
#   here, but the layers below may be useful: taking those along is **transfer**.
#
# Take a network that learned animals from millions of photographs. If it should now name plants,
# you transfer it: it knows shapes and patterns, but no leaves. Or take a general object detector,
# trained on ImageNet or COCO, that should get better at finding cars. You fine-tune it on a
# smaller set that contains only cars: what it knows stays, its focus becomes sharper.
#
# ## Transfer, by hand
#
# We have five labelled images per class. The new head is random: it has everything to learn and
# nothing to lose, so it gets a high learning rate, and the [backbone](glossary.md#backbone) stays
# [frozen](glossary.md#freeze).

# %%
few, few_labels = skin.arrays("train")[:2]
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

transferred = new_model(7)
for layer in transferred.layers[:-1]:
    layer.trainable = False
transferred.compile(keras.optimizers.AdamW(3e-2), loss)
transferred.fit(few, few_labels, batch_size=16, epochs=12, verbose=0)
reached = accuracy(transferred, skin_images, skin_truth)
print(f"{reached:.0f} % balanced accuracy on lesions (guessing: 14 %)")

# %% [markdown]
# And what has the network lost? Compare the weights below the new head with those below the old
# head, one by one.

# %%
old_head = namer.layers[-1].get_weights()
pairs = zip(transferred.get_weights()[:-2], namer.get_weights()[:-2], strict=True)
changed = sum(np.sum(now != then) for now, then in pairs)
print(f"{changed} of {namer.count_params():,} parameters changed")

# %% [markdown]
# Nothing. What is frozen is not forgotten: put the old head back, and the network recognises
# clothes as before.
#
# ## Fine-tuning, by hand
#
# We have five labelled images per class of clothes from the belt, none of which the network has
# seen. Nothing is new here, so there is no new head, and no separate stage in which a new head
# catches up. Everything trains from the first step, at a *small* rate, except for BatchNorm,
# because fifty images would only spoil its averages.

# %%
rng = np.random.default_rng(SEED)
drawn = [rng.choice(others[labels[others] == label], 5, replace=False) for label in range(10)]
drawn = np.concatenate(drawn)
belt = on_the_belt(images[drawn])

# %%
polished = new_model(10)  # a copy; the original network is kept
polished.set_weights(namer.get_weights())
for block in tlk.find_blocks(polished):
    for layer in block.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)

polished.compile(keras.optimizers.AdamW(1e-4), loss)
polished.fit(belt, labels[drawn], batch_size=16, epochs=15, verbose=0)
after = {
    "clothes": accuracy(polished, test_images, truth),
    "clothes on the belt": accuracy(polished, belt_test, truth),
}

# %%
rows = [(name, before[name], after[name]) for name in before]
tlk.table(rows, ["balanced accuracy (%)", "before", "after polishing"], digits=0)

# %% tags=["plumbing", "nbval-check-output"]
gain = after["clothes on the belt"] - before["clothes on the belt"]
lost = before["clothes"] - after["clothes"]
rows = [("gained on the belt", "more than 10" if gain > 10 else gain)]
rows.append(("lost on clothes in general", "less than 15" if lost < 15 else lost))
tlk.table(rows, ["fifty labels", "points"])

# %% [markdown]
# Fifty labels correct a good part of the mistakes on the belt. The price is paid elsewhere: fewer
# of the sharp clothes are recognised than before. If the belt is all the network will ever see,
# that is no loss. If not, keep a copy of the original, and always measure the general task, too.
#
# With tlkeras the training is one line, and BatchNorm is kept frozen without being told. For
# another copy, `model`: `tlk.fit_stages(model, tlk.recipes.full(epochs=15, lr=1e-4), (belt,
# labels[drawn]), batch_size=16)`.
#
# ## Like for like
#
# So far the two differ in three things at once: the task, the head, and which layers learn. Which
# of these matters? All eight combinations were measured, each with the same 100 steps of 16 images
# and the best of the same four learning rates, chosen on validation with a separate draw. There
# are three draws of labels.

# %% tags=["plumbing", "nbval-check-output"]
found = tlk.results("polishing", split="test")
table = {}
for learns, title in (("head", "only the head trained"), ("all blocks", "all blocks trained")):
    for head in ("old", "new"):
        part = found.where(head=head, learns=learns)
        table[f"{head} head, {title}"] = {
            "lesions, a new task": part.where(task="lesions").scores("task", scale=100)["lesions"],
            "the belt, the old task": part.where(task="belt").scores("task", scale=100)["belt"],
        }
tlk.table(table, "balanced accuracy (%)", note=found.note)

# %% [markdown]
# Read it by columns.
#
# - On the belt the old head is ahead, by six points if only the head learns and by two to three if
#   everything does. It was trained with a thousand labels, and fifty do not replace those. *How
#   many layers* learn matters less: without training the network has 56 %, and training the old
#   head alone gains 15 of the 17 points that training all blocks gains.
# - On lesions, old head or new head is a tie, within the spread: a head soon forgets that it was
#   about clothes. Letting all blocks learn from 35 labels gains nothing.
#
# And the price on the old task? The next table shows what each of the eight has lost on clothes in
# general, measured with the old head. (Where a new head was trained, it is taken off and the old
# one is put back on the blocks as they are after training.)

# %% tags=["plumbing", "nbval-check-output"]
rows = []
for task in ("lesions", "belt"):
    untouched = 100 * found.where(task=task, learns="nothing").rows[0]["clothes"]
    for head in ("old", "new"):
        for learns in ("head", "all blocks"):
            runs = found.where(task=task, head=head, learns=learns).rows
            rows.append(
                (task, f"{head} head", learns, [100 * r["clothes"] - untouched for r in runs])
            )
tlk.table(rows, ["trained on", "starting with", "what was trained", "change on clothes (points)"])

# %% [markdown]
# A new head on a frozen backbone costs nothing, whatever it learned. Polishing does cost
# something, and letting **all** blocks learn at 1e-4 does not cost more than letting the head
# **alone** learn at 1e-2 (the rates that validation chose): 6 ± 1 points against 11 ± 4.
# Forgetting depends on the size of the steps more than on the number of layers. Trained on
# lesions, the old head forgets most of its clothes, and so do blocks that learn below a new head
# at ten times the rate of polishing.
#
# ## The word means two things
#
# Elsewhere you will read that a *transferred* network is fine-tuned: first a new head, then
# unfreeze and continue at a small rate. In everyday speech, **fine-tuning** is that technique,
# whatever it is used for, and chapter 6 uses the word in this sense. This chapter uses it for a
# *purpose*. Purpose and technique are two separate questions, and all four combinations exist: the
# table above has each of them.
#
# Here is the chapter's distinction, with the numbers measured for it.


# %% tags=["plumbing", "nbval-check-output"]
def stored(task, head, learns, value="score"):
    """Return the scores of all draws in %."""
    return [100 * run[value] for run in found.where(task=task, head=head, learns=learns).rows]


scratch = tlk.results("tasks", method="scratch", labels_per_class=5)
scratch_skin = scratch.where(task="lesions", preset="glyph_resnet_small")
scratch_clothes = scratch.where(task="clothes", preset="glyph_resnet")
rows = [
    ("the problem is", "new, but related", "the old one, narrower"),
    ("do the old answers fit?", "no", "yes"),
    ("the head is", "new", "kept"),
    ("accuracy before training (%)", "none", stored("belt", "old", "nothing")),
    ("accuracy after, five labels (%)", stored("lesions", "new", "head"), stored("belt", "old", "all blocks")),
    ("from scratch, five labels (%)", [100 * run["score"] for run in scratch_skin],
     [100 * run["score"] for run in scratch_clothes]),
]  # fmt: skip
tlk.table(rows, ["", "transfer", "fine-tuning"])

# %% [markdown]
# Both are ahead of training from scratch, on lesions by about one spread. Be careful with that
# row: its networks are different ones (for each task, the strongest from-scratch network of the
# course), and its clothes are sharp, which is easier than the belt. And both results took only 35
# or 50 labels and 100 steps.
#
# ## Where this fails
#
# *Do the old answers still fit?* tells you where to start, not how it ends. In the
# balanced-accuracy table above, a new head on the belt is within three points of the old one as
# soon as all blocks learn. And five labels per class, three draws and two tasks, one of them
# synthetic, do not make a law. Make the table for your own task; it has four rows.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: polish the head alone
#
# Take a new copy of the clothes network, `namer`, keep its backbone frozen, and train only its old
# head on the fifty images from the belt, for eight epochs at 1e-2. What does it gain, and what
# does it cost on clothes in general?

# %% [markdown] tags=["hint"]
# `model = new_model(10)`, `model.layers[-1].set_weights(old_head)`, freeze `model.layers[:-1]`,
# compile, fit; `accuracy(model, ...)` twice.

# %% tags=["answer"]
model = new_model(10)
model.layers[-1].set_weights(old_head)
for layer in model.layers[:-1]:
    layer.trainable = False
model.compile(keras.optimizers.AdamW(1e-2), loss)
model.fit(belt, labels[drawn], batch_size=16, epochs=8, verbose=0)
alone = [accuracy(model, x, truth) for x in (test_images, belt_test)]
rows = [(name, before[name], after[name], now) for name, now in zip(before, alone, strict=True)]
tlk.table(rows, ["balanced accuracy (%)", "before", "all blocks", "head alone"], digits=0)

# %% [markdown] tags=["answer"]
# The head alone, with 1,130 parameters, gains nearly as much on the belt as all blocks do, in a
# fraction of the time: most of what the smear does to the features can be undone by weighting them
# differently. It costs as much or more on clothes in general, because its learning rate is a
# hundred times higher. Try it at 1e-3: it gains less and loses less.

# %% [markdown] tags=["question"]
# ### Exercise 2: narrower without training
#
# From now on only sandals, sneakers and ankle boots come by (classes 5, 7 and 9), and they are
# sharp. How much does `namer` improve if you forbid all other answers?

# %% [markdown] tags=["hint"]
# Choose the test images with `np.isin(truth, (5, 7, 9))`. `namer.predict` gives a score for each
# answer. Take the largest of all ten, and then the largest of columns 5, 7 and 9 only.

# %% tags=["answer"]
shoes = np.array([5, 7, 9])
worn = np.isin(truth, shoes)
model.layers[-1].set_weights(old_head)
scores = model.predict(test_images[worn], 64, verbose=0)
any_answer = np.mean(scores.argmax(axis=1) == truth[worn])
these_only = np.mean(shoes[scores[:, shoes].argmax(axis=1)] == truth[worn])
rows = [("any answer", 100 * any_answer), ("these three only", 100 * these_only)]
tlk.table(rows, ["allowed answers", "accuracy on shoes (%)"], digits=0)

# %% [markdown] tags=["answer"]
# Next to nothing: about 95 % either way. Shoes are mistaken for other shoes, hardly ever for a bag
# or a shirt, and answers among the three were not forbidden. A narrower list can only fix the
# mistakes that currently fall *outside* it, so count those before you get your hopes up. It costs
# no labels and no training, so it is worth a look.

# %% [markdown] tags=["question"]
# ### Exercise 3: which of the two?
#
# For each case, is it transfer or fine-tuning, as this chapter uses the words, and what happens to
# the head? (a) A network finds fractures in X-rays of adults, and should now find them in
# children. (b) The same network should tell the age of the patient. (c) A network names birds by
# their song, and should name the birds of one garden.

# %% [markdown] tags=["hint"]
# Do the old answers still fit?

# %% tags=["answer"]
cases = [
    ("a", "yes: fracture or none", "fine-tuning: keep the head"),
    ("b", "no: no answer is an age", "transfer: a new head"),
    ("c", "yes: they are among its birds", "fine-tuning, or forbid the other answers"),
]
tlk.table(cases, ["case", "do the old answers fit?", "what to do"])

# %% [markdown] tags=["answer"]
# The images decide nothing here: (a) and (b) have the same ones. What counts is whether the
# answers that the head can give are the ones you want. For (c) try exercise 2 first: it costs
# nothing. And where the old answers fit, *measure* how often they are right before you train.

# %% [markdown]
# ## What to remember
#
# - **Transfer** takes knowledge to a new, related problem and needs a new head. **Fine-tuning**,
#   as this chapter uses the word, improves a network on its own problem and keeps its head. Ask
#   first: *do the old answers still fit?*
# - What is frozen is not forgotten. Training on one type of image makes a network worse on others,
#   so measure the old task, too, before and after.
# - In everyday speech *fine-tuning* is a technique, unfreezing at a small rate, that serves both
#   purposes.
#
# **Then:** what to do when source and target differ in their images or have no labels: [chapter
# 4](04_strategies.ipynb).
