# %% [markdown]
# # 7 · Choosing layers: how deep to unfreeze, and how fast
#
# **The question.** Which layers do I unfreeze, and at which learning rate?
#
# **The promise.** In about a minute on two cores you probe a network before you train it, and can
# say when a probe's advice is a tie; you follow three well-known recipes word for word, see what
# they reach on 200 photographs, and know the one number to change for data as small as yours; and
# you let a sweep suggest a learning rate. *(Section 1.7 of the course; no internet needed.)*

# %%
import tlkeras as tlk
import keras
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("07")
tlk.accelerate(quiet=True)  # sets Keras up for the devices there are

# %% [markdown]
# ## The idea
#
# A network is a row of **[blocks](glossary.md#block)**, from the bottom, which sees edges, to the
# top, which sees things. On it sits a new **[head](glossary.md#head)**, which names your classes.
# To **[unfreeze](glossary.md#freeze)** a block is to let it learn (chapter 6 does it by hand).
# Moving house is much the same choice: a coat of paint, a new kitchen, or down to the walls? Three
# rules of thumb say where to begin. There is no one answer, and each rule is measured here.
#
# ## Rule 1: look at your data
#
# | your data | for example | let learn |
# |---|---|---|
# | very small, *and* similar | cats → dogs | the head, perhaps the last block |
# | medium, *or* somewhat different | photographs → medical scans | 2 to 4 blocks |
# | large, *or* far away | photographs → satellite images | everything |
#
# Very small first. Five and ten labels a class, from ImageNet photographs to four targets: a
# classifier on features of the frozen network (of the block that serves best on validation),
# against all of the network fine-tuned (after its head, at the better of two rates on validation).
# `lesions` and `scenes` are synthetic.

# %% tags=["plumbing"] alt="Bars for four targets at five labels a class. Clothes: frozen 71.9, fine-tuned 68.4. Digits: frozen 86.9, fine-tuned 81.5. Lesions: frozen 44.7, fine-tuned 45.8. Scenes: frozen 35.0, fine-tuned 36.4. The spreads of the last two overlap."
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
# The rule holds. With five labels a class, fine-tuning costs three points on `clothes` and five on
# `digits`, and ties on the other two. With ten, only the coloured shapes of `scenes` seem to gain
# from it: five points, with a spread as large. (The comparison is not of depth alone: the frozen
# side may also pick an earlier block. Rule 3 comes back to that.)
#
# Now distance and amount, where every depth gets as many steps, with a small network that knows
# printed letters. `digits` are near to those; digits behind **blinds**, synthetic stripes that
# invert them, are far. Mean ± spread of three draws.

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
# Near the source there is nothing to win by going deep: 99 % at any depth with 30 labels, and two
# points to lose with five. Far away, everything is best in every row: ten to sixteen points above
# the head, two to four above the last two blocks. (At equal steps. A head with more time would come
# nearer: chapter 6.) One reason: rule 1 asks how *far* the data are, not *where* they differ.
# Stripes are a matter of pixels, which the bottom sees first, and whoever opens blocks from the top
# reaches it last.
#
# ## Rule 2: look at your budget
#
# On a laptop keep most layers frozen; with a cluster go deeper, and mind the rates. What a depth
# costs, in the same runs behind blinds with 30 labels a class:

# %% tags=["plumbing"]
far = grid.where(target="blinds", labels_per_class=30)
spent, gained = far.scores("depth", value="seconds"), far.scores("depth", scale=100)
rows = [
    [label, int(far.where(depth=depth).rows[0]["parameters"]), spent[depth], gained[depth]]
    for depth, label in DEPTHS.items()
]
tlk.table(rows, ["what learns", "numbers that learn", "seconds", "balanced accuracy (%)"])

# %% [markdown]
# **Numbers that learn are not the price.** The last block alone holds two thirds of them, and is
# cheap, because all below it is frozen: the outputs of frozen blocks are computed *once*. The
# bottom has few numbers and much of the work. (The seconds are of one machine; take their order.)
#
# ## Rule 3: probe before you commit
#
# Rather than believe a rule, ask the network: train a [linear classifier](glossary.md#linear-probe)
# on what each block puts out, and nothing else. By hand it is the frozen network's output, averaged
# over the picture, and scikit-learn. 20 labelled photographs of each kind of clothes:

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
train, (images, labels) = task.arrays("train"), task.arrays("validation")
few = images[:200], labels[:200]  # 200 validation pictures, as many a small project has

# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
seen, new = (backbone.predict(x, verbose=0).mean(axis=(1, 2)) for x in (train[0], few[0]))
classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
by_hand = classifier.fit(seen, train[1]).score(new, few[1])
print(f"Read off the last block: {by_hand:.1%} of {len(new)} validation pictures")

# %% [markdown]
# `tlk.probe` does this for every block, in one pass over the pictures, and says in a second table what
# each choice would cost on this machine.

# %%
probe = tlk.probe(backbone, train, few, strength=1.0)  # as strict as the one by hand
probe

# %% [markdown]
# Before you act on such a table, ask what a difference in it is worth. A share of 200 pictures is
# uncertain by about six points either way, as in any poll: that is the column *interval*. (*LogME*,
# [You and others 2021](https://arxiv.org/abs/2102.11005), rates features from the training pictures
# alone: higher is better.) By hand, in the textbook's form, which can differ from the column by a
# point:


# %%
def interval(accuracy, pictures):
    """Where the true share lies, with 95 % confidence."""
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / pictures)
    return f"{100 * (accuracy - half):.0f} to {100 * (accuracy + half):.0f}"


print(f"{interval(probe.accuracies[-1], 200)} % for the last block")

# %% [markdown]
# In this draw the fourth block reads eleven pictures of 200 more than the last. The two intervals
# overlap, and still `probe` calls it no tie: both blocks have read the *same* pictures, so only those
# count on which they differ ([McNemar 1947](https://doi.org/10.1007/BF02295996)). With `SEED = 1` it
# is eight pictures, with `SEED = 2` one, and those are ties. **Five pictures of 200 are a tie**, and
# eleven the least that is not. More pictures to judge by make the interval narrow, and they are the
# cheaper kind, for nothing is trained on them:

# %% tags=["nbval-check-output"]
share = 0.8  # about what the best block reads
widths = [[n, 196 * np.sqrt(share * (1 - share) / n)] for n in (50, 200, 1000)]
tlk.table(widths, ["validation pictures", "interval, ± points"], digits=0)

# %% [markdown]
# With all 1,000 the lead is real (exercise 2): photographs of clothes are better described by the
# middle of an ImageNet network than by its top, which was made for ImageNet's own thousand names.
#
# A probe that is good **enough** ends the matter: in seconds, and full fine-tuning is never paid
# for. Where it is not, open the last block, look again, and so on down: the rule says *gradually*.
# Behind blinds that is a long climb to where the straight way also ends: the head alone reads 76 %,
# the last block 84, the last two 89, all of it 93 (the table of rule 2).
#
# ## Recipes A, B and C, word for word
#
# Three recipes are passed from hand to hand. **Recipe A** is for small data, by which its authors
# mean about 10,000 images: the head at 1e-3 with all else frozen, then the last block too, at 1e-5,
# each until validation accuracy stops improving (three epochs without, here).

# %%
plan_a = tlk.recipes.recipe_a(head_epochs=100, tune_epochs=30)
plan_a

# %% [markdown]
# **Recipe B**, for about 50,000 images: the head at 1e-4, then two to four blocks at
# **[discriminative](glossary.md#discriminative-learning-rates)** rates, 1e-4 in the head, 1e-5 in
# top blocks, 1e-6 below. Augmentation, dropout and weight decay keep so many numbers from learning
# the images by heart.

# %%
flip = keras.layers.RandomFlip("horizontal", seed=0)
plan_b = tlk.recipes.recipe_b(head_epochs=100, tune_epochs=10, blocks=2, augment=flip)
plan_b = tlk.Plan([stage.replace(views=2) for stage in plan_b.stages])  # two flips, drawn once
plan_b

# %% [markdown]
# **Recipe C**, for large data or a far domain: everything at 1e-6, under strong regularisation.
# Dropout goes into the head (`add_head(..., dropout=0.5)`), weight decay into the optimizer. If
# there are images without labels, pretrain on them first (section 1.8).

# %%
plan_c = tlk.recipes.recipe_c(epochs=5, augment=flip)
plan_c

# %% [markdown]
# Twenty labels a class are 200 photographs of clothes, 140 synthetic lesions. What the recipes
# reach there, as they are written (rates times 1), and with one change that is explained below. A
# row with ± has two or three draws; those of B and C are **single draws**, good for differences of
# many points only.

