# %% [markdown]
# # 10.1 · Adapters: LoRA, and what it saves
#
# **The question.** Can a network learn a new task while all of its own numbers stand still? And
# what is saved that way: time, memory, or something else?
#
# **The promise.** In about a minute on two cores you put small modules into a frozen vision
# transformer in two ways, in plain Keras, and past two mistakes that raise no error. You keep a
# task in a file a tenth of the network's size and change it for another. And you know what adapters
# save, what they do not, and when the head alone will do. *(Sections 1.8 and 1.10 of the course; no
# internet needed.)*

# %%
import os

import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras  # isort: skip
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("10_1")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# A kitchen that is rented by several cooks is not rebuilt for each of them. Every cook brings a box
# of knives and spices, puts it beside the stove, and takes it home in the evening. The kitchen is
# the **[backbone](glossary.md#backbone)**, frozen; the box is an
# **[adapter](glossary.md#adapter)**: a few numbers that are put between the layers, or beside their
# kernels, and learn instead of them. They are advertised as fast and light: the thing to use where
# memory is short, or where many tasks share one network.
#
# Our kitchen is a small **vision transformer**, a network of attention and Dense layers, that
# learned to tell printed letters. It shall read handwritten digits behind blinds: synthetic stripes
# that invert them. 30 labelled pictures of each.

# %% alt="A row of zeros and a row of ones, small and handwritten, crossed by upright stripes in which bright and dark are exchanged: hard to read."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
blinds = 128 + 127 * np.sin(1.3 * np.arange(setting.image_size))[:, None]
images, labels = task.arrays("train")
new, truth = task.arrays("validation")
images, new, truth = np.abs(images - blinds), np.abs(new[:200] - blinds), truth[:200]
title = "Digits behind blinds (synthetic stripes)"
rows = {"0": images[labels == 0], "1": images[labels == 1]}
tlk.plots.strips(rows, columns=8, title=title)

# %% [markdown]
# ## By hand 1: a bottleneck after each block
#
# The first adapters ([Houlsby et al. 2019](https://arxiv.org/abs/1902.00751)) are two Dense layers,
# narrow in the middle. The second starts at zero, so that at first nothing is changed, and what
# they say is added to what comes in. A transformer is a row of blocks, so they are easily put in
# between.


# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
backbone.trainable = False
*_, scaled, vit = backbone.layers  # a layer that scales pixels, and KerasHub's transformer
encoder = vit.get_layer("vit_encoder")
x = keras.Model(vit.input, encoder.input)(scaled.output)  # the tokens that enter its blocks

# %%
for block in encoder.encoder_layers:
    x = block(x)
    small = keras.layers.Dense(32, activation="gelu")(x)
    x = x + keras.layers.Dense(x.shape[-1], kernel_initializer="zeros")(small)
x = encoder.layer_norm(x)


# %%
def with_head(inputs, tokens):
    vector = keras.layers.GlobalAveragePooling1D()(tokens)
    model = keras.Model(inputs, keras.layers.Dense(len(task.classes))(vector))
    model.compile(keras.optimizers.Adam(1e-2), loss)
    return model


def accuracy(model):
    return np.mean(model.predict(new, 100, verbose=0).argmax(axis=1) == truth)


# %%
keras.utils.set_random_seed(SEED)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
bottleneck = with_head(backbone.input, x)
bottleneck.fit(images, labels, batch_size=30, epochs=2, verbose=0)
found = {"bottleneck adapters": [accuracy(bottleneck), bottleneck]}

# %% [markdown]
# ## By hand 2: LoRA, beside the kernels
#
# **[LoRA](glossary.md#lora)** ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) puts nothing in
# between. Beside a kernel *W* of *n* by *m* numbers stand *A*, *n* by 4, and *B*, 4 by *m*; the
# layer computes with *W + AB*. *B* starts at zero. Four is the **rank**. Keras has it built in:
# `layer.enable_lora(4)`, for Dense, EinsumDense, Embedding and convolutions. (PEFT, for PyTorch,
# calls the same things `r`, `target_modules` and `merge_and_unload`.) Take the two Dense layers of
# every attention that make queries and values, as the paper did.

# %%
keras.utils.set_random_seed(SEED)
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
model = with_head(backbone.input, backbone.output)
backbone.trainable = False
model.compile(keras.optimizers.Adam(1e-2), loss)
history = model.fit(images[:60], labels[:60], batch_size=30, verbose=0)  # the head alone

# %%
backbone.trainable = True
for block in backbone.layers[-1].get_layer("vit_encoder").encoder_layers:
    block.mha.query_dense.enable_lora(4)
    block.mha.value_dense.enable_lora(4)
factors = [weight for weight in backbone.weights if "lora_" in weight.name]
kernels = [weight for weight in backbone.weights if "lora_" not in weight.name]


