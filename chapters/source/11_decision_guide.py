# %% [markdown]
# # 11 · The decision guide: what do I try first?
#
# **The question.** There are a dozen ways to use a pretrained network. Which one should you try
# first?
#
# **The promise.** In half a minute on two cores you turn four facts about your problem into a
# strategy and a plan you can train. You also see the guide compared with measurements: where it is
# right, where several strategies tie, and where you should not follow it. *(Section 1.11 of the
# course; no internet needed.)*

# %% [markdown]
# ## The idea
#
# A doctor who knows only your age, your temperature and how long you have been ill can still give
# useful advice, and will ask you to come back. The guide is that kind of first answer. It asks for
# four facts: how many images you have, how far they are from what the network learned from, how
# much compute you can afford, and whether the images have labels.
#
# | images | [shift](glossary.md#domain-shift) | compute | first strategy | chapter |
# |---|---|---|---|---|
# | few | low | little | the head alone | [6](06_unfreezing.ipynb) |
# | few | high | some | unfreeze block by block, at a small rate | [8.5](08_05_progressive_unfreezing.ipynb) |
# | a medium number | any | some | the head and two to four blocks | [8.2](08_02_fine_tuning.ipynb) |
# | many | any | plenty | every block | [8.2](08_02_fine_tuning.ipynb) |
# | any number | any | little | adapters (LoRA) | [10.1](10_1_adapters.ipynb) |
# | hardly any labelled | any | some | self-supervised pretraining, then fine-tuning | [8.8](08_08_self_supervised.ipynb), [10.3](10_3_domain_adaptive_pretraining.ipynb) |
#
# Few means about 10,000 images or less, a medium number about 50,000. A laptop is little compute; a
# GPU for an evening is some.
#
# ## By hand
#
# The guide is a chain of questions, short enough to type. It also fills in what the table leaves
# out: limits between the sizes (22,000 and 70,000 images), what hardly any labels means (one in
# ten), and the combinations of facts that have no row.


# %%
def strategy(images, shift, compute, labelled):
    if labelled < images / 10:
        return "label more" if compute == "low" else "pretrain without labels, then fine-tune"
    if compute == "low":
        return "head" if images <= 22_000 and shift == "low" else "adapters"
    if images <= 22_000:
        return "head, then the last block" if shift == "low" else "block by block"
    if images <= 70_000 or compute == "medium":
        return "head, then two to four blocks"
    return "every block"


print(strategy(images=8_000, shift="high", compute="medium", labelled=8_000))

# %% [markdown]
# Three of the four facts you know. The shift you can measure: train a [linear
# classifier](glossary.md#linear-probe) on the output of each block. If the last block does as well
# as any other, the top of the network fits your images, and the shift is low. If a lower block is
# better by more than chance, the top was made for something else, and the shift is high ([chapter
# 7](07_choosing_layers.ipynb)).
#
# ## The same with tlkeras
#
# `tlk.recommend` holds the same rules as data. It returns a strategy, a plan, the reason, and what
# to watch for. We try it with five labelled images of each of the ten handwritten digits and a
# network that was trained on printed letters:

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("11")
tlk.accelerate(quiet=True)
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
train, validation = task.arrays("train"), task.arrays("validation")
backbone = tlk.load_backbone(setting.backbone, setting.image_size)

# %%
probe = tlk.probe(backbone, train, validation)
probe

# %%
advice = tlk.recommend(images=len(train[0]), shift=probe, compute="low")
advice

# %% [markdown]
# A probe needs a few labels. Without any, `tlk.measure_shift` tells whether the network sees a
# difference between your images and those it knows, by their [energy
# distance](https://doi.org/10.1016/j.jspi.2013.03.018). It does not tell whether the features serve
# (exercise 3), and even at a distance of 2 % the networks of [chapter
# 8.4](08_04_domain_adaptive.ipynb) lost 14 and 22 points on another domain, so `tlk.recommend`
# accepts it only if it finds no difference.
#
# In JupyterLab the next cell shows four controls, and the answer changes as you move them. (They
# need ipywidgets, which `make lab` installs.) Elsewhere it shows the table of all rules, in
# which few, a medium number and many images are called small, medium and large:

# %%
tlk.decision_guide()

