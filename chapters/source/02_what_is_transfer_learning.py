# %% [markdown]
# # 2 · What is transfer learning: what, when and how
#
# **The question.** A network has learned something. What of it can you take for your own task, when
# should you rather take nothing, and how do you take it?
#
# **What you will see.** One network, three tasks, three different answers. Handwritten digits want
# all of it. Styles of type want its first half and nothing above. And pictures of skin are told
# apart worse by this network than by **six numbers**, worse even than by the same network before it
# had learned anything. By the end you know why, and how to find such a case before it costs you.
#
# *Section 1.2 of the course. About a minute on two cores, no internet needed.*

# %%
import tlkeras as tlk

tlk.accelerate()

# %% [markdown]
# ## One network, three new tasks
#
# `glyph_resnet` learned one thing: to tell printed letters apart, whatever their font, their
# colours and the light. Chapter 1 showed them. Below are the tasks we want it for.

# %%
import keras
import numpy as np

SEED = 0  # another draw, another run
ONLINE = tlk.is_online()  # TLKERAS_PROFILE=online: cats and dogs, and tissue under a microscope
TARGETS = (
    ("cats_vs_dogs", "colorectal_histology") if ONLINE else ("digits", "glyphs/styles", "lesions")
)
BACKBONE, SIZE = ("EfficientNetB0", 64) if ONLINE else ("glyph_resnet", 32)
NEAR, FAR = TARGETS[0], TARGETS[-1]
tasks = {n: tlk.load_task(n, labels_per_class=30, seed=3 * SEED, image_size=SIZE) for n in TARGETS}

with tlk.plots.canvas(len(tasks), size=(7, 0.85 * len(tasks))) as (figure, axes):
    for axis, (name, task) in zip(axes, tasks.items(), strict=True):
        images, labels = task.arrays("train")[:2]
        strip = [images[labels == i % len(task.classes)][i // len(task.classes)] for i in range(12)]
        axis.imshow(np.hstack(strip).astype("uint8"))
        axis.axis("off")
        axis.set_title(f"{name}, {len(task.classes)} classes  {task.note}", fontsize=8)
figure

# %% [markdown]
# `digits` are real handwriting. `glyphs/styles` shows printed letters once more, synthetic ones,
# but asks another question: not which letter, but sans or serif, bold, italic or typewriter?
# `lesions` are drawings of skin by a program, of no medical validity; seven classes, as in a known
# collection of photographs. For each task you have 30 labelled images a class.
#
# ## Why anything transfers
#
# Somebody who rides a bicycle and is given a motorbike does not start from nothing: keeping upright
# and steering come along, and only clutch, gears and throttle are new. **Transfer learning** is
# that, for networks: what was learned on a *source* task, where data were plenty, is put to use on
# a *target* task, where they are few, and only the rest is learned anew. It works because knowledge
# is **reusable**: edges and strokes, in one direction or another, are in all of the pictures above,
# so whoever has detectors for them can use them again (chapter 5 shows them at work).
#
# A backbone pretrained on **ImageNet**, more than 14 million photographs of cats, buses, bananas
# and thousands of other things, brings detectors for shapes, edges and colours of nearly everything
# a camera sees. Ours is small and has seen letters only, which will turn out to be instructive.
# (With `TLKERAS_PROFILE=online` this chapter runs on ImageNet's.)
#
# The alternative is to learn it all from your own few hundred labels, which is like learning a
# language from a page of its dictionary. Where labels are made by experts, one by one, there are no
# more: in medicine (is this bone broken?) or in agriculture (which disease has this leaf?). There,
# transfer is often what makes the difference between a model and none. Often, not always; hence
# three questions to ask first.
#
# ## What can I transfer? All of it, or the early layers only?
#
# Ask the network itself. Give every block an output, averaged over the image, and see how much of
# the answer a **linear** classifier can read off there: a *linear probe*.


# %%
def reader(weights, seed=0):
    """A function from images to what each block says of them, averaged over the image."""
    keras.utils.set_random_seed(seed)
    backbone = tlk.load_backbone(BACKBONE, SIZE, weights)
    network = backbone if ONLINE else backbone.layers[-1]  # glyph_resnet lies behind its scaling
    cuts = [*(block.cut for block in tlk.find_blocks(backbone)[:-1]), network.output]
    said = keras.Model(network.input, [keras.layers.GlobalAveragePooling2D()(c) for c in cuts])
    model = said if ONLINE else keras.Model(backbone.input, said(backbone.layers[-2].output))
    return lambda images: model.predict(images, 200, verbose=0)


# %% [markdown]
# A score means little without rivals that know nothing. We take three that cost next to nothing:
# the same network with **random** weights, new ones for each draw; the bare **pixels**, every
# second one; and **six numbers**, the mean and the spread of an image's red, green and blue.


# %%
def six_numbers(images):
    return [np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)]


views = {  # of each, one for each of three draws of labels
    "pretrained": 3 * [reader("pretrained")],
    "random": [reader(None, 3 * SEED + k) for k in range(3)],
    "pixels": 3 * [lambda images: [images[:, ::2, ::2].reshape(len(images), -1)]],
    "six numbers": 3 * [six_numbers],
}

# %% [markdown]
# All of them are probed alike, with three draws of labels each. We are choosing, and test images
# are not for choosing, so scores are on **validation** images. The classes of `lesions` are very
# unequal; **balanced accuracy** counts the share found in each class and averages over classes.

# %%
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def probes(name, view, change=np.asarray):
    """Balanced accuracy in %: a row for each draw of labels, a column for each block."""
    draws, (new, truth) = data[name]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=0.01, max_iter=1000))
    rows = []
    for look, (images, labels) in zip(views[view], draws, strict=True):
        pairs = zip(look(change(images)), look(change(new)), strict=True)
        guesses = [probe.fit(seen, labels).predict(unseen) for seen, unseen in pairs]
        rows.append([100 * balanced_accuracy_score(truth, guess) for guess in guesses])
    return np.array(rows)


