# %% [markdown]
# # 11 · The decision guide: what do I try first?
#
# **The question.** There are a dozen ways to use a pretrained network. Which one first?
#
# **The promise.** In half a minute on two cores you turn four facts about your problem into a
# strategy and a plan that trains, and you see the guide held against measurements: where it is
# right, where it is a tie, and where you would do better not to follow it. *(Section 1.11 of the
# course; no internet needed.)*
#
# ## The idea
#
# A doctor who knows nothing of you but age, fever and how long it has lasted will still say
# something useful, and will want to see you again. The guide is that first answer. It asks four
# things: how many images there are, how far they are from what the network has learned, how much
# computing you can pay for, and whether there are labels.
#
# | images | [shift](glossary.md#domain-shift) | compute | first strategy | chapter |
# |---|---|---|---|---|
# | few | low | little | the head alone | [06](06_unfreezing.ipynb) |
# | few | high | some | unfreeze step by step, at a small rate | [08_05](08_05_progressive_unfreezing.ipynb) |
# | a medium number | any | some | the head and two to four blocks | [08_02](08_02_fine_tuning.ipynb) |
# | many | any | plenty | every block | [08_02](08_02_fine_tuning.ipynb) |
# | any number | any | little | adapters (LoRA) | [10_1](10_1_adapters.ipynb) |
# | hardly any labelled | any | some | self-supervised pretraining, then fine-tuning | [08_08](08_08_self_supervised.ipynb), [10_3](10_3_domain_adaptive_pretraining.ipynb) |
#
# Few is about 10,000 images or less, a medium number about 50,000. A laptop is little compute, a GPU
# for an evening is some.
#
# ## By hand
#
# It is a chain of questions, and short enough to be typed.


# %%
def strategy(images, shift, compute):
    if compute == "low":
        return "head" if images < 20_000 and shift == "low" else "adapters"
    if images < 20_000:
        return "head, then the last block" if shift == "low" else "block by block"
    if images < 70_000 or compute == "medium":
        return "two to four blocks"
    return "every block"


print(strategy(images=8_000, shift="high", compute="medium"))

# %% [markdown]
# Three of its facts you know. The shift you can measure: train a
# [linear classifier](glossary.md#linear-probe) on what each block puts out. If the last block serves
# as well as any, the network's top fits your images, and the shift is low; if a block below it is
# better by more than chance, the top was made for something else (chapter 07).
#
# ## The same with tlkeras
#
# `tlk.recommend` holds the table and the rules as data and adds what the table leaves out: all
# combinations, a plan, the reason, and what to watch. Five labels of each of ten handwritten
# digits, and a network that has read printed letters:

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras  # isort: skip
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
# **Or drag.** In JupyterLab the next cell shows four controls, and the answer changes while you move
# them. (They need ipywidgets, which `make lab` installs.) Elsewhere it is the table that all answers
# come from:

# %%
tlk.decision_guide()

# %% [markdown]
# Back to the fifty digits. The rates are ten times those of the recipe, which is made for 10,000 images: fifty images have few
# steps in an epoch, and steps times rate is how far a weight can travel (chapter 07). Train it, and
# beside it what the guide would say to somebody with many images: every block.


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
print("the head is at most two points below every block:", head > everything - 2)

# %% [markdown]
# ## The guide against measurements
#
# Is it right? Every situation of the table at a hundredth of its size: 5, 30 and all (about 90)
# labelled images a class for few, medium and many. `digits` are near to the letters; digits behind
# **blinds**, synthetic stripes that invert them, are far. Every depth gets the same steps: the head
# first, alone, then as many again with what the depth opens. Three draws.

# %% tags=["plumbing"]
grid = tlk.results("depths", part="grid", target=["digits", "blinds"])
SAYS = {("digits", 5): "head", ("digits", 30): "last 2", ("digits", 0): "all",
        ("blinds", 30): "last 2", ("blinds", 0): "all"}  # fmt: skip
PLACE = {"digits": "near", "blinds": "far"}
SIZE = {5: "few", 30: "medium", 0: "many"}
rows, behind = [], {}
for (target, labels), says in SAYS.items():
    scores = grid.where(target=target, labels_per_class=labels).scores("depth", scale=100)
    best = max(scores, key=lambda depth: scores[depth].mean())
    behind[target, labels] = scores[best] - scores[says]
    rows.append([f"{SIZE[labels]}, {PLACE[target]}", says, scores[says], best, scores[best],
                 behind[target, labels]])  # fmt: skip
