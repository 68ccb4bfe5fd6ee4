# %% [markdown]
# # 10.1 · Adapters: LoRA, and what it saves
#
# **The question.** Can a network learn a new task while none of its own weights change? And what
# does that save: time, memory, or something else?
#
# **The promise.** In about a minute on two cores you add small modules to a frozen vision
# transformer in two ways, in plain Keras, and avoid two mistakes that raise no error. You store a
# task in a file a tenth of the network's size and swap it for another. Afterwards you know what
# adapters save, what they do not save, and when the head alone is enough. *(Sections 1.8 and 1.10
# of the course; no internet needed.)*

# %%
import os

import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np

SEED = 0  # another draw of labels, another run
setting = tlk.setting("10_1")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# A kitchen shared by several cooks is not rebuilt for each of them. Every cook brings a box of
# knives and spices, puts it next to the stove, and takes it home in the evening. The kitchen is the
# frozen **[backbone](glossary.md#backbone)**. The box is an **[adapter](glossary.md#adapter)**: a
# small number of extra parameters, placed between the layers or next to their kernels, that are
# trained instead of the network's own weights. Adapters are advertised as fast and light, for when
# memory is short or when many tasks share one network.
#
# Our kitchen is a small **vision transformer**, a network of attention and Dense layers, trained to
# recognise printed letters. Its new task is to read handwritten digits behind blinds: synthetic
# stripes that invert parts of the image. There are 30 labelled images per class.

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
# The first adapters ([Houlsby et al. 2019](https://arxiv.org/abs/1902.00751)) are two Dense layers
# with a narrow layer between input and output (a bottleneck). Their output is added to their input.
# The second layer starts at zero, so at first the adapter changes nothing. A transformer is a
# sequence of blocks, so it is easy to put an adapter after each one.


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
# ## By hand 2: LoRA, next to the kernels
#
# **[LoRA](glossary.md#lora)** ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) adds no layers.
# Each kernel *W* of size *n* by *m* gets two small factors, *A* (*n* by 4) and *B* (4 by *m*), and
# the layer computes with *W + AB*. *B* starts at zero. The 4 is the **rank**. Keras has LoRA built
# in: `layer.enable_lora(4)` works for Dense, EinsumDense, Embedding and convolution layers. (In
# PEFT, for PyTorch, the rank is `r`, the layers are `target_modules`, and adding *AB* to *W* is
# `merge_and_unload`.) As in the paper, we use it on the two Dense layers in every attention that
# compute queries and values.

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
# **Mistake 1: not compiling again.** A model [compiled](glossary.md#compile) before `enable_lora`
# does not train the factors. **Mistake 2: not freezing the rest.** `enable_lora`
# [freezes](glossary.md#freeze) the kernel that gets the factors and nothing else, so biases,
# normalisation and all other layers still learn. The next cells make both mistakes and then do it
# correctly: only the head and the weights with `lora_` in their name learn.

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
model.compile(keras.optimizers.Adam(1e-2), loss, run_eagerly=True)  # no graph: only two steps
train("compiled, nothing frozen", count=60)
for weight in backbone.weights:
    weight.trainable = "lora_" in weight.name
model.compile(keras.optimizers.Adam(1e-2), loss)
train("compiled, all but factors frozen", count=len(images), epochs=2)
found["LoRA, queries and values"] = [accuracy(model), model]

# %% tags=["nbval-check-output"]
header = ["", f"of {len(factors)} factors moved", f"of {len(kernels)} weights of the base moved"]
tlk.table(rows, header)

# %% [markdown]
# ## The same with tlkeras
#
# `lora.add` adds factors to every kernel of the backbone that supports them, or only to those of
# some blocks (`where="transformer_block_6"`). It freezes everything else and reports what learns.
# `tlk.fit_stages` keeps it that way, whatever the plan.

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
tlk.table(rows, ["a single draw, 20 steps", "trainable parameters", "validation (%)"])

# %% [markdown]
# (`closed by user` counts the weights that `lora.add` froze; it does so as you would by hand.)
# Twenty steps are too few to compare the three methods. The comparison follows below, with 120
# steps and five draws.
#
# ## A task is a small file
#
# `model.save` writes the sum *W + AB*. The factors are not in the file, so they cannot be trained
# further after loading. `lora.save` writes only the factors and the head. The file contains nothing
# but numbers, so it is safe to load even from a stranger. We train a second task, the same digits
# upside down, and switch back and forth.

# %%
os.makedirs("runs", exist_ok=True)
outputs = {"digits": model.predict(new, 100, verbose=0)}
lora.save(model, "runs/digits.npz")
model.fit(images[:, ::-1], labels, batch_size=30, epochs=1, verbose=0)
outputs["upside down"] = model.predict(new, 100, verbose=0)
path = lora.save(model, "runs/upside_down.npz")


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
# After `merge` the model has only ordinary layers, and `model.save` works as usual. `lora.remove`
# takes the factors out instead, and the base is again exactly what it was, bit for bit. Loading the
# file into a different base raises an error, because the file holds a fingerprint of the base's
# weights (exercise 2).
#
# ## The experiment: what is saved?
#
# Five ways to learn digits behind blinds, on five [draws](glossary.md#draw) of 30 labels per class.
# All start from the same trained head and take the same 120 steps. Each uses the best of seven
# learning rates, chosen on validation images of a different draw. (The results are in
# `data/results/adapters.csv`, made by `python tools/measure_adapters.py`. LoRA has rank 4, and the
# bottlenecks are 32 wide. Seconds were measured on one core that was shared with other work; those
# for LoRA are from a single draw.)


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