# %%
data = {}  # of each target: three draws of 30 labelled images a class, and the validation images
for name in TARGETS:
    others = [tlk.load_task(name, 30, 3 * SEED + k, image_size=SIZE) for k in (1, 2)]
    draws = [task.arrays("train")[:2] for task in (tasks[name], *others)]
    data[name] = draws, tasks[name].arrays("validation")[:2]
found = {(name, view): probes(name, view) for name in TARGETS for view in views}

# %%
blocks = tlk.find_blocks(tlk.load_backbone(BACKBONE, SIZE))
marks = {"pretrained": ("o-", "BLUE"), "random": ("s--", "ORANGE")}
with tlk.plots.canvas(1, len(TARGETS), size=(9, 3.6)) as (figure, axes):
    for axis, name in zip(axes, TARGETS, strict=True):
        ends = []
        for view in views:
            style, colour = marks.get(view, (":", "DARK"))
            scores, colour = found[name, view], getattr(tlk.plots, colour)
            if view in marks:
                axis.plot(blocks.names, scores.mean(axis=0), style, color=colour)
                axis.plot(blocks.names, scores.T, style[0], color=colour, alpha=0.3, markersize=3)
            else:
                axis.axhline(scores.mean(), color=colour, linestyle=style, linewidth=1)
            ends.append((scores[:, -1].mean(), view, colour))
        axis.set(title=f"{name}\n{tasks[name].note}", ylim=(10, None), xlabel="outputs of block")
        axis.tick_params("x", labelrotation=30)
        tlk.plots.name_lines(axis, len(blocks) - 1, ends)
    axes[0].set_ylabel("balanced accuracy of a linear probe (%)")
figure

# %% tags=["nbval-check-output"]
depth = {key: scores.mean(axis=0) for key, scores in found.items()}  # means over the runs
if not ONLINE:
    gain = depth["digits", "pretrained"][-1] - max(depth["digits", "random"])
    print("digits: the last block beats random networks by more than three points:", gain > 3)
    lost = max(depth["glyphs/styles", "pretrained"]) - depth["glyphs/styles", "pretrained"][-1]
    print("styles: the last block is five points below the best one:", lost > 5)
    harm = depth["lesions", "random"][-1] - depth["lesions", "pretrained"][-1]
    print("lesions: the last block is below that of random networks:", harm > 0)

# %% [markdown]
# Three answers to *what*.
#
# - **digits**: all of it. Each block adds to what the one below it knows.
# - **styles**: the early blocks. They have seen that a stroke is thick, or ends in a serif; a
#   linear classifier finds that there, and finds much less at the top. The same letters, but the
#   source task was to name a letter *whatever* its font, so the top has learned to forget exactly
#   what this target asks for.
# - **lesions**: nothing. At no depth is the trained network ahead of all its rivals, and the higher
#   you go, the further it falls behind them.
#
# ## When should I transfer, and when not?
#
# Look at the third panel again: the lowest line at the last block is the pretrained network.