header = ["situation", "the guide opens", "balanced accuracy (%)", "best depth", "its (%)"]
header.append("behind")
tlk.table(rows, header, note=grid.note)

# %% tags=["nbval-check-output"]
rows = [[SIZE[labels], PLACE[target], behind[target, labels].mean()] for target, labels in SAYS]
tlk.table(rows, ["images", "shift", "the guide is behind the best depth by (points)"], digits=0)

# %% [markdown]
# Four of five hold, most of them as ties: **near the source nearly everything works**, and then the
# guide's real service is to name the cheapest. Where it matters, far away, it is right about many
# images and wrong about a medium number: the two blocks that it opens are four points short of all.
# This network has four blocks, and what differs, stripes, is a matter of pixels, which the bottom
# sees first. The guide asks how far the data are, not where they differ.
#
# Few images, far away: unfreeze step by step. Here 30 labels a class of the digits behind blinds, and
# two columns, for the guide's reason is that the network shall keep what it knew: accuracy on the
# new task, and on a hundred classes of letters afterwards. Five draws.

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
# Step by step is two points behind on the new task and three ahead on the old one (each ± 0.5, the
# standard error of the mean difference in the same draws), in two thirds of the time. Who needs the
# letters no longer should open everything. (At the same small rate: at a high one, everything at
# once loses the letters altogether, [chapter 6](06_unfreezing.ipynb).)
#
# Little compute, and any images: adapters. LoRA and its controls on a transformer of letters, which
# reads digits behind blinds (far), and on the ImageNet network with photographs of clothes (near).
# 30 labels a class, the same 120 steps after the same head, each at its own best rate, five draws.

# %% tags=["plumbing"]
adapted = tlk.results("adapters", part="draws", method=["head", "last block", "LoRA", "full"])
rows = []
for task_name, place in (("blinds", "far"), ("clothes", "near")):
    there = adapted.where(task=task_name)
    accuracy = there.scores("method", scale=100)
    seconds = there.scores("method", value="seconds")
    numbers = there.scores("method", value="parameters")
    for name, draws in accuracy.items():
        mean = round(float(np.nanmean(seconds[name])), 1)
        rows.append([f"{task_name}, {place}", name, draws, int(numbers[name][0]), mean])
header = ["images", "what learns", "balanced accuracy (%)", "numbers that learn", "seconds"]
tlk.table(rows, header)

# %% tags=["nbval-check-output"]
far = adapted.where(task="blinds").scores("method", scale=100)
rows = [[f"LoRA against {name}", far["LoRA"] - far[name]] for name in ("head", "full")]
tlk.table(rows, ["digits behind blinds", "ahead by (points)"], note=adapted.note)

# %% [markdown]
# The row holds in what it promises, with a tenth of the numbers: far away LoRA is 17 points ahead of
# the head and a tie with every block. Near, all four are within two points: LoRA is a tie with the
# head (1.1 ± 1.0 ahead), at more than 20 times its seconds, and with every block (1.1 ± 0.6 behind).
# And *little compute* has to be read as little memory: it takes about as long as every block.
#
# Hardly any labels: pretraining on your own pictures first. Two starts, with `lesions` (synthetic):
# from nothing, a small network read by a linear classifier, or without pictures trained whole (8.8);
# and from ImageNet, fine-tuned for 40 steps (10.3). *Views* are two crops of one picture, *pairs* two pictures of one lesion.

# %% tags=["plumbing"]
few = {"labels_per_class": [5, 30]}
nothing = tlk.results("selfsupervised", part=["probe", "scratch"], **few)
nothing = nothing.scores("method", "labels_per_class", scale=100)
begun = tlk.results("pretraining", part="tune", **few)
begun = begun.scores("method", "labels_per_class", scale=100)
rows = {"from nothing: the labels alone": nothing["from scratch"],
        "from nothing: views first": nothing["views"],
        "from nothing: pairs first": nothing["lesion pairs"],
        "from ImageNet: the labels alone": begun["ImageNet"],
        "from ImageNet: views first": begun["views"],
        "from ImageNet: pairs first": begun["lesion pairs"],
        "the same, 220 steps: the labels alone": begun["ImageNet, longer"],
        "the same, 220 steps: pairs first": begun["lesion pairs, longer"]}  # fmt: skip