# %%
def moved(weights, start):
    return sum(not np.array_equal(w.numpy(), old) for w, old in zip(weights, start, strict=True))


# %% [markdown]
# **Mistake 1: no new [compile](glossary.md#compile).** What was compiled before does not know the
# factors. **Mistake 2: nothing closed.** `enable_lora` [freezes](glossary.md#freeze) the kernel
# beside which it puts the factors, and nothing else: biases, normalisation and every other layer
# learn. Here are both, and how it should be: only what is called `lora_`, and the head.

# %%
rows, first = [], [w.numpy() for w in factors]
start = [w.numpy() for w in kernels]


def train(name, count, epochs=1):
    model.fit(images[:count], labels[:count], batch_size=30, epochs=epochs, verbose=0)
    rows.append([name, moved(factors, first), moved(kernels, start)])
    for weight, old in zip(kernels, start, strict=True):
        weight.assign(old)


# %%
train("enable_lora, not compiled", count=60)
model.compile(keras.optimizers.Adam(1e-2), loss, run_eagerly=True)  # two steps: no graph for these
train("compiled, nothing closed", count=60)
for weight in backbone.weights:
    weight.trainable = "lora_" in weight.name
model.compile(keras.optimizers.Adam(1e-2), loss)
train("compiled, all but factors closed", count=len(images), epochs=2)
found["LoRA, queries and values"] = [accuracy(model), model]

# %% tags=["nbval-check-output"]
header = ["", f"of {len(factors)} factors moved", f"of {len(kernels)} weights of the base moved"]
tlk.table(rows, header)

# %% [markdown]
# ## The same with tlkeras
#
# `lora.add` puts factors beside every kernel of the backbone that can have them, or of some blocks
# (`where="transformer_block_6"`), closes all the rest, and says what learns. Under every plan of
# `tlk.fit_stages` it stays so.

# %%
lora = tlk.flavors.lora
keras.utils.set_random_seed(SEED)
model = tlk.add_head(tlk.load_backbone(setting.backbone, setting.image_size), len(task.classes))
learns = lora.add(model, rank=4)
model.compile(keras.optimizers.Adam(1e-2), loss)
model.fit(images, labels, batch_size=30, epochs=2, verbose=0)
found["LoRA, every kernel"] = [accuracy(model), model]
learns

# %%
rows = []
for name, (score, trained) in found.items():
    numbers = sum(int(np.prod(weight.shape)) for weight in trained.trainable_weights)
    rows.append([name, numbers, 100 * score])
tlk.table(rows, ["a single draw, 20 steps", "numbers that learn", "validation (%)"])

# %% [markdown]
# (`closed by user` is what `lora.add` closed, as if by hand.) Twenty steps are too few to compare
# the three: that follows below, with 120 steps and five draws.
#
# ## A task is a small file
#
# Keras saves the sum *W + AB*: the factors are gone from its file, and what is loaded learns no
# more. `lora.save` writes the factors and the head and nothing else; it is a file of numbers, safe
# to be read whoever sent it. Make a second task, the same digits upside down, and go back and
# forth.

# %%
os.makedirs("runs", exist_ok=True)
outputs = {"digits": model.predict(new, 100, verbose=0)}
lora.save(model, "runs/digits.npz")
model.fit(images[:, ::-1], labels, batch_size=30, epochs=1, verbose=0)
outputs["upside down"] = model.predict(new, 100, verbose=0)
lora.save(model, "runs/upside_down.npz")


# %%
def difference(name):
    return float(np.abs(model.predict(new, 100, verbose=0) - outputs[name]).max())


rows = []
for name in ("digits", "upside down", "digits"):
    lora.load(model, f"runs/{name.replace(' ', '_')}.npz")
    rows.append([f"load {name}", difference(name)])
lora.merge(model)
rows.append(["merge: W + AB becomes W", difference("digits")])

# %% tags=["nbval-check-output"]
tlk.table(rows, ["", "largest difference to its outputs when saved"], digits=3)

# %% [markdown]
# After `merge` there are plain layers, which `model.save` writes as any others. `lora.remove` takes
# the factors out instead; the base is then what it was, to the last bit. Any other base refuses the
# file, by a fingerprint of its weights (exercise 2).
#
# ## The experiment: what is saved?
#
# Five ways to learn digits behind blinds, five [draws](glossary.md#draw) of 30 labels. All start
# from the same head, take the same 120 steps, and have the best of seven rates, chosen on
# validation images of another draw. (`data/results/adapters.csv`, by `python
# tools/measure_adapters.py`: LoRA at rank 4, bottlenecks 32 wide. Seconds are those of one core
# that was shared with other work, of LoRA those of one draw.)


