# %% [markdown]
# # 7 · Choosing layers: how deep to unfreeze, and how fast
#
# **The question.** Which layers do I unfreeze, and at which learning rate?
#
# **The promise.** In less than a minute on two cores you probe a network before you train it, and
# can tell when the probe's advice is a tie. You follow three well-known recipes word for word, see
# what they reach on 200 photographs, and learn the one number to change for data as small as yours.
# And you let a sweep suggest a learning rate. *(Section 1.7 of the course; no internet needed.)*

# %%
import tlkeras as tlk
import keras
import numpy as np

SEED = 0  # change it for another draw of labels and another run
setting = tlk.setting("07")
tlk.accelerate(quiet=True)  # sets Keras up for the available devices

# %% [markdown]
# ## The idea
#
# A network is a row of **[blocks](glossary.md#block)**, from the bottom, which sees edges, to the
# top, which sees things. On top sits a new **[head](glossary.md#head)**, which names your classes.
# To **[unfreeze](glossary.md#freeze)** a block is to let it learn (chapter 6 does it by hand).
# Moving into a new house is much the same choice: a coat of paint, a new kitchen, or down to the
# walls? Three rules of thumb say where to begin. There is no one answer, and each rule is measured
# here.
#
# ## Rule 1: look at your data
#
# | your data | for example | let learn |
# |---|---|---|
# | very small, *and* similar | cats → dogs | the head, perhaps the last block |
# | medium, *or* somewhat different | photographs → medical scans | 2 to 4 blocks |
# | large, *or* far away | photographs → satellite images | everything |
#
# Very small data first: five and ten labels per class, from ImageNet photographs to four targets.
# We compare a classifier on features of the frozen network (from the block that does best on
# validation) with fine-tuning of the whole network (after its head, at the better of two learning
# rates on validation). `lesions` and `scenes` are synthetic.

# %% tags=["plumbing"] alt="Bars for four targets at five labels per class. Clothes: frozen 71.9, fine-tuned 68.4. Digits: frozen 86.9, fine-tuned 81.5. Lesions: frozen 44.7, fine-tuned 45.7. Scenes: frozen 35.0, fine-tuned 36.4. The spreads of the last two overlap."
few = tlk.results("tasks", preset="efficientnet_lite0", method=["frozen", "fine-tuned"])
targets = {"clothes": "clothes", "digits": "digits", "lesions": "lesions (synthetic)",
           "scenes": "scenes (synthetic)"}  # fmt: skip
groups = {
    f"{label}, 5 labels": few.where(task=name, labels_per_class=5).scores("method", scale=100)
    for name, label in targets.items()
}
tlk.plots.bars(groups, title="Very small data: frozen is as good or better")

# %% tags=["nbval-check-output"]
ten = few.where(task=list(targets), labels_per_class=10)
ten.mean_by("task", "method", scale=100)

# %% [markdown]
# The rule holds. With five labels per class, fine-tuning costs three points on `clothes` and five
# on `digits`, and ties on the other two. With ten, only the coloured shapes of `scenes` seem to
# gain from it: five points, with a spread that is just as large. (Depth is not the only difference
# here: the frozen features may also come from an earlier block. Rule 3 comes back to that.)
#
# Now distance and amount of data, with the same number of training steps for every depth. The
# network is a small one that knows printed letters. `digits` are close to those; digits behind
# **blinds**, synthetic stripes that invert them, are far away. Mean ± spread of three draws.

# %% tags=["plumbing"]
DEPTHS = {"head": "head", "last 1": "last block", "last 2": "last 2", "all": "all 4 blocks"}
grid = tlk.results("depths", part="grid", target=["digits", "blinds"])
rows = []
for target, place in (("digits", "near: digits"), ("blinds", "far: behind blinds")):
    for labels in (5, 30, 0):
        found = grid.where(target=target, labels_per_class=labels).scores("depth", scale=100)
        rows.append([f"{place}, {labels or 'all'} labels", *(found[depth] for depth in DEPTHS)])
