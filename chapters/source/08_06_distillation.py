# %% [markdown]
# # 8.6 · Knowledge distillation: a small student, a good teacher
#
# **The question.** Your network is accurate but too large for a phone. Can a network a tenth of its
# size learn from it what it could not learn from your few labels alone?
#
# **The promise.** In about a minute on two cores you distil a network in plain Keras, with an
# ordinary `fit`. You use Keras' own `Distiller` without its default loss, which is wrong. And you
# can say when a teacher helps and when it does harm. *(Section 1.8 of the course, number 6; no
# internet needed.)*

# %%
import time

import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_06")
tlk.accelerate(quiet=True)
layers = keras.layers

# %% [markdown]
# ## The idea
#
# An apprentice who is only told "this is a shirt" learns one word per item. A master says more: "a
# shirt, I think; it might be a coat, it is certainly no shoe." And a master can say that about
# *any* item, even one that nobody has labelled. In **[distillation](glossary.md#distillation)** a
# small network, the [student](glossary.md#teacher-and-student), is trained on the answers of a
# large one, the teacher, instead of on labels ([Bucilă and others
# 2006](https://doi.org/10.1145/1150402.1150464); the name is from [Hinton, Vinyals and Dean
# 2015](https://arxiv.org/abs/1503.02531)). It is for networks that must be small or fast, as in a
# health app on a phone; [named systems](named_systems.md) has the code in which EfficientNet-B7
# teaches B0.
#
# Our images are clothes: 30 labelled images per class, and ten times as many in total.

# %%
few = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
task = tlk.load_task(setting.task, image_size=setting.image_size)
images, labels = few.arrays("train")
all_images, _ = task.arrays("train")  # their labels stay hidden
new, truth = task.arrays("validation")
names, classes = task.classes, len(task.classes)
print(f"{len(images):,} images with labels, {len(all_images):,} in total.")

# %% [markdown]
# ## By hand: the teacher
#
# The teacher is a pretrained network, [frozen](glossary.md#freeze) and cut after its second-to-last
# [block](glossary.md#block), with a new [head](glossary.md#head). All images pass through the
# frozen part once, and the head is trained on its outputs.

# %%
blocks = tlk.find_blocks(tlk.load_backbone(setting.backbone, setting.image_size))
below, _ = blocks.split(blocks.names[-2])
network = keras.Sequential([below, layers.GlobalAveragePooling2D()])
x, z, z_new = (network.predict(part, verbose=0) for part in (images, all_images, new))

# %%
keras.utils.set_random_seed(SEED)
to_same_scale = layers.Normalization()
to_same_scale.adapt(z)
answer = [layers.Dropout(0.2), layers.Dense(classes)]
head = keras.Sequential([keras.Input(z.shape[1:]), to_same_scale, *answer])
from_labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
head.compile(keras.optimizers.AdamW(1e-2), from_labels)
history = head.fit(x, labels, 32, epochs=32, verbose=0)

# %% [markdown]
# The teacher now predicts ten class probabilities for *every* training image: its **soft answers**.
# They are stored, and from here on the teacher is no longer needed.

# %%
logits = head.predict(z, verbose=0)
soft = np.array(keras.ops.softmax(logits))