# %% [markdown]
# Back to the fifty digits. The learning rate in the plan above is ten times that of the recipe,
# which is made for 10,000 images. Fifty images make only a few steps per epoch, and steps times
# rate is how far a weight can travel ([chapter 7](07_choosing_layers.ipynb)). We train this plan,
# and for comparison what the guide would advise with many images: every block.


# %%
def trained(plan):
    keras.utils.set_random_seed(SEED)
    fresh = tlk.load_backbone(setting.backbone, setting.image_size)
    model = tlk.add_head(fresh, len(task.classes))
    return tlk.fit_stages(model, plan, train, validation, seed=SEED, batch_size=16, verbose=0)


runs = {"as advised: the head": trained(advice.plan),
        "every block": trained(tlk.recipes.full(30, 1e-3, patience=5))}  # fmt: skip

# %%
rows = [[name, 100 * max(run.history["val_accuracy"]), run.seconds] for name, run in runs.items()]
tlk.table(rows, ["what learns", "validation (%)", "seconds"])

# %% tags=["nbval-check-output"]
head, everything = (row[1] for row in rows)
behind = "less than 2" if everything - head < 2 else everything - head
tlk.table([["the head is behind every block by", behind]], ["validation", "points"])

# %% [markdown]
# ## The guide against measurements
#
# Is the guide right? The table below has its rows at about a hundredth of their size: 5, 30 and all
# (about 90) labelled images per class stand for few, medium and many. `digits` are near to the
# letters. Digits behind **blinds**, synthetic stripes that invert them, are far. Every depth takes
# the same number of steps: first the head alone, then as many again with the blocks that the depth
# opens. Mean ± spread of three draws.

# %% tags=["plumbing"]
grid = tlk.results("depths", part="grid", target=["digits", "blinds"])
SIZE, PLACE = {5: "few", 30: "medium", 0: "many"}, {"digits": "near", "blinds": "far"}
OPENS = {"head": "the head", "last 1": "one block", "last 2": "two blocks", "all": "four blocks"}
ASKED = [("digits", 5, "little", "head"), ("digits", 5, "some", "last 1"),
         ("blinds", 5, "some", "block by block"),
         ("digits", 30, "some", "last 2"), ("digits", 30, "some", "all"),
         ("blinds", 30, "some", "last 2"), ("blinds", 30, "some", "all"),
         ("digits", 0, "plenty", "all"), ("blinds", 0, "plenty", "all")]  # fmt: skip
rows, gaps = [], []
for target, labels, compute, says in ASKED:
    scores = grid.where(target=target, labels_per_class=labels).scores("depth", scale=100)
    best = max(scores, key=lambda depth: scores[depth].mean())
    behind = scores[best] - scores[says] if says in scores else "not measured"
    asked = f"{SIZE[labels]}, {PLACE[target]}, {compute}"
    gaps.append([asked, OPENS.get(says, says), np.mean(behind) if says in scores else behind])
    rows.append([*gaps[-1][:2], scores.get(says, "-"), OPENS[best], scores[best], behind])
header = ["images, shift, compute", "the guide opens"]
tlk.table(rows, [*header, "balanced accuracy (%)", "best", "its (%)", "behind"], note=grid.note)

# %% tags=["nbval-check-output"]
tlk.table(gaps, [*header, "behind the best depth by (points)"], digits=0)

# %% [markdown]
# **Near the source nearly everything works.** All rows marked "near" are within half a point of the
# best depth. What the guide really does for you there is name the cheapest one.
#
# **Far from the source depth counts.** With many images the guide is right. With a medium number it
# says "two to four blocks", and it matters which: four blocks, which is all that this network has,
# are best, and two blocks are four points behind. What differs here, the stripes, is a matter of
# pixels, which the bottom sees first. The guide asks how far the data are, not where they differ.
#
# Three things in the guide are not in this table. Three blocks were not measured. Many images with
# some compute also get two to four blocks; `tlk.recommend` opens four, which is the row "plenty"
# again. And unfreezing block by block was not measured with 5 labels per class. Of the depths that
# were, four blocks reach the most there, too: ten points more than the head.
#
# ## Few and far: block by block
#
# The stored runs of this strategy have 30 labels per class, the size that is called medium above.
# The guide's reason for it is that the network should keep what it knew, so the table has two
# scores: accuracy on the new task (digits behind blinds), and afterwards on a hundred classes of
# letters. Five draws.