tlk.table(rows, ["target", *DEPTHS.values()], note=grid.note)

# %% [markdown]
# Close to the source there is nothing to gain by going deep: 99 % at any depth with 30 labels, and
# two points to lose with five. Far away, training everything is best in every row: ten to sixteen
# points above the head, and two to four above the last two blocks. (This is at equal steps. A head
# with more time would come closer: chapter 6.) One reason is that rule 1 asks how *far* the data
# are, not *where* they differ. Stripes are a matter of pixels, which the bottom sees first, and if
# you unfreeze blocks from the top, you reach the bottom last.
#
# ## Rule 2: look at your budget
#
# On a laptop, keep most layers frozen. With a cluster, go deeper, and be careful with the learning
# rates. The next table shows what each depth costs, in the same runs behind blinds with 30 labels
# per class:

# %% tags=["plumbing"]
far = grid.where(target="blinds", labels_per_class=30)
spent, gained = far.scores("depth", value="seconds"), far.scores("depth", scale=100)
rows = [
    [label, int(far.where(depth=depth).rows[0]["parameters"]), spent[depth], gained[depth]]
    for depth, label in DEPTHS.items()
]
header = ["what is trained", "trained parameters", "seconds", "balanced accuracy (%)"]
tlk.table(rows, header)

# %% [markdown]
# **The number of trained parameters is not the price.** The last block alone holds two thirds of
# them, yet it is cheap, because everything below it is frozen: the outputs of frozen blocks are
# computed *once*. The bottom has few parameters and much of the computation. (The seconds are from
# one machine; only their order carries over.)
#
# ## Rule 3: probe before you commit
#
# Rather than trust a rule, ask the network: train a [linear classifier](glossary.md#linear-probe)
# on the output of each block, and nothing else. By hand, that is the frozen network's output,
# averaged over the image, and scikit-learn. We use 20 labelled photographs per class of clothes:

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
train, (images, labels) = task.arrays("train"), task.arrays("validation")
few = images[:200], labels[:200]  # 200 validation images, as a small project might have

# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
seen, new = (backbone.predict(x, verbose=0).mean(axis=(1, 2)) for x in (train[0], few[0]))
classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
by_hand = classifier.fit(seen, train[1]).score(new, few[1])
print(f"Linear probe on the last block: {by_hand:.1%} of {len(new)} validation images")

# %% [markdown]
# `tlk.probe` does this for every block, in one pass over the images. A second table says what each
# choice would cost on this machine.

# %%
probe = tlk.probe(backbone, train, few, strength=1.0)  # the same regularisation as by hand
probe

# %% [markdown]
# Before you act on such a table, ask what a difference in it is worth. A share of 200 images is
# uncertain by about six points either way, as in any poll: see the column *interval*. (*LogME*,
# [You and others 2021](https://arxiv.org/abs/2102.11005), rates features using the training images
# alone; higher is better.) Here is the interval by hand, in its textbook form, which can differ
# from the column by a point:


# %%
def interval(accuracy, count):
    """Return the 95 % confidence interval of an accuracy on `count` images, in %."""
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / count)
    return f"{100 * (accuracy - half):.0f} to {100 * (accuracy + half):.0f}"


print(f"{interval(probe.accuracies[-1], 200)} % for the last block")

# %% [markdown]
# In this draw the fourth block gets eleven more of the 200 images right than the last block. The
# two intervals overlap, and still `probe` does not call it a tie: both blocks have seen the *same*
# images, so only those count on which the two differ ([McNemar
# 1947](https://doi.org/10.1007/BF02295996)). With `SEED = 1` the lead is eight images and with
# `SEED = 2` one, and those are ties. **Five images in 200 are a tie**, and eleven is the smallest
# lead here that is not. More validation images make the interval narrower, and they are the
# cheaper kind of image, because nothing is trained on them:

# %% tags=["nbval-check-output"]
share = 0.8  # about the accuracy of the best block
widths = [[n, 196 * np.sqrt(share * (1 - share) / n)] for n in (50, 200, 1000)]
tlk.table(widths, ["validation images", "interval, ± points"], digits=0)

# %% [markdown]
# With all 1,000 the lead is real (exercise 2): photographs of clothes are better described by the
# middle of an ImageNet network than by its top, which was made for ImageNet's own thousand
# classes.
#
# If a probe is good **enough**, you are done within seconds and never have to pay for full
# fine-tuning. If it is not, unfreeze the last block, look again, and so on down: the rule says
# *gradually*. Behind blinds that is a long climb to a place you could have reached directly: the
# head alone gets 76 %, the last block 84, the last two 89, and all of it 93 (the table of rule 2).
#
# ## Recipes A, B and C, word for word
#
# Three recipes are widely passed around. **Recipe A** is for small data, by which its authors mean
# about 10,000 images: train the head at 1e-3 with everything else frozen, then the last block too,
# at 1e-5, each until validation accuracy stops improving (here: no improvement for three epochs).

# %%
plan_a = tlk.recipes.recipe_a(head_epochs=100, tune_epochs=30)
plan_a

# %% [markdown]
# **Recipe B**, for about 50,000 images: train the head at 1e-4, then two to four blocks at
# **[discriminative](glossary.md#discriminative-learning-rates)** rates, 1e-4 in the head, 1e-5 in
# the top blocks, 1e-6 below. Augmentation, dropout and weight decay keep so many parameters from
# learning the images by heart.

# %%
flip = keras.layers.RandomFlip("horizontal", seed=0)
plan_b = tlk.recipes.recipe_b(head_epochs=100, tune_epochs=10, blocks=2, augment=flip)
plan_b = tlk.Plan([stage.replace(views=2) for stage in plan_b.stages])  # two flips, drawn once
plan_b

# %% [markdown]
# **Recipe C**, for large data or a far domain: train everything at 1e-6, under strong
# regularisation. Dropout goes into the head (`add_head(..., dropout=0.5)`), weight decay into the
# optimizer. If there are images without labels, pretrain on them first (section 1.8).

# %%
plan_c = tlk.recipes.recipe_c(epochs=5, augment=flip)
plan_c

# %% [markdown]
# Twenty labels per class are 200 photographs of clothes, or 140 synthetic lesions. The table shows
# what the recipes reach there, first as they are written (rates times 1), then with one change
# that is explained below. A row with ± has two or three draws. Those of B and C are **single
# draws**, good only for differences of many points.

# %% tags=["plumbing"]
runs = tlk.results("choosing", part="recipe")
for name, plan in (("A", plan_a), ("B", plan_b), ("C", plan_c)):
    # The plans shown above are the ones that were measured.
    assert {row["plan"] for row in runs.where(what=name, scale=1)} == {str(plan)}, name
rows = []
for what, scale, target in sorted({(row["what"], row["scale"], row["task"]) for row in runs}):
    found = runs.where(what=what, scale=scale, task=target)
    score = found.scores("what", scale=100)[what]
    moved = f"{np.mean(found.scores('what', value='drift')[what]):.4f}"
    epochs = ", ".join(str(row["epochs"]) for row in found)
    rows.append([what, f"{scale:g}", target, score, moved, epochs])
header = ["recipe", "rates times", "task", "accuracy (%)", "backbone moved (%)", "epochs per draw"]
tlk.table(rows, header, note=runs.note)