# %% tags=["nbval-check-output"]
gap = depth[FAR, "six numbers"][0] - depth[FAR, "pretrained"][-1]
print("Six numbers beat what the pretrained network says by more than three points:", gap > 3)

# %% [markdown]
# This is **negative transfer**: with knowledge transferred, you do *worse on the target* than
# without it, with the same labels and on the same images. A low score alone is no negative
# transfer; on `styles` every rival is low as well.
#
# ### Why?
#
# A suspicion: letters come in all colours, so the source task paid the network for overlooking
# colour; but these lesions differ in colour. If that is right, the colour of an image should be
# missing from the features. Look for it: how well does a linear fit find an image's mean colour
# (brightness taken out) in the outputs of each block?


# %%
def tint(images):
    colour = images.mean(axis=(1, 2))
    return colour - colour.mean(axis=1, keepdims=True)


def tint_found(look):
    """Share in % of the variance of new images' tint that a linear fit finds, block by block."""
    new, images = data[FAR][1][0], np.concatenate([images for images, _ in data[FAR][0]])
    fit = make_pipeline(StandardScaler(), Ridge(10.0))
    pairs = zip(look(images), look(new), strict=True)
    return [100 * max(0, fit.fit(s, tint(images)).score(h, tint(new))) for s, h in pairs]


# %% tags=["nbval-check-output"]
told = {view: np.mean([tint_found(look) for look in set(views[view])], axis=0) for view in marks}
print("Each block of a random network has most of the tint:", min(told["random"]) > 50)
print("The pretrained one has lost it from the first block on:", max(told["pretrained"]) < 30)

# %% [markdown]
# Is that so for letters in general, or for this one network? The course has three more: two others
# that learned letters, and `scene_clip`, which learned coloured shapes and captions such as *a red
# ring*, so that it was paid for **seeing** colour. The same measurement on all four is stored, and
# so is what each is worth on `lesions` (`tools/measure_questions.py` and `tools/measure_tasks.py`).

# %%
import csv

from tlkeras.utils.paths import data_root


def stored(name, **wanted):
    """Scores in % from data/results/NAME.csv: those of the wanted rows."""
    with open(data_root() / "results" / f"{name}.csv") as file:
        rows = [row for row in csv.DictReader(file) if wanted.items() <= row.items()]
    return 100 * np.array([float(row["score"]) for row in rows])


# %%
networks = ("glyph_resnet", "glyph_resnet_small", "glyph_vit", "scene_clip")
ends, leads, kept = [], {}, {}
with tlk.plots.canvas(size=(7, 3.2)) as (figure, axis):
    for network, style in zip(networks, ("o-", "s--", "^:", "D-."), strict=True):
        case = {"preset": network, "task": "lesions", "labels_per_class": "30"}
        frozen, scratch = (stored("tasks", method=how, **case) for how in ("frozen", "scratch"))
        tints = stored("questions", experiment="tint", start=network).clip(min=0)
        line = axis.plot(np.linspace(0, 1, len(tints)), tints, style)[0]
        kept[network], leads[network] = tints[-1], frozen.mean() - scratch.mean()
        label = f"{network}: {scratch.mean():.1f} → {frozen.mean():.1f} %"
        ends.append((tints[-1], label, line.get_color()))
    tlk.plots.name_lines(axis, 1, ends)
    axis.set(xlabel="depth (0: first block, 1: last)", ylim=(-25, 105), yticks=range(0, 101, 25))
    axis.set(ylabel="tint found (%)", title="lesions: synthetic, no medical validity")
figure

# %% tags=["nbval-check-output"]
print("At its last block, the tint is kept by", [n for n in networks if kept[n] > 50])
print("On lesions, it is worth having", [n for n in networks if leads[n] > 0])

# %% [markdown]
# The names carry what each network has right on test, with 30 labels a class: from scratch →
# frozen, read off at its best block. All three networks of letters lose colour on the way up,
# whether they are made of convolutions or of attention, and none is worth having; the one that
# had to name colours keeps them, and is. That also depends on how much a network learns by
# itself, so compare like with like: from scratch, both transformers are poor. Letters take a
# point from that, and coloured shapes add twenty.
#
# So pretraining did not fail to learn colour, it learned to **remove** it. That early layers see
# edges *and colours* is true of networks that needed both. What is general in a network depends on
# what its source task asked for.
#
# A suspicion that fits is not yet an explanation. If colour is the reason, then on **grey**
# lesions, where nobody has any colour to use, the pretrained network must lose nothing, and its
# rivals must fall back to it.


# %%
def grey(images):
    return np.repeat(images.mean(axis=-1, keepdims=True), 3, axis=-1)