# %% tags=["plumbing"]
orders = tlk.results("unfreezing", target="far", option=["head only", "progressive", "all blocks"])
new = orders.scores("option", value="test_accuracy", scale=100)
old = orders.scores("option", value="letters", scale=100)
cost = orders.scores("option", value="seconds")
rows = [[name, new[name], old[name], cost[name]] for name in new]
tlk.table(rows, ["what learns", "digits (%)", "letters kept (%)", "seconds"], note=orders.note)

# %% tags=["nbval-check-output"]
ahead = [np.mean(score["progressive"] - score["all blocks"]) for score in (new, old)]
tlk.table([["digits", ahead[0]], ["letters", ahead[1]]], ["progressive", "ahead by (points)"], 0)

# %% [markdown]
# Block by block ("progressive") is two points behind all blocks on the new task and three ahead on
# the old one, in two thirds of the time (each ± 0.5 s.e., the standard error of the mean difference
# over the same draws). If you no longer need the letters, unfreeze everything. (This holds at the
# same small rate. At a high rate, unfreezing everything at once loses the letters altogether:
# [chapter 6](06_unfreezing.ipynb).)
#
# ## Little compute: adapters
#
# Here are LoRA and its controls in two settings: a transformer trained on letters that learns
# digits behind blinds (far), and the ImageNet network on photographs of clothes (near). There are
# 30 labels per class. All methods start from the same trained head, take the same 120 steps, and
# use their own best learning rate. Five draws.

# %% tags=["plumbing"]
adapted = tlk.results("adapters", part="draws", method=["head", "last block", "LoRA", "full"])
rows = []
for task_name, place in (("blinds", "far"), ("clothes", "near")):
    there = adapted.where(task=task_name)
    accuracy = there.scores("method", scale=100)
    seconds = there.scores("method", value="seconds")
    parameters = there.scores("method", value="parameters")
    for name, draws in accuracy.items():
        mean = round(float(np.nanmean(seconds[name])), 1)
        rows.append([f"{task_name}, {place}", name, draws, int(parameters[name][0]), mean])
header = ["images", "what learns", "balanced accuracy (%)", "trainable parameters", "seconds"]
tlk.table(rows, header)

# %% tags=["nbval-check-output"]
far = adapted.where(task="blinds").scores("method", scale=100)
rows = [[f"LoRA against {name}", far["LoRA"] - far[name]] for name in ("head", "full")]
tlk.table(rows, ["digits behind blinds", "ahead by (points)"], note=adapted.note)

# %% [markdown]
# The row keeps its promise, with a tenth of the parameters: far away, LoRA is 17 points ahead of
# the head and ties with training every block ("full"). Near the source all four are within about
# two points of one another: LoRA ties with the head (1.1 ± 1.0 s.e. ahead), at more than 20 times
# its seconds, and with every block (1.1 ± 0.6 s.e. behind). And *little compute* has to be read as
# little memory: LoRA takes about as long as training every block.
#
# ## Hardly any labels: pretrain on your own images
#
# With five labels per class on `lesions` (synthetic), pretraining on random views of single images
# gains nothing, whether it starts from random weights ([chapter 8.8](08_08_self_supervised.ipynb))
# or from ImageNet ([chapter 10.3](10_3_domain_adaptive_pretraining.ipynb)). Pretraining on pairs of
# images of one lesion gains seven or eight points from random weights (over a control that trained
# for less time) and five from ImageNet, where with thirty labels it is a tie: so this row is worth
# its cost where labels are very few and you know more about your images than their pixels.

# %% [markdown]
# ## Where it fails
#
# - **Far, but where?** The guide opens blocks from the top. If your data differ in their pixels
#   (stripes, another scanner, night), the bottom has to learn too.
# - **Sizes are ImageNet's.** Its "few" means 10,000 images. With fifty, the learning rates of its
#   recipes achieve nothing in an epoch. `tlk.recommend` raises them, at most tenfold, and says so.
# - **A probe compares blocks as they are**, not what they could learn. If all of them do badly, it
#   may still say that the last one serves. Look at its accuracy, too.
# - **Ties.** Near the source the answers differ only in cost. That is not a failure, but do not
#   read a ranking into them.
#
# So take the guide's answer as the first run, not the last: probe, train, look at the curves
# ([chapter 9](09_pitfalls.ipynb)), and let validation decide.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: three customers
#
# What do you advise? (a) 3,000 photographs of leaves, an ImageNet network, a laptop. (b) 60,000
# chest X-rays, an ImageNet network, a GPU for the evening. (c) 200,000 satellite images and a
# cluster.