header = ["what learns", "test (%)", "parameters", "optimizer (KiB)", "file (KiB)", "core seconds"]
tlk.table(summary(network="glyph_vit"), header)

# %% [markdown]
# The head alone gets every fourth digit wrong: what it needs is not in the last features. Training
# the last block gains 10 points. LoRA gains 17 with little more than half as many trainable
# parameters, because it reaches every block (each ± 1 s.e., the standard error of the mean
# difference over the same draws). Full fine-tuning also reaches every block: LoRA is 1.0 ± 0.5
# (s.e.) ahead, a tie. The bottlenecks are 1.7 ± 0.6 (s.e.) behind LoRA.
#
# **What it saves.** AdamW stores two numbers for each trainable parameter, so its memory shrinks to
# a tenth, and so does the file that holds a task. Ten tasks on one base need the disk space of two
# networks, not ten. **What needs care** is the learning rate. LoRA and bottlenecks did best at
# 1e-2, thirty times the best rate for the whole network. At 3e-2 both collapsed, to 53 and 10 % on
# validation.
#
# ## Where it does not help
#
# **It saves little time.** On one core LoRA took fifteen seconds and bottlenecks eleven; the whole
# network took eighteen. The gradient has to reach the lowest factor, so it passes through the whole
# network, and the outputs of all layers are kept in memory for it as usual. The last block alone
# takes six seconds and the head less than one, because the features below them are frozen and
# computed only once.
#
# **It adds little where little is missing.** Here is the same comparison for the ImageNet network
# on `clothes`, with 30 labels per class:

# %% tags=["nbval-check-output"]
tlk.table(summary(network="efficientnet_lite0"), header)

# %% [markdown]
# LoRA ties with the head (1.1 ± 1.0 s.e. ahead) and with the whole network (1.1 ± 0.6 s.e. behind).
# With 5 labels per class, fine-tuning the whole network is worse than training the head: 68 against
# 72 % ([chapter 2](02_what_is_transfer_learning.ipynb)). So train the head first, and try more only
# if validation accuracy is not good enough. That is why `tlkeras fit photos/ --lora 8` keeps the
# recipe's first stage, the head alone.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: which rank is too much?
#
# A Dense layer has a kernel of 96 by 192. How many parameters do *A* and *B* have together at rank
# 1, 4, 16 and 64? From which rank on do they have more than the kernel itself?

# %% [markdown] tags=["hint"]
# *A* has 96 × rank parameters, *B* has rank × 192.

# %% tags=["answer"]
rows = [
    [rank, rank * (96 + 192), f"{rank * (96 + 192) / (96 * 192):.0%}"] for rank in (1, 4, 16, 64)
]
tlk.table(rows, ["rank", "parameters in A and B", "relative to the kernel"])

# %% [markdown] tags=["answer"]
# At rank 64 they have as many as the kernel, and from rank 65 on more, so LoRA saves nothing. In a
# transformer with 768 channels, a usual size for ImageNet, rank 4 is one percent of a kernel: the
# larger the network, the more adapters save.

# %% [markdown] tags=["question"]
# ### Exercise 2: the wrong kitchen
#
# Load the digits' file into a model whose backbone is the same network with random weights
# (`weights=None`). What should happen, and why?

# %% [markdown] tags=["hint"]
# Call `tlk.load_backbone(..., weights=None)`, then `tlk.add_head`, then `lora.load` inside a `try`.

# %% tags=["answer"]
other = tlk.load_backbone(setting.backbone, setting.image_size, weights=None)
try:
    lora.load(tlk.add_head(other, len(task.classes)), "runs/digits.npz")
except ValueError as error:
    print(str(error).replace("runs/", ""))

# %% [markdown] tags=["answer"]
# It raises an error. All shapes fit, so without this check the file would load and every prediction
# would be a guess, because *AB* is a change to one particular *W*. When you store adapters, also
# store the name and the exact version of their base.

# %% [markdown]
# ## What to remember
#
# - An adapter adds a few trainable parameters to a frozen network. Freeze everything else
#   *yourself* (`enable_lora` does not), and compile again.
# - It saves optimizer memory and disk space per task, but little time, because the gradient still
#   passes through the whole network.
# - Where the head alone does well, an adapter adds little. Where it did not, adapters in *all*
#   blocks beat training the last block, at a higher learning rate than suited the network's own
#   weights.
#
# **Then:** a learning rate for each block instead, [chapter
# 10.2](10_2_discriminative_learning_rates.ipynb).