for view in views:
    found["lesions, grey", view] = probes(FAR, view, change=grey)
    depth["lesions, grey", view] = found["lesions, grey", view].mean(axis=0)
    before, after = max(depth[FAR, view]), max(depth["lesions, grey", view])
    print(f"{view:12} at its best: {before:.1f} % with colour, {after:.1f} % without")

# %% tags=["nbval-check-output"]
fell = {view: max(depth[FAR, view]) - max(depth["lesions, grey", view]) for view in views}
print("Without colour, random networks lose more than two points:", fell["random"] > 2)
print("and more than the pretrained one loses:", fell["random"] > fell["pretrained"] + 2)

# %% [markdown]
# That settles it: colour was the difference.
#
# ### Can training mend it?
#
# A frozen network cannot bring colour back, but one that is trained can. So train all of it, always
# by the same plan, and vary only what it **starts** from: pretrained weights, or random ones. That
# takes minutes, so it is stored, too (`data/results/questions.csv`, scores on test; each dot is
# another draw of labels, the bar their mean).

# %%
names = ("digits", "glyphs/styles", "lesions", "lesions, grey")
cases = [(name, start) for name in names for start in marks]
trained = {c: stored("questions", experiment="training", target=c[0], start=c[1]) for c in cases}
with tlk.plots.canvas(size=(6.5, 2.6), subplot_kw={"ymargin": 0.2}) as (figure, axis):
    for y, case in enumerate(cases[:3:-1]):
        dots, colour = trained[case], getattr(tlk.plots, marks[case[1]][1])
        axis.plot(dots, [y] * len(dots), "o", color=colour, alpha=0.5)
        axis.plot([dots.mean()], [y], "|", color=colour, markersize=18)
    axis.set_yticks(range(4), [f"{target}: from {start} weights" for target, start in cases[:3:-1]])
    axis.set(xlabel="balanced accuracy, test (%)", title="lesions: synthetic, no medical validity")
figure

# %% tags=["nbval-check-output"]
helped = {n: trained[n, "pretrained"].mean() - trained[n, "random"].mean() for n in names}
print("With colour, the pretrained start costs more than three points:", helped["lesions"] < -3)
print("On grey lesions, the very same weights help:", helped["lesions, grey"] > 1)

# %% [markdown]
# Not in twenty epochs. Draws differ, and half of the eight show little harm or none, but on average
# a network that starts from nothing is five points ahead. Take the colour away, and the same
# knowledge, on the same lesions, is worth three: shape and texture it does know. So *when* is a
# question about a **pair**: what the source made the network keep or throw away, and what the
# target needs.
#
# ### No gain is not yet harm
#
# Each of the four was held against itself from scratch on every task of the course, with 5, 10, 30
# and all labels a class; the cards in `data/presets` show the scores. With few labels, and apart
# from letters and lesions, the frozen features fell short in two places only, by half a point at
# most. Is that negative transfer?

# %% tags=["nbval-check-output"]
for network, task in (("scene_clip", "glyphs/styles"), ("glyph_resnet_small", "digits")):
    print(f"{network} on {task}, % on test with 5, 10, 30 and all labels a class:")
    for method in ("scratch", "frozen", "fine-tuned"):
        case = {"preset": network, "task": task, "method": method}
        runs = (stored("tasks", labels_per_class=n, **case) for n in ("5", "10", "30", "0"))
        cells = (f"{r.mean():8.1f}" + f" ± {r.std():.1f}" * (len(r) > 1) for r in runs)
        print(f"  {method:10}", *cells)

# %% [markdown]
# Not on styles. With five or ten images of each, neither what starts from nothing nor what starts
# from `scene_clip` does much better than guessing (16.7 %), and they are closer to each other than
# two draws of the same are: so few labels do not even *find* what a network knows. With thirty and
# with all it is ahead by about two points, and tuned on all by nearly four.
#
# On digits it is another matter. With five labels the very same features are worth eight points,
# with thirty they are half a point short. What is frozen stays as good as its source made it,
# however many labels follow; what learns from scratch gets better with each, and overtakes. Let
# the pretrained network learn, too, and with thirty labels it is level; with all of them it is
# still 0.4 behind. That is all the harm there is. Transfer makes up for labels that you lack, and
# the more you have, the less there is to make up for.
#
# ## How do I transfer? Freeze most, or tune more deeply?
#
# Two ways. **Lightly**: freeze the backbone and train a new last layer, the head. **Deeply**: then
# let the blocks below learn, too, at a smaller rate. The recipe `tlk.recipes.two_stage` is the
# first and then the second, so running its stages one by one shows both. For each stage you see
# balanced accuracy on validation images, how many weights learn, and the time.