# %% [markdown]
# Chance is 10 % on `clothes` and 14 on `lesions`. **A works as it is written, and so did B in its
# one draw**, on a fiftieth and a 250th of the images that they are meant for, as long as they get
# enough epochs. A's head was trained for 9 to 14 epochs and B's, at a tenth of the rate, for 80,
# and both reach 70 to 72 % on clothes. All of that is the work of the head: the second stages
# moved the backbone by less than a hundredth of a percent. **C does not arrive**: its new head has
# the same 1e-6 as everything else. A's head took a dozen epochs at 1e-3. At 1e-6 it would take
# thousands, and we stopped after five.
#
# ## A recipe has a size
#
# AdamW moves a weight by about its learning rate per step, whatever the gradient. So **steps times
# rate** is how far a weight can travel, and with 200 images there are few steps in an epoch.

# %% tags=["nbval-check-output"]
kernels = np.concatenate([w.ravel() for w in backbone.get_weights() if w.ndim == 4])
rows = [["a typical weight of the backbone", "", kernels.std()]]
for count in (10_000, 200):
    steps = 30 * int(np.ceil(count / 32))  # 30 epochs in batches of 32
    rows.append([f"recipe A, {count:,} images, at most", steps, steps * 1e-5])
tlk.table(rows, ["30 epochs at 1e-5", "steps", "size or distance"], digits=3)

# %% [markdown]
# Thirty epochs of 10,000 images let a weight change by its own size, thirty epochs of 200 images
# by a fortieth of that. There are two ways out. Train for 50 times the epochs. Or, to stay on a
# laptop, multiply the rates by the factor that is missing in steps: 10,000 / 200 = 50,
# `recipe_a(scale=50)`. That is the one change in the last row for A above. It does what it should:
# the backbone moves 50 times as far. But it gains nothing: 72 ± 3 (two draws) against 71 ± 1 is a
# tie. For C, the change is what makes it work at all: 12 % as written, 74 with its rate times 500
# (assuming 100,000 images; section 1.7 gives no number for C, so this one is ours). These are
# single draws, but 60 points apart. Before you turn the rates up, ask the probe whether there is
# anything to gain: block4-5 reaches 79 % (exercise 2), more than any recipe did.
#
# ## How fast: the learning rate
#
# The learning rate is the pace. At 1e-3 a network skims the book and may skip what matters; at
# 1e-6 it studies every page, if it gets that far. Behind blinds, we trained all blocks of the
# small network, starting from a trained head, at five rates for a hundred steps each (three
# draws):

# %% tags=["plumbing"] alt="Line plot of test accuracy against the learning rate on a log axis: about 71 % at 1e-6, 73 at 1e-5, 82 at 1e-4, 92 at 1e-3, and 10, which is chance, at 1e-2."
sweep = tlk.results("depths", part="sweep")
title = "The best rate is just below one that ruins the network\n(digits behind synthetic stripes)"
curve = {"all blocks": dict(sorted(sweep.scores("rate", scale=100).items()))}
level = (float(np.mean(gained["head"])), "the head alone")
tlk.plots.curves(curve, x="learning rate", title=title, log=True, level=level)

# %% tags=["nbval-check-output"]
moved = sweep.scores("rate", value="drift")
rows = [[f"{rate:g}", moved[rate]] for rate in sorted(moved)]
tlk.table(rows, ["learning rate", "backbone moved (% of its size)"], digits=2)

# %% [markdown]
# Ten times the rate moves the backbone five to ten times as far: steps times rate again. The best
# rate lies just below the rate that ruins the network, and slower was not more accurate: it did
# not arrive. Small rates are careful if there are enough steps to get somewhere.
#
# Your own data will need other numbers. `tlk.find_learning_rate` trains a few batches at higher
# and higher rates, suggests the one at which the loss falls fastest, and restores the weights
# ([Smith 2017](https://arxiv.org/abs/1506.01186)).

# %% alt="Line plot of the smoothed loss against the learning rate on a log axis: it falls from about 6 at 0.00001 to below 2 near 0.01, and shoots up beyond 0.1; a dashed line at 0.0006 marks the suggestion."
keras.utils.set_random_seed(SEED)
model = tlk.add_head(backbone, len(task.classes))
head = tlk.policies.head_only()
found = tlk.find_learning_rate(model, train, policy=head, lowest=1e-5, steps=60, batch_size=16)
found.plot()