# %% tags=["plumbing"]
runs = tlk.results("choosing", part="recipe")
for name, plan in (("A", plan_a), ("B", plan_b), ("C", plan_c)):
    # What is printed above is what was measured.
    assert {row["plan"] for row in runs.where(what=name, scale=1)} == {str(plan)}, name
rows = []
for kind in sorted({(row["what"], row["scale"], row["task"]) for row in runs}):
    found = runs.where(what=kind[0], scale=kind[1], task=kind[2])
    score = found.scores("what", scale=100)[kind[0]]
    moved = f"{np.mean(found.scores('what', value='drift')[kind[0]]):.4f}"
    epochs = ", ".join(str(row["epochs"]) for row in found)
    rows.append([kind[0], f"{kind[1]:g}", kind[2], score, moved, epochs])
header = ["recipe", "rates times", "task", "test (%)", "moved (%)", "epochs of each draw"]
tlk.table(rows, header, note=runs.note)

# %% [markdown]
# Chance is 10 % on `clothes` and 14 on `lesions`. **A works as it is written, and so did B in its
# one draw**, on a fiftieth and a 250th of the images that they are meant for, if they are given the
# epochs: A's head learned for 9 to 14 of them, B's, at a tenth of the rate, for 80, and both reach
# 70 to 72 % of the clothes. All of that is the head's work: the second stages moved the backbone by
# less than a hundredth of a percent. **C does not arrive**: its new head has the same 1e-6 as all
# the rest. A's head took a dozen epochs at 1e-3; at 1e-6 that would be thousands, and we stopped
# after five.
#
# ## A recipe has a size
#
# AdamW moves a number by about its learning rate a step, whatever the gradient. So **steps times
# rate** is how far a weight can travel, and 200 images have few steps in an epoch.