# %% [markdown] tags=["hint"]
# Use `tlk.recommend(images=..., shift=..., compute=...).strategy`. The shift is `"low"` or
# `"high"`, the compute `"low"`, `"medium"` or `"high"`.

# %% tags=["answer"]
customers = {"leaves": (3_000, "low", "low"), "X-rays": (60_000, "high", "medium"),
             "satellite": (200_000, "high", "high")}  # fmt: skip
rows = [[name, tlk.recommend(*facts).strategy] for name, facts in customers.items()]
tlk.table(rows, ["customer", "first strategy"])

# %% [markdown] tags=["answer"]
# Leaves look like the photographs in ImageNet, so the head alone is enough to start with. X-rays do
# not, but there are enough of them to train two to four blocks. With 200,000 images and a cluster
# you can train every block.

# %% [markdown] tags=["question"]
# ### Exercise 2: which fact matters most?
#
# Start from 8,000 images, `shift="low"` and `compute="medium"`, and change one fact at a time.
# Which changes lead to a different strategy?

# %% [markdown] tags=["hint"]
# Compare three changes: `shift="high"`, `compute="low"`, and `images=80_000`.

# %% tags=["answer"]
asked = [(8_000, "low", "medium"), (8_000, "high", "medium"), (8_000, "low", "low"),
         (80_000, "low", "medium")]  # fmt: skip
rows = [[f"{facts[0]:,}", *facts[1:], tlk.recommend(*facts).strategy] for facts in asked]
tlk.table(rows, ["images", "shift", "compute", "first strategy"])

# %% [markdown] tags=["answer"]
# All of them. The shift is the fact you know least about, and a probe measures it in seconds, so
# start there.

# %% [markdown] tags=["question"]
# ### Exercise 3: does the distance tell?
#
# The energy distance between letters and other images is stored (`tlk.results("shift")`), and so is
# the accuracy with the last block open (`tlk.results("depths")`, depth `"last 1"`, 30 labels per
# class). Does the accuracy fall as the distance grows? (Tiles, wave and rows mixed are digits
# changed by a program, in a single draw of labels; blinds and lesions are synthetic.)

# %% [markdown] tags=["hint"]
# `.scores("target", scale=100)` gives the accuracies in percent; for the distances add
# `value="distance"`.

# %% tags=["answer"]
shift = tlk.results("shift", network="glyph_resnet", source="letters")
depths = tlk.results("depths", part=["grid", "shift"], depth="last 1", labels_per_class=30)
distances = shift.scores("target", value="distance", scale=100)
serves = shift.scores("target", value="serves")
rows = []
for name, reached in depths.scores("target", scale=100).items():
    if name in distances:
        rows.append([name, distances[name], f"{sum(serves[name]):.0f} of 3", reached])
rows.sort(key=lambda row: row[1].mean())
header = ["images", "distance (%)", "probe: last block serves", "balanced accuracy (%)"]
tlk.table(rows, header, note=shift.note)

# %% [markdown] tags=["answer"]
# Among digits and changed digits it does. Across different kinds of images it does not: lesions are
# nearer to letters than tiles are, yet the last block reaches 28 % on lesions and 95 % on tiles. So
# no threshold on the distance separates what the network can do from what it cannot. The probe has
# a gap, too: it finds that lesions are far, but calls blinds near in two of three draws, although
# training every block gains 16 points over the head there. It compares what the blocks know now,
# not what they could learn. That is what validation is for.

# %% [markdown]
# ## What to remember
#
# - Four facts give a first strategy: images, shift, compute, labels. A probe with a few labels
#   measures the shift; a distance without labels does not.
# - Near the source most strategies tie, so choose the cheapest. Far away depth counts, and *where*
#   the data differ decides which blocks must learn.
# - The guide gives you a first run. Probe, train, look, and let validation decide.
#
# **Then:** the [cheat sheet](cheatsheet.md) has the whole course on a page.