tlk.table(rows, "labels a class; balanced accuracy (%)")

# %% tags=["nbval-check-output"]
starts = {"nothing, views": nothing["views"][5].mean() - nothing["from scratch"][5].mean(),
          "nothing, pairs": nothing["lesion pairs"][5].mean() - nothing["from scratch"][5].mean(),
          "ImageNet, views": begun["views"][5] - begun["ImageNet"][5],
          "ImageNet, pairs": begun["lesion pairs"][5] - begun["ImageNet"][5],
          "ImageNet, pairs, 220 steps":
              begun["lesion pairs, longer"][5] - begun["ImageNet, longer"][5]}  # fmt: skip
tlk.table(list(starts.items()), ["start, and first", "gain at 5 labels a class (points)"])

# %% [markdown]
# With five labels a class views gain nothing from either start. Pairs, which know that two pictures
# show one thing, gain seven or eight points from nothing and five from ImageNet; in a single draw of
# 40 steps that may be one or ten, with 220 it is four to six. With 30 labels from nothing views gain
# five points and pairs thirteen; from ImageNet, with 220 steps, pairs are a tie. So the row is worth
# its price where you know more of your pictures than their pixels; and from ImageNet the labels alone
# are ahead of all that begins from nothing, with 30 labels once they get their 220 steps.

# %% [markdown]
# ## How far, without labels?
#
# A probe needs a few labels. Without any, you can still ask how far your images lie from those the
# network knows, in what its last block makes of them. `tlk.measure_shift` gives their [energy
# distance](https://doi.org/10.1016/j.jspi.2013.03.018), 0 where the network sees no difference and 1
# at most, beside what two halves of the known images reach. Here for digits of another draw, and for
# the same behind blinds:

# %%
known, images = validation[0], train[0]
stripes = 128 + 127 * np.sin(1.3 * np.arange(setting.image_size))[:, None]
shifts = {"another draw": tlk.measure_shift(backbone, known, images),
          "behind blinds": tlk.measure_shift(backbone, known, np.abs(images - stripes))}  # fmt: skip
for name, shift in shifts.items():
    print(f"{name}: {shift}")

# %% tags=["nbval-check-output"]
tlk.table([[name, str(shift.differs)] for name, shift in shifts.items()], ["images", "they differ"])

# %% [markdown]
# Is that the shift of the guide? Letters, which this network learned from, against other images,
# three draws each. Beside the distance what it should tell: how much was gained, with 30 labels a
# class, by the best depth over the head, and by opening the bottom over the last block. (Tiles, wave
# and rows mixed are digits changed by hand, a single draw; blinds, letters and lesions are synthetic.)

# %% tags=["plumbing"]
shift = tlk.results("shift", network="glyph_resnet", source="letters")
depths = tlk.results("depths", labels_per_class=30, part=["grid", "where", "shift"])


def gains(target):
    if target not in {row["target"] for row in depths}:
        return "-", "-"
    at = depths.where(target=target).scores("depth", scale=100)
    bottom = at.get("first 2", at.get("bottom")) - at["last 1"]
    if "head" not in at:
        return "-", bottom
    best = max((at[depth] for depth in ("last 1", "last 2", "all")), key=np.mean)
    return best - at["head"], bottom


# %% tags=["plumbing"]
order = ("letters", "digits", "printed digits", "clothes", "lesions", "tiles", "wave", "rows mixed",
         "blinds")  # fmt: skip
distances = shift.scores("target", value="distance", scale=100)
rows = []
for target in order:
    probes = [row["serves"] for row in shift.where(target=target)]
    serves = "-" if np.isnan(probes).any() else f"{sum(probes):.0f} of 3"
    rows.append([target, distances[target], serves, *gains(target)])

# %% tags=["nbval-check-output"]
header = ["images", "distance (%)", "probe: the last block serves", "best depth over head (points)",
          "bottom over last block (points)"]  # fmt: skip
tlk.table(rows, header, note=shift.note)