# %% tags=["nbval-check-output"]
kernels = np.concatenate([w.ravel() for w in backbone.get_weights() if w.ndim == 4])
rows = [["a typical weight of the backbone", "", kernels.std()]]
for pictures in (10_000, 200):
    steps = 30 * -(-pictures // 32)  # 30 epochs in batches of 32
    rows.append([f"recipe A, {pictures:,} images, at most", steps, steps * 1e-5])
tlk.table(rows, ["30 epochs at 1e-5", "steps", "size or way"], digits=3)

# %% [markdown]
# Thirty epochs of 10,000 images let a weight change by its own size, thirty of 200 by a fortieth of
# that. There are two ways out: 50 times the epochs, or, to stay at a laptop, rates times what the
# steps lack: 10,000 / 200 = 50, `recipe_a(scale=50)`. That is the one change in the second row of A
# above. It does what it should, the backbone moves 50 times as far; and it gains nothing: 72 ± 3
# (two draws) against 71 ± 1 is a tie. For C the change is what makes it run at all: 12 % as
# written, 74 with its rate times 500 (for 100,000 images; section 1.7 gives C no number, that one
# is ours): single draws, but 60 points apart. Before you turn the rates up, ask the probe whether
# there is anything to win: block4-5 reads 79 % (exercise 2), more than any recipe reached.
#
# ## How fast: the learning rate
#
# The rate is the pace. At 1e-3 a network skims the book and may skip what matters; at 1e-6 it
# studies every page, if it gets that far. Behind blinds, all blocks of the small network went on
# from a trained head at five rates, a hundred steps each (three draws):

# %% tags=["plumbing"] alt="Line plot of test accuracy against the learning rate on a log axis: about 71 % at 1e-6, 73 at 1e-5, 82 at 1e-4, 92 at 1e-3, and 10, which is chance, at 1e-2."
sweep = tlk.results("depths", part="sweep")
title = "The best rate lies just below ruin\n(digits behind synthetic stripes)"
curve = {"all blocks": dict(sorted(sweep.scores("rate", scale=100).items()))}
level = (float(np.mean(gained["head"])), "the head alone")
tlk.plots.curves(curve, x="learning rate", title=title, log=True, level=level)

# %% tags=["nbval-check-output"]
moved = sweep.scores("rate", value="drift")
rows = [[f"{rate:g}", moved[rate]] for rate in sorted(moved)]
tlk.table(rows, ["learning rate", "backbone moved (% of its size)"], digits=2)

# %% [markdown]
# Ten times the rate moves the backbone five to ten times as far: steps times rate again. The best
# pace lies just below ruin, and slower was not more accurate: it did not arrive. Small rates are
# careful where there are steps enough to get somewhere.
#
# Your own data will have other numbers. `tlk.find_learning_rate` trains a few batches at ever
# higher rates, suggests the one at which the loss falls fastest, and puts the weights back ([Smith
# 2017](https://arxiv.org/abs/1506.01186)).

# %% alt="Line plot of the smoothed loss against the learning rate on a log axis: it falls from about 6 at 0.00001 to below 2 near 0.01, and shoots up beyond 0.1; a dashed line near 0.001 marks the suggestion."
keras.utils.set_random_seed(SEED)
model = tlk.add_head(backbone, len(task.classes))
head = tlk.policies.head_only()
found = tlk.find_learning_rate(model, train, policy=head, lowest=1e-5, steps=60, batch_size=16)
found.plot()

# %% [markdown]
# For a new head on these photographs it suggests about 1e-3 (three draws: 6e-4 to 1.3e-3), which is
# what recipe A has. The loss is lowest ten times higher, and past 0.1 it explodes; between
# suggestion and lowest point nearly any rate will do for a head. For pretrained blocks it would
# not: at 1e-2 the small network above was ruined. No one rate serves both, so **different parts
# learn at different rates**: the head, which starts from nothing, fast; the blocks, which know
# something, with care. Recipe A does it in turn, recipe B at once.

# %% [markdown]
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: recipe A for 2,000 images
#
# You have 2,000 labelled images. Write down recipe A for them.

# %% [markdown] tags=["hint"]
# What its steps lack against 10,000 images, its rates must make up for: `recipe_a(scale=...)`.

# %% tags=["answer"]
tlk.recipes.recipe_a(scale=10_000 / 2_000)

# %% [markdown] tags=["answer"]
# A fifth of the images is a fifth of the steps in an epoch, so the rates grow by five: 5e-3 for the
# head and 5e-5 for the last block. The other way is to keep the rates and train five times as many
# epochs; for the head, whose features are computed once, that is the safer one.

# %% [markdown] tags=["question"]
# ### Exercise 2: more pictures to judge by
#
# Probe again with all 1,000 validation pictures. Does the advice change, and does the interval
# still leave it open?

# %% [markdown] tags=["hint"]
# `images, labels` hold all of them; `tlk.probe(backbone, train, (images, labels), strength=1.0)`,
# and `interval` with 1,000.

# %% tags=["answer"]
again = tlk.probe(backbone, train, (images, labels), strength=1.0)
pairs = zip(again.blocks, again.accuracies, strict=True)
rows = [[block, 100 * score, interval(score, len(labels))] for block, score in pairs]
tlk.table(rows, ["outputs of", "accuracy (%)", "95 % interval"])

# %% [markdown] tags=["answer"]
# In this draw block4-5 reads 79 %, the last block 74. In two more draws the lead is three points, and
# on a thousand pictures `probe` calls none of the three a tie. That is how a tie is broken: more
# pictures to judge by, or more draws, not a longer look at one table.

# %% [markdown] tags=["question"]
# ### Exercise 3: when would you stop?
#
# Behind blinds, with 30 labels a class, 80 of 100 are enough for you. You open one block after
# another, from the top. Where do you stop, and what have you spent, against opening everything at
# once?

# %% [markdown] tags=["hint"]
# `spent` and `gained`, of rule 2, hold seconds and balanced accuracy of every depth. Each step of
# the climb is paid for, those that did not reach far enough as well.

# %% tags=["answer"]
rows = [["head, then last block", spent["head"] + spent["last 1"], gained["last 1"]]]
rows.append(["everything", spent["all"], gained["all"]])
tlk.table(rows, ["what learns", "seconds", "balanced accuracy (%)"])

# %% [markdown] tags=["answer"]
# At the last block: the head reads 76 %, the last block 84. Both together take half the time of
# everything, though you pay for the head twice. If you had wanted 90, you would have paid for the
# head, one block, two blocks and all of them: twice as much as going there at once. A probe pays
# where the answer may be "enough".

# %% [markdown]
# ## What to remember
#
# - Little data near the source: the head; much, or far: deeper, and ask *where* the data differ.
# - Probe first, and hold a difference against its interval: five pictures of 200 are a tie.
# - A recipe has a size: steps times rate is how far it gets. On less data train longer, or faster.
#
# **Then:** other ways to use a pretrained network, [section 1.8](08_01_feature_extraction.ipynb).