# %% alt="A row of eight small grey images: tops and dresses that look much alike, two shoes, a bag."
doubtful = np.argsort(soft.max(axis=1))[: len(soft) // 10 : len(soft) // 80][:8]
tlk.plots.strips(
    {"": all_images[doubtful]}, columns=8, title="Images about which the teacher is unsure"
)

# %%
rows = []
for chances in soft[doubtful]:
    order = np.argsort(-chances)[:3]
    rows.append([f"{names[k]} {100 * chances[k]:.0f} %" for k in order])
tlk.table(rows, ["the teacher's first choice", "second", "third"])

# %% [markdown]
# ## By hand: the student
#
# The student has four convolutions, on images made smaller: a tenth of the teacher's parameters,
# all random.


# %%
def new_student():
    student = keras.Sequential([keras.Input(all_images.shape[1:])])
    student.add(layers.Resizing(28, 28))
    student.add(layers.Rescaling(1 / 127.5, -1))
    for filters, stride in ((16, 2), (32, 2), (64, 1), (80, 2)):
        student.add(layers.Conv2D(filters, 3, stride, padding="same", use_bias=False))
        student.add(layers.BatchNormalization(momentum=0.9))
        student.add(layers.ReLU())
    student.add(layers.GlobalAveragePooling2D())
    student.add(layers.Dropout(0.2))
    student.add(layers.Dense(classes))
    return student


# %% [markdown]
# First comes the [control](glossary.md#control), the student without a teacher: 300 steps on the
# labels. Then the distilled student: the same network from the same initial weights, for the same
# number of steps, but on all images with their soft answers and with a loss for probabilities
# instead of labels. Neither uses augmentation.

# %%
STEPS, BATCH, RATE = 300, 64, 3e-3


def trained(inputs, targets, loss):
    keras.utils.set_random_seed(SEED)
    student = new_student()
    rate = keras.optimizers.schedules.CosineDecay(RATE, STEPS)
    student.compile(keras.optimizers.AdamW(rate), loss)
    epochs = max(1, round(STEPS / np.ceil(len(inputs) / BATCH)))
    student.fit(inputs, targets, BATCH, epochs, verbose=0)
    return student


# %%
from_chances = keras.losses.CategoricalCrossentropy(from_logits=True)
alone = trained(images, labels, from_labels)
student = trained(all_images, soft, from_chances)

# %%
answers = {"teacher": head.predict(z_new, verbose=0)}
answers["student alone"] = alone.predict(new, verbose=0)
answers["student, distilled"] = student.predict(new, verbose=0)
rows = [[name, 100 * np.mean(np.argmax(a, 1) == truth)] for name, a in answers.items()]
tlk.table(rows, ["a single draw", "validation right, %"])

# %% [markdown]
# That is all of it: an ordinary `fit` on stored answers.
#
# ## The temperature
#
# A confident teacher says 99 % and 0.1 %, and the small probabilities, which tell what looks like
# what, hardly count in the loss. Hinton and others divide the logits of both networks by a
# **[temperature](glossary.md#temperature)** *T* before the softmax. At *T* = 1 nothing changes;
# above 1 the probabilities become softer. The loss is multiplied by *T²* because the gradients
# shrink by that factor.

# %%
T = 4.0


def soft_loss(theirs, ours):  # logits of both
    theirs, ours = keras.ops.softmax(theirs / T), keras.ops.softmax(ours / T)
    return T**2 * keras.losses.kl_divergence(theirs, ours)


rows = []
for temperature in (1, 4, 16):
    chances = np.array(keras.ops.softmax(logits[doubtful[0]] / temperature))
    best = np.argsort(-soft[doubtful[0]])[:3]
    rows.append([temperature, *(f"{names[k]} {100 * chances[k]:.0f} %" for k in best)])
tlk.table(rows, ["T", "first", "second", "third"])

# %% [markdown]
# `student.compile(..., soft_loss)` and `student.fit(all_images, logits)` would train with this
# loss.
#
# ## The same with Keras, and its wrong default
#
# `keras.distillation.Distiller` holds both networks and computes that loss with
# `LogitsDistillation`. Before you use it, try its loss on one image with two classes. The teacher's
# logits are 2 and -2, that is 98 % for the first class. What loss do three students get?

# %% tags=["nbval-check-output"]
logits_loss = keras.distillation.LogitsDistillation
right_one = logits_loss(temperature=T, loss=keras.losses.KLDivergence())
default = logits_loss(temperature=T)
theirs, rows = np.array([[2.0, -2.0]]), []
for name, ours in {"agrees": (2, -2), "undecided": (0, 0), "says the other": (4, 8)}.items():
    ours = np.array([ours], "float32")
    losses = [right_one.compute_loss(theirs, ours), default.compute_loss(theirs, ours)]
    rows.append([name, float(soft_loss(theirs, ours)[0]), *map(float, losses)])
header = ["the student", "by hand", "Keras, KLDivergence()", "Keras, its default"]
tlk.table(rows, header)

# %% [markdown]
# A loss should be lowest for the student that agrees. The default (Keras 3.15) is lowest for the
# one that *says the other*. The default is the string `"kl_divergence"`, and with a string Keras
# skips the softmax and *T²*, so that logits are taken for probabilities. So **always pass
# `loss=keras.losses.KLDivergence()`**: then it computes what we wrote by hand. Teacher and student
# must take the same images, so our student begins with its own `Resizing`.

# %%
teacher = keras.Sequential([*network.layers, head])
keras.utils.set_random_seed(SEED)
distiller = keras.distillation.Distiller(teacher, new_student(), right_one, student_loss_weight=0.5)
distiller.compile(keras.optimizers.AdamW(RATE), from_labels)
distiller.fit(images[:BATCH], labels[:BATCH], BATCH, verbose=0)  # the first step is slow
start = time.process_time()
distiller.fit(images, labels, BATCH, verbose=0)
print(f"CPU seconds for {len(images)} images: {time.process_time() - start:.1f}")

# %% [markdown]
# `distiller.student` is the student. Here half of the loss comes from labels, so every image needs
# one; with `student_loss_weight=0` labels do not count. The teacher predicts again in every step,
# which takes most of that time and pays only if both networks have to see the same augmented
# images. (`sample_weight` is ignored, and a saved `Distiller` is loaded uncompiled.
# `FeatureDistillation` compares layers of the same width instead of answers.)

# %% [markdown]
# ## The experiment: the softness or the images?
#
# A distilled student has two advantages: soft answers, and ten times as many images. Which of them
# helps? Two more controls use the same network, initial weights and 300 steps. One gets soft
# answers on the *labelled* images only. The other gets all images, but only the *surest guess* of
# each answer, a hard label. There are five [draws](glossary.md#draw) of labels. Two learning rates
# were chosen on validation images, with other draws: one for 300 images, one for 3,000.

# %% tags=["plumbing"] alt="Bars of the share of test images that are right. The teacher 79 percent; student alone on 300 labels 75; soft answers on 300 images 75; surest guesses on 3,000 images 79; soft answers on 3,000 images 79."
stored = tlk.results("distillation", part="test")
shown = {
    "alone": "student alone: 300 labels",
    "soft, labelled": "soft answers, 300 images",
    "surest guess, all": "surest guesses, 3,000 images",
    "soft, all": "soft answers, 3,000 images",
}
once = stored.where(temperature=1)
scores, taught = (once.scores("method", value=v, scale=100) for v in ("score", "teacher"))
drawn = {"the teacher": taught["soft, all"]}
drawn |= {name: scores[method] for method, name in shown.items()}
tlk.plots.bars(
    drawn,
    "right, % of the test images",
    title="With unlabelled images the student reaches its teacher",
)

# %% tags=["nbval-check-output"]
gained = {name: drawn[name] - drawn["student alone: 300 labels"] for name in drawn}
rows = [[name, points, int(sum(points > 0))] for name, points in gained.items()]
del rows[1]
tlk.table(
    rows,
    ["compared with the student alone", "points gained", "of 5 draws better"],
    note=stored.note,
)

# %% [markdown]
# With all images the student gains four points, in each of the five draws, and ties with a teacher
# ten times its size. With the labelled images only it gains nothing, probably because the teacher
# has memorised those 300, so that its answers are hardly softer than labels.
#
# Surest guesses and soft answers tie, too: the difference is less than a point. So here the
# **unlabelled images** do the work, not the softness. (Surest guesses are
# [pseudo-labels](glossary.md#pseudo-label) from a network other than the one that learns. How far
# 3,000 true labels would have come was not measured.)
#
# ## Which temperature?

# %% tags=["plumbing", "nbval-check-output"]
settings = [("soft, all", T) for T in (1, 4, 16)]
settings += [("soft, labelled", 1), ("alone", 1)]
says = {
    "soft, all": "3,000 images",
    "soft, labelled": "300 images",
    "alone": "300 labels",
}
rows = []
for method, temperature in settings:
    draws = stored.where(method=method, temperature=temperature).scores("method", scale=100)
    rows.append([says[method], temperature if method != "alone" else "-", draws[method]])
tlk.table(rows, ["the student is trained on", "T", "right, %"])

# %% [markdown]
# *T* = 4 ties with *T* = 1. At 16 the student loses two points on average, and some in every draw:
# its targets are nearly the same for every class. (The learning rate was chosen at *T* = 1.) So
# start with 1, and at most try 2 to 4 on validation. Mixing in labels with `student_loss_weight`
# was not measured. Used separately, labels and soft answers on the same 300 images tie.
#
# ## Where it fails

# %% tags=["plumbing", "nbval-check-output"]
cases = {
    "30 labels per class": ("soft, all", "alone"),
    "a teacher with 5, a student with 30": ("poor teacher", "alone"),
}
rows = []
for name, (method, control) in cases.items():
    gain = scores[method] - scores[control]
    rows.append([name, taught[method], scores[control], scores[method], gain])
tlk.table(rows, ["labels", "teacher", "student alone", "distilled", "points gained"])

# %% [markdown]
# **A poor teacher.** With five labels per class the teacher is right on 70 %; the student that
# learns alone from 30 labels is right on 75 %. Distilled, it gives up its labels for the teacher's
# answers and gets worse, in each of the five draws (though it ends up *above* its teacher). **No
# additional images.** With only the 300 labelled images, nothing was gained. So ask two questions
# before you distil. Is the teacher better than the student alone, on validation? And are there more
# images than the labelled ones?
#
# ## What it costs, and what it saves

# %% tags=["plumbing", "nbval-check-output"]
sizes = {row["method"]: row for row in tlk.results("distillation", part="size")}
rows = []
units = {"parameters": (1, "parameters"), "kilobytes": (1, "LiteRT file (kB)")}
units["milliseconds"] = (1000, "microseconds per image")
for column, (times, name) in units.items():
    large, small = (round(times * sizes[who][column]) for who in ("teacher", "student"))
    rows.append([name, large, small, f"{large / small:.0f} times less"])
rows.append(["right (%)", taught["soft, all"], scores["soft, all"], "-"])
tlk.table(rows, ["", "teacher", "student", ""])

# %% [markdown]
# The microseconds are for one thread and one image at a time; only their ratio matters.
# (`distiller.student.export("student.tflite", format="litert")` writes that file; `tlk.export(run,
# "litert")` writes one of a run's model.) In training, every image passes through the teacher once.
# After that, distilling takes as many steps as training alone, about 7 seconds of one core.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: does it copy mistakes?
#
# Look at the new images that the teacher gets wrong. How often does the distilled student give the
# same wrong answer, and how often does the student that never saw the teacher's answers?

# %% [markdown] tags=["hint"]
# `answers` holds the logits of all three. Take the `argmax` of each, and compare the students'
# answers with the teacher's where the teacher's differ from `truth`.

# %% tags=["answer"]
said = {name: np.argmax(a, axis=1) for name, a in answers.items()}
wrong = said["teacher"] != truth
rows = []
for name in ("student alone", "student, distilled"):
    same = said[name][wrong] == said["teacher"][wrong]
    rows.append([name, 100 * np.mean(same), 100 * np.mean(said[name][wrong] == truth[wrong])])
tlk.table(rows, ["where the teacher is wrong", "the same mistake, %", "right, %"])

# %% [markdown] tags=["answer"]
# In the single draw shown, half of the teacher's mistakes return in the distilled student, and
# somewhat fewer in the one without a teacher: shirts look like coats to everybody. A teacher's
# errors and biases are passed on as well.

# %% [markdown] tags=["question"]
# ### Exercise 2: another loss from the manual
#
# Keras' documentation of `LogitsDistillation` also suggests
# `loss=keras.losses.CategoricalCrossentropy(from_logits=True)`. Compute it for the student that
# agrees, for the undecided one, and for one whose logits are ten times those of the first. Would
# you train with it?

# %% [markdown] tags=["hint"]
# `logits_loss(temperature=T, loss=...)`, and its `compute_loss(theirs, ours)` for `ours` of `[[2.0,
# -2.0]]`, `[[0.0, 0.0]]` and `[[20.0, -20.0]]`.

# %% tags=["answer"]
manual = logits_loss(T, keras.losses.CategoricalCrossentropy(from_logits=True))
rows = []
for name, ours in {"agrees": [2, -2], "undecided": [0, 0], "louder": [20, -20]}.items():
    rows.append([name, float(manual.compute_loss(theirs, np.array([ours], "float32")))])
tlk.table(rows, ["the student", "loss"])

# %% [markdown] tags=["answer"]
# No. The three students of the earlier table do not reveal the problem, but the student with logits
# ten times as large gets a smaller loss than the one that agrees. The teacher's logits are taken
# for probabilities, which 2 and -2 are not. Of all losses only an *instance* of `KLDivergence` gets
# the softmax and *T²* (Keras 3.15).

# %% [markdown]
# ## What to remember
#
# - Distillation is an ordinary `fit` on a teacher's stored answers. Let the teacher answer for
#   every image you have: here only the unlabelled ones helped.
# - With `keras.distillation`, always pass `loss=keras.losses.KLDivergence()`.
# - A student can only get what the teacher has: first compare teacher and student alone, on
#   validation.
#
# **Then:** a network that trusts its *own* answers, and when that goes wrong: self-training in
# [chapter 8.4](08_04_domain_adaptive.ipynb).