# %% tags=["nbval-check-output"]
def summary(**case):
    stored = tlk.results("adapters", part="draws", **case)
    rows = []
    for name in dict.fromkeys(row["method"] for row in stored):
        draws = stored.where(method=name)
        score, seconds = (draws.scores("method", value=v)[name] for v in ("score", "seconds"))
        sizes = [int(draws.rows[0][column]) for column in ("parameters", "optimizer", "saved")]
        rows.append([name, 100 * score, *sizes, round(float(np.nanmean(seconds)), 1)])
    return rows


header = ["what learns", "test (%)", "numbers", "optimizer (KiB)", "file (KiB)", "core seconds"]
tlk.table(summary(network="glyph_vit"), header)

# %% [markdown]
# The head alone misses every fourth digit: what it needs is not in the last features. The last
# block gains 10 points; LoRA, with little more than half as many numbers, 17 (each ± 1, the
# standard error of the mean difference in the same draws), for it reaches every block. So does the
# whole network: LoRA is 1.0 ± 0.5 ahead, a tie. The bottlenecks are 1.7 ± 0.6 behind LoRA.
#
# **What is saved**: AdamW remembers two numbers for each that learns, a tenth as much; and what has
# to be kept of a task is a tenth. Ten tasks on one base are two networks' worth of disk, not ten.
# **What needs care**: the rate. LoRA and bottlenecks did best at 1e-2, thirty times that of the
# whole network, and at 3e-2 both fell apart: 53 and 10 % on validation.
#
# ## Where it does not help
#
# **It saves little time.** Of one core LoRA took fifteen seconds and bottlenecks eleven, the whole
# network eighteen: the gradient has to reach the lowest factor, so it passes through everything,
# and what every layer put out is kept in memory for it, as ever. The last block alone takes six,
# the head less than one, for frozen features are computed once.
#
# **It adds little where little is missing.** ImageNet's network on `clothes`, 30 labels a class, in
# the same way:

# %% tags=["nbval-check-output"]
tlk.table(summary(network="efficientnet_lite0"), header)

# %% [markdown]
# LoRA is a tie with the head (1.1 ± 1.0 ahead) and with the whole network (1.1 ± 0.6 behind). With
# 5 labels the whole network, fine-tuned, is behind the head: 68 against 72 % ([chapter
# 2](02_what_is_transfer_learning.ipynb)). Train the head first. Only if validation stays behind,
# ask for more: that is why `tlkeras fit photos/ --lora 8` keeps the recipe's first stage, the head
# alone.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: which rank is too much?
#
# A Dense layer has a kernel of 96 by 192. How many numbers do *A* and *B* have at rank 1, 4, 16 and
# 64, and from which rank on are they more than the kernel itself?

# %% [markdown] tags=["hint"]
# *A* has 96 times the rank, *B* the rank times 192.

# %% tags=["answer"]
rows = [
    [rank, rank * (96 + 192), f"{rank * (96 + 192) / (96 * 192):.0%}"] for rank in (1, 4, 16, 64)
]
tlk.table(rows, ["rank", "numbers in A and B", "of the kernel's"])

# %% [markdown] tags=["answer"]
# At rank 64 they are as many as the kernel has, from 65 on more, and save nothing. In a transformer of 768 channels,
# the size of ImageNet's, rank 4 is one percent: the larger the network, the more adapters save.

# %% [markdown] tags=["question"]
# ### Exercise 2: the wrong kitchen
#
# Load the file of the digits into a model whose backbone is the same network with random weights
# (`weights=None`). What should happen, and why?

# %% [markdown] tags=["hint"]
# `tlk.load_backbone(..., weights=None)`, then `tlk.add_head`, then `lora.load` in a `try`.

# %% tags=["answer"]
other = tlk.load_backbone(setting.backbone, setting.image_size, weights=None)
try:
    lora.load(tlk.add_head(other, len(task.classes)), "runs/digits.npz")
except ValueError as error:
    print(str(error).replace("runs/", ""))

# %% [markdown] tags=["answer"]
# It is refused. All shapes fit, and without the check every answer would be a guess: *AB* is the
# difference to *one* *W*. Who keeps adapters keeps the name of the base with them, and its exact
# version.

# %% [markdown]
# ## What to remember
#
# - An adapter is a few numbers that learn while the network stands still: close everything else
#   *yourself* (`enable_lora` does not), and compile again.
# - It saves what the optimizer remembers and what is kept of each task, but little time, for the
#   gradient still passes through the whole network.
# - Where the head alone reads well, an adapter has little to do; where it did not, adapters in
#   *all* blocks beat the last block, at a larger learning rate than the network's own weights
#   liked.
#
# **Then:** each block at its own rate instead, [chapter
# 10.2](10_2_discriminative_learning_rates.ipynb).