# %% [markdown]
# **It is not.** Among digits changed by hand (a draw each) a longer distance does go with more to gain
# at the bottom. Across kinds of images it says little: lesions and clothes are nearer to letters than
# tiles are, and yet, with the last block open, tiles are read at 95 % and lesions at 28 %, and of
# clothes the frozen features read no more than the pixels (75 %, `tlk.results("tasks")`). No
# threshold separates what the head can do from what it cannot. (A classifier that tells both sides
# apart says even less: it is right nine times in ten for printed digits, of which frozen features
# read 98 %, and nearly always for tiles.)
#
# Nor is a short distance harmless. From dermatoscope to phone it is 2 % (`efficientnet_lite0`), and
# from printed to handwritten digits 2 %, too. What learned from the one loses 14 and 22 points on
# the other, as [chapter 08_04](08_04_domain_adaptive.ipynb) measured.
#
# So `tlk.recommend` takes a distance only where there is none: alike is a low shift. Where images
# differ it asks for a probe. The probe has a hole, too: it finds lesions far, and blinds near in two
# of three draws, though training every block gains 16 points there. It compares what the blocks know,
# not what they could learn. That is what validation is for.

# %% [markdown]
# ## Where it fails
#
# - **Far, and where?** The guide opens blocks from the top. Where the data differ in their pixels
#   (stripes, another scanner, night), the bottom has to learn, too.
# - **Sizes are ImageNet's.** Its "few" are 10,000 images; on fifty, the rates of its recipes do not
#   get anywhere in an epoch. `tlk.recommend` raises them, tenfold at most, and says so.
# - **A probe compares blocks as they are.** Where all of them read badly it says that the last one
#   serves. Look at the accuracy, too.
# - **Ties.** Near the source its answers differ in cost alone. That is no failure, but do not read a
#   ranking into it.
#
# So take the guide's answer as the first run, not as the last: probe, train, look
# ([chapter 09](09_pitfalls.ipynb)), and let validation decide.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: three customers
#
# What do you tell them? (a) 3,000 photographs of leaves, an ImageNet network, a laptop. (b) 60,000
# chest X-rays, an ImageNet network, a GPU for the evening. (c) 200,000 satellite images and a
# cluster.

# %% [markdown] tags=["hint"]
# `tlk.recommend(images=..., shift="low" or "high", compute="low", "medium" or "high").strategy`

# %% tags=["answer"]
customers = {"leaves": (3_000, "low", "low"), "X-rays": (60_000, "high", "medium"),
             "satellite": (200_000, "high", "high")}  # fmt: skip
rows = [[name, tlk.recommend(*facts).strategy] for name, facts in customers.items()]
tlk.table(rows, ["customer", "first strategy"])

# %% [markdown] tags=["answer"]
# Leaves look like what ImageNet is made of, so the head alone; X-rays do not, but there are enough of
# them for two to four blocks; and 200,000 images with a cluster can teach every block.

# %% [markdown] tags=["question"]
# ### Exercise 2: which fact matters most?
#
# For 8,000 images, change one fact at a time from `shift="low"`, `compute="medium"`. Which change
# gives another strategy?

# %% [markdown] tags=["hint"]
# Three calls: `shift="high"`; `compute="low"`; and `images=80_000`.

# %% tags=["answer"]
asked = [(8_000, "low", "medium"), (8_000, "high", "medium"), (8_000, "low", "low"),
         (80_000, "low", "medium")]  # fmt: skip
rows = [[f"{facts[0]:,}", *facts[1:], tlk.recommend(*facts).strategy] for facts in asked]
tlk.table(rows, ["images", "shift", "compute", "first strategy"])

# %% [markdown] tags=["answer"]
# Every one of them. The shift is the one you know least about, and a probe measures it in seconds:
# start there.

# %% [markdown]
# ## What to remember
#
# - Four facts give a first strategy: images, shift, compute, labels. The shift a probe measures, with
#   a few labels; a distance without labels does not.
# - Near the source most strategies tie; choose the cheapest. Far away depth counts, and *where* the
#   data differ says which blocks.
# - A guide is a first run. Probe, train, look, and let validation decide.
#
# **Then:** the [cheat sheet](cheatsheet.md) has all of it on a page.