# %% [markdown]
# For a new head on these photographs it suggests about 1e-3 (three draws: 6e-4 to 1.3e-3), which is
# what recipe A uses. The loss is lowest at a rate ten to twenty times higher, and past 0.1 it
# explodes. For a head, nearly any rate between the suggestion and the lowest point will do. For
# pretrained blocks it would not: at 1e-2 the small network above was ruined. No one rate suits
# both, so **different parts learn at different rates**: the head, which starts from nothing, fast;
# the blocks, which know something, with care. Recipe A does this one after the other, recipe B at
# the same time.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: recipe A for 2,000 images
#
# You have 2,000 labelled images. Write down recipe A for them.

# %% [markdown] tags=["hint"]
# Its rates must make up for the steps that are missing compared with 10,000 images:
# `recipe_a(scale=...)`.

# %% tags=["answer"]
tlk.recipes.recipe_a(scale=10_000 / 2_000)

# %% [markdown] tags=["answer"]
# A fifth of the images means a fifth of the steps per epoch, so the rates grow by five: 5e-3 for
# the head and 5e-5 for the last block. The other way is to keep the rates and train five times as
# many epochs. For the head, whose features are computed once, that is the safer one.

# %% [markdown] tags=["question"]
# ### Exercise 2: more images to judge by
#
# Probe again with all 1,000 validation images. Does the advice change, and does the interval still
# leave it open?

# %% [markdown] tags=["hint"]
# `images, labels` hold all of them. Use `tlk.probe(backbone, train, (images, labels),
# strength=1.0)`, and `interval` with 1,000.

# %% tags=["answer"]
again = tlk.probe(backbone, train, (images, labels), strength=1.0)
pairs = zip(again.blocks, again.accuracies, strict=True)
rows = [[block, 100 * score, interval(score, len(labels))] for block, score in pairs]
tlk.table(rows, ["linear probe on", "accuracy (%)", "95 % interval"])

# %% [markdown] tags=["answer"]
# In this draw block4-5 reaches 79 % and the last block 74. In two more draws the lead is three
# points, and on a thousand images `probe` does not call any of the three a tie. This is how you
# break a tie: with more validation images, or more draws, not with a longer look at one table.

# %% [markdown] tags=["question"]
# ### Exercise 3: when would you stop?
#
# Behind blinds, with 30 labels per class, 80 % is enough for you. You unfreeze one block after
# another, from the top. Where do you stop, and how much time have you spent, compared with
# unfreezing everything at once?

# %% [markdown] tags=["hint"]
# `spent` and `gained`, from rule 2, hold seconds and balanced accuracy for every depth. You pay
# for each step of the climb, including those that did not get far enough.

# %% tags=["answer"]
rows = [["head, then last block", spent["head"] + spent["last 1"], gained["last 1"]]]
rows.append(["everything", spent["all"], gained["all"]])
tlk.table(rows, ["what is trained", "seconds", "balanced accuracy (%)"])

# %% [markdown] tags=["answer"]
# At the last block: the head reaches 76 %, the last block 84. Both together take half the time of
# everything, although you pay for the head twice. If you had wanted 90, you would have paid for
# the head, one block, two blocks and all of them: twice as much as going there at once. A probe
# pays off where the answer may be "enough".

# %% [markdown]
# ## What to remember
#
# - Little data near the source: train the head. Much data, or far away: go deeper, and ask *where*
#   the data differ.
# - Probe first, and compare a difference with its interval: five images in 200 are a tie.
# - A recipe has a size: steps times rate is how far it gets. On less data train longer, or at a
#   higher rate.
#
# **Then:** other ways to use a pretrained network, [section 1.8](08_01_feature_extraction.ipynb).