# %%
plan = tlk.recipes.two_stage(8, 10, head_lr=1e-2, tune_lr=1e-3, blocks=len(blocks))
plan

# %%
right = {}
for name in (NEAR, FAR):
    model = tlk.add_head(tlk.load_backbone(BACKBONE, SIZE), len(tasks[name].classes))
    draws, (new, truth) = data[name]
    for stage in plan.stages:
        run = tlk.fit_stages(model, [stage], draws[0], seed=SEED, verbose=0)
        guess = model.predict(new, 200, verbose=0).argmax(axis=-1)
        right[name, stage.name] = 100 * balanced_accuracy_score(truth, guess)
        learn, s = run.stages[0].learns.trainable_params, run.stages[0].seconds
        print(f"{name:8} {stage.name}: {right[name, stage.name]:.1f} %, {learn:,} learn, {s:.0f} s")

# %% tags=["nbval-check-output"]
if not ONLINE:
    more = right["digits", "tune"] - right["digits", "head"]
    print("digits: tuning deeply changes less than three points:", abs(more) < 3)
frozen = stored("questions", target="lesions", start="pretrained", where="stack3").mean()
print("lesions, stored: it adds over five:", trained["lesions", "pretrained"].mean() - frozen > 5)

# %% [markdown]
# The second claim compares the stored runs with stored probes of the last block. So, near the
# source the last block already says what you need: train the head, and be done in a second. Far
# from it, go deeper, which takes more time and, as chapter 6 shows, more care. And do not forget
# the rival: on `lesions`, the stored runs from nothing did better still.
#
# ## Ask before you train
#
# All this can be known from probes, in seconds, before you train anything. Is the best block ahead
# of the best rival? That is *when*. Which block is it? That is *what*. Is it the last one, and far
# ahead? Then freeze and train the head; if not, think of the blocks above it: that is *how*.

# %%
ahead = {}
for name in (*TARGETS, "lesions, grey"):
    pretrained = depth[name, "pretrained"]
    ahead[name] = max(pretrained) - max(max(depth[name, rival]) for rival in list(views)[1:])
    what = f"up to {blocks.names[np.argmax(pretrained)]}" if ahead[name] > 0 else "nothing"
    print(f"{name:14} ahead of its rivals by {ahead[name]:5.1f} points: take {what}")

# %% [markdown]
# Does the cheap check foretell what training finds? Hold it against stored runs, of all four: do
# pretrained weights help there, on test images, compared with random ones?

# %% tags=["nbval-check-output"]
if not ONLINE:
    for name, points in helped.items():
        print(f"{name}: they agree:", (ahead[name] > 0) == (points > 0))

# %% [markdown]
# ## What to remember
#
# - Transfer works because knowledge is reusable: learn it where data are plenty, use it where they
#   are few.
# - *What?* What a block knows, a linear probe tells you. All of it, the early blocks, or nothing.
# - *When?* When the source made the network keep what the target needs. What it was paid to
#   overlook is gone, and then transfer is **negative**: worse than without. Ask it with as many
#   labels as you have: the more they are, the less there is to gain.
# - *How?* If the last block has the answer, freeze and train the head. If a lower one has it, cut
#   there, or tune what lies above, and measure which.
# - A score without rivals is no evidence. Pixels, a random network and a handful of numbers that
#   you understand cost seconds; ask them before you decide to reuse lightly, to tune deeply, or to
#   start from nothing.
#
# ## Now you
#
# 1. The pretrained network lacks colour, the six numbers have nothing else. Put them side by side.
#    Is transfer still negative?

# %% tags=["answer"]
look = views["pretrained"][0]
views["both"] = 3 * [lambda images: [np.hstack([look(images)[-1], *six_numbers(images)])]]
print(f"both: {probes(FAR, 'both').mean():.1f} %, six: {depth[FAR, 'six numbers'][0]:.1f} %")

# %% [markdown]
# 2. `styles` wants the first blocks only. Cut the network there, put a head on it, and train that.

# %% tags=["answer"]
task, below = tasks[TARGETS[1]], blocks.split(blocks.names[1])[0]
model, plan = tlk.add_head(below, len(task.classes)), tlk.recipes.head_only(30, 1e-2)
run = tlk.fit_stages(model, plan, task.train, task.validation, seed=SEED, verbose=0)
print(f"{run.stages[0].metrics['val_accuracy']:.3f}")
