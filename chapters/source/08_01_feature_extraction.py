# %% [markdown]
# # 8.1 · Feature extraction: look once, keep what was seen
#
# **The question.** The simplest flavour uses a pretrained network only to turn each image into a
# list of numbers. Which network should you use, at which depth, and with which classifier on top?
# And does it work for text?
#
# **The promise.** In about a minute on two cores you extract features from a CNN, from a vision
# transformer and from text, in plain Keras. You choose the depth and the classifier from
# measurements, and you learn when frozen features are not enough. *(Section 1.8 of the course,
# number 1; no internet needed.)*

# %%
import tlkeras as tlk  # first: it keeps TensorFlow quiet

import keras
import numpy as np

SEED = 0  # change it for another draw of labels
setting = tlk.setting("08_01")
tlk.accelerate(quiet=True)

# %% [markdown]
# ## The idea
#
# A librarian reads a book once and writes a catalogue card: author, subject, period. From then on
# readers search the cards, and the book stays on its shelf. Here the librarian is the
# **[backbone](glossary.md#backbone)** (a CNN such as ResNet or EfficientNet, a vision transformer,
# or BioBERT for text). An image's **[features](glossary.md#feature)** are its card, and what you
# train is a small classifier that reads only the cards. This is **[feature
# extraction](glossary.md#feature-extraction)** ([Donahue and others
# 2013](https://arxiv.org/abs/1310.1531)). It is the first thing to try and, with few labels and
# little time, often all you need.
#
# Our images are `lesions`: seven classes of **synthetic** skin marks, with no medical validity. We
# use 30 labelled images per class.

# %% alt="A row of seven small synthetic images of skin, one of each class; they differ in colour, border and texture."
task = tlk.load_task(setting.task, setting.labels_per_class, SEED, setting.image_size)
images, labels = task.arrays("train")
new, truth = (part[:300] for part in task.arrays("validation")[:2])
task.show(rows=1, columns=7)

# %% [markdown]
# ## By hand: compute once, keep the features
#
# The network was trained on ImageNet photographs. It outputs a 3 x 3 grid with 1,280 numbers at
# each position. Averaged over the positions, an image becomes 1,280 numbers. After one call of
# `predict` the network is no longer needed.

# %%
backbone = tlk.load_backbone(setting.backbone, setting.image_size)
backbone.trainable = False
reader = keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D()])
features = reader.predict(images, verbose=0)
seen = reader.predict(new, verbose=0)

# %% tags=["nbval-check-output"]
rows = [["images", images[0].size, images.nbytes / 1024]]
rows += [["features", features[0].size, features.nbytes / 1024]]
tlk.table(rows, [f"{len(images)} examples", "numbers each", "KiB"], digits=0)

# %% [markdown]
# Any classifier can be trained on these features. The simplest is a linear one, called a **[linear
# probe](glossary.md#linear-probe)**. The features are on different scales, so each is first
# standardised to mean 0 and [spread](glossary.md#spread) 1. `C` controls how closely the classifier
# fits the labels. The score is [balanced accuracy](glossary.md#balanced-accuracy), in which every
# class counts equally.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def probed(x, y, x_new, y_new):
    """Balanced accuracy of a linear classifier, in %."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    return 100 * balanced_accuracy_score(y_new, classifier.fit(x, y).predict(x_new))


print(f"{probed(features, labels, seen, truth):.0f} % balanced accuracy, a single draw")

# %% [markdown]
# ## Cached, and not
#
# Many guides keep the frozen network inside the model, and `fit` sends every image through it in
# every epoch. Does that give the same head? To find out, a layer in front of the network counts the
# images that pass through.


# %% tags=["plumbing"]
class Counter(keras.layers.Layer):
    def build(self, shape):
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.seen.assign_add(keras.ops.cast(keras.ops.shape(x)[0], "float32"))
        return x


counter = Counter()
counted = keras.Sequential([keras.Input(images.shape[1:]), counter, reader])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
EPOCHS = 3


# %% tags=["plumbing"]
def fitted(before_the_head, x):
    """The initial weights and the order of the images depend only on the seed."""
    counter.seen.assign(0)
    keras.utils.set_random_seed(SEED)
    head = keras.layers.Dense(len(task.classes))
    model = keras.Sequential([*before_the_head, head])
    model.compile(keras.optimizers.AdamW(1e-3), loss, jit_compile=False)
    model.fit(x, labels, batch_size=30, epochs=EPOCHS, verbose=0)
    return head, int(counter.seen.numpy())


# %% tags=["plumbing"]
in_fit, times = fitted([counted], images)
counter.seen.assign(0)
extracted = counted.predict(images, batch_size=30, verbose=0)
once = int(counter.seen.numpy())
cached, more = fitted([keras.Input(extracted.shape[1:])], extracted)
apart = float(np.abs(in_fit.kernel.numpy() - cached.kernel.numpy()).max())

# %% tags=["plumbing", "nbval-check-output"]
rows = [["network inside fit", times], ["features once, head alone", once + more]]
note = f"Largest difference between the weights of the two heads: {apart:.2f}"
tlk.table(rows, [f"{EPOCHS} epochs", "images through the network"], note=note)

# %% [markdown]
# The heads are the same, for a third of the work; over a hundred epochs it would be a hundredth.
# Two conditions must hold. The frozen part has to compute the same thing every time (dropout inside
# a backbone is active in `fit`; these networks have none). And the images have to stay the same:
# augmentation is covered further down.
#
# ## The same with tlkeras
#
# `fit_stages` caches features by itself wherever that is exact, and reports where. The result is
# still a complete Keras model that takes images.

# %% tags=["nbval-check-output"]
model = tlk.add_head(backbone, classes=len(task.classes))
plan = tlk.recipes.head_only(epochs=30, head_lr=1e-3)
run = tlk.fit_stages(model, plan, (images, labels), seed=SEED, verbose=0)
print("features cached:", run.stages[0].cache)

# %% [markdown]
# ## Of which network, from which depth
#
# A **vision transformer** (ViT, [Dosovitskiy and others 2020](https://arxiv.org/abs/2010.11929))
# cuts an image into patches, 64 here, and outputs a list of numbers for each, 96 here. Averaged
# over the patches, an image becomes 96 numbers. Ours was trained on printed letters (synthetic),
# and we apply it to real handwritten digits. KerasHub packs its six blocks into one layer, so to
# stop after the fourth block, call the blocks one by one.

# %%
vit = tlk.load_backbone("glyph_vit", 32)
*_, scaled, transformer = vit.layers  # a layer that scales pixels, and KerasHub's transformer
encoder = transformer.get_layer("vit_encoder")
x = keras.Model(transformer.input, encoder.input)(scaled.output)  # 64 patches
for block in encoder.encoder_layers[:4]:
    x = block(x)
reader_4 = keras.Model(vit.input, keras.layers.GlobalAveragePooling1D()(x))

# %%
digits = tlk.load_task("digits", setting.labels_per_class, SEED, 32)
(x, y), (x_new, y_new) = digits.arrays("train"), digits.arrays("validation")
x, x_new = (reader_4.predict(part, verbose=0) for part in (x, x_new))
print(f"{x.shape[1]} numbers per digit; {probed(x, y, x_new, y_new):.0f} % right, a single draw")

# %% [markdown]
# The stored results cover every block of both networks on both tasks, with 5 and 30 labels per
# class and five [draws](glossary.md#draw). `C` was chosen on validation images, with other draws.

# %% tags=["plumbing"] alt="Line plot of balanced accuracy over the block, from the bottom up, four lines. Lesions: CNN from photographs rises from 26 to 65 percent; ViT from letters rises from 17 to 29 with its first block and falls to 23. Digits: ViT from letters rises from 29 to 94 with its first block and to 96; CNN from photographs rises from 69 to 95 and falls to 89."
stored = tlk.results("extraction")
kinds = {"efficientnet_lite0": "CNN, photographs", "glyph_vit": "ViT, letters"}
by_depth, rows = {}, []
for task_name in ("lesions", "digits"):
    for network, name in kinds.items():
        runs = stored.where(part="depth", task=task_name, network=network)
        scores = runs.scores("what", "labels_per_class", scale=100)
        by_depth[f"{task_name}: {name}"] = {n: s[30] for n, s in enumerate(scores.values(), 1)}
        thirty = runs.where(labels_per_class=30)
        chosen = max(thirty, key=lambda row: row["validation"])["what"]
        shown = {"CNN, photographs": ["block4-5", "block6-7"]}.get(name, [chosen, list(scores)[-1]])
        rows += [[task_name, name, block, scores[block][5], scores[block][30]] for block in shown]
tlk.plots.curves(
    by_depth, x="block, from the bottom up", title="The last block is not always the best"
)

# %% tags=["plumbing", "nbval-check-output"]
tlk.table(rows, ["task", "network", "block", "5 labels", "30 labels"], note=stored.note)

# %% [markdown]
# For lesions **the network** decides: features learned from photographs score twice as high as
# those learned from letters, which get *worse* after the first block. For digits **the depth**
# matters more. The last block of the network from photographs is 7 to 16 points behind the block
# before it. That earlier block is in turn behind the network from letters, by six points with 5
# labels and by 0.9 ± 0.3 with 30 (here ± is the standard error of the mean difference, draw by
# draw). For lesions the last block is ahead with 30 labels (3 to 5 points) and behind with 5 (5 ±
# 2). The two networks differ in source, architecture and size at once, so this does not say whether
# CNNs or transformers are better.
#
# `tlk.probe` measures all blocks of a network in one call, on your own data: see exercise 2.
#
# ## With which classifier
#
# We compare three classifiers: the **linear probe**; **[nearest
# neighbours](glossary.md#nearest-neighbours)**, which learns nothing and takes the labels of the
# images with the most similar features; and a **small network** with one hidden layer. Their
# settings were chosen on validation images, with other draws.

# %% tags=["plumbing"] alt="Bars of balanced accuracy of linear probe, nearest neighbours and small network. Lesions, 5 labels: 38, 35, 36 percent; 30 labels: 65, 53, 61. Digits, 5 labels: 90, 87, 89; 30 labels: 96, 96, 96."
classifiers = {}
for task_name in ("lesions", "digits"):
    for count in (5, 30):
        runs = stored.where(part="classifier", task=task_name, labels_per_class=count)
        classifiers[f"{task_name}, {count} labels"] = runs.scores("what", scale=100)
tlk.plots.bars(classifiers, title="No classifier is clearly better than the linear probe")

# %% tags=["plumbing", "nbval-check-output"]
lead = {}
for where, found in classifiers.items():
    linear = found["linear probe"]
    lead[where] = {name: draws - linear for name, draws in found.items() if name != "linear probe"}
tlk.table(lead, "points ahead of the linear probe, draw by draw")

# %% [markdown]
# The linear probe is never clearly behind: the half point on digits is a tie. With five labels its
# lead is one to three points, about its spread or less, so those are ties too. For lesions with
# thirty labels, nearest neighbours is twelve points behind. A likely reason: it gives all 1,280
# features equal weight, while a linear classifier learns to ignore the uninformative ones. The
# small network is four points behind after 300 steps at the highest rate tried, so it may not have
# converged.
#
# ## Augmentation and cached features
#
# If an image is rotated differently in every epoch, its features cannot be cached. The features of
# a *fixed* set of views can. A mark on the skin has no right way up, so compute features for all
# eight orientations (four quarter turns, each mirrored or not).
#
# ```python
# turned = [np.rot90(images, k, axes=(1, 2)) for k in range(4)]
# views = turned + [view[:, :, ::-1] for view in turned]
# features = np.concatenate([reader.predict(view) for view in views])
# labels = np.tile(labels, 8)
# ```

# %% tags=["plumbing", "nbval-check-output"]
views = stored.where(part="views")
tlk.table(views.scores("what", "labels_per_class", scale=100), "lesions, labels of each class")

# %% [markdown]
# The gain is six points on average with 5 labels (± 2; nothing in one of the five draws) and two
# points with 30 (± 0.6).
#
# ## Text: the words of a report
#
# Every lesion comes with a short report (also synthetic). There are 3,600 reports, and we use the
# labels of 210 of them. The oldest way to turn a text into features is to count its words: how
# often each one occurs, with more weight on rare words (**TF-IDF**).

# %%
from sklearn.feature_extraction.text import TfidfVectorizer

written = tlk.load_task("lesions").arrays("train", "report")[0]
few = tlk.load_task("lesions", 30, SEED)
reports, kind = few.arrays("train", "report", "label")
held, answer = few.arrays("validation", "report", "label")
counting = TfidfVectorizer(token_pattern="[a-z]+").fit(written)
words, words_held = (counting.transform(part).toarray() for part in (reports, held))
print(f"{reports[0]}\n{words.shape[1]} different words")

# %% [markdown]
# Word counts treat *bleeds* and *blood* as just as different as *bleeds* and *waxy*. A pretrained
# text network does better, because it has learned which words appear in similar contexts;
# **BioBERT** ([Lee and others 2019](https://arxiv.org/abs/1901.08746)) was trained on PubMed.
# Offline, we train our own representation on the 3,600 reports, without labels. Count how often two
# words stand within four words of each other, compute how much more often that is than by chance,
# and keep the 64 directions in which the words differ most. The result is a **[word
# vector](glossary.md#word-vector)** for each word ([Levy and Goldberg
# 2014](https://papers.nips.cc/paper/2014/hash/feab05aa91085b7a8012516bc3533958-Abstract.html)).

# %%
place = counting.vocabulary_
split = counting.build_analyzer()
counts = np.zeros((len(place), len(place)))
for report in written:
    found = [place[word] for word in split(report)]
    for i, word in enumerate(found):
        for other in found[max(0, i - 4) : i]:
            counts[word, other] += 1
            counts[other, word] += 1

# %%
by_chance = counts.sum(axis=0) * counts.sum(axis=1, keepdims=True) / counts.sum()
surprise = np.log(np.maximum(counts / by_chance, 1))
directions, sizes, _ = np.linalg.svd(surprise)
vectors = directions[:, :64] * sizes[:64]
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

# %% tags=["plumbing", "nbval-check-output"]
names = counting.get_feature_names_out()
rows = []
for word in ("bleeds", "man", "milia", "face"):
    alike = np.argsort(-vectors @ vectors[place[word]])[1:4]
    rows.append([word, ", ".join(names[alike])])
tlk.table(rows, ["word", "most alike, learned without labels"])

# %% [markdown]
# The features of a report are the sum of its words' vectors, weighted as before: 64 numbers instead
# of 202.

# %%
rows = [["words", probed(words, kind, words_held, answer)]]
rows += [["co-occurrence", probed(words @ vectors, kind, words_held @ vectors, answer)]]
tlk.table(rows, ["a single draw", "validation, %"], digits=0)

# %% [markdown]
# The other way is a transformer. KerasHub's `BertBackbone` has BioBERT's architecture. Here we use
# a tiny untrained one to show its input (one number per word) and its output (a vector for each
# word *in its sentence*, to be averaged).

# %% tags=["plumbing"]
import keras_hub


def tokens(texts, length=32):
    ids = np.zeros((len(texts), length), "int32")
    for row, text in zip(ids, texts, strict=True):
        found = [3 + place[word] for word in split(text) if word in place][:length]
        row[: len(found)] = found
    return {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": np.minimum(ids, 1)}


# %%
keras.utils.set_random_seed(SEED)
bert = keras_hub.models.BertBackbone(
    len(place) + 3, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32
)


def features_of(texts):
    given = tokens(texts)
    there = given["padding_mask"][..., None]
    said = bert.predict(given, batch_size=100, verbose=0)["sequence_output"]
    return np.sum(said * there, axis=1) / np.sum(there, axis=1)


right = probed(features_of(reports), kind, features_of(held), answer)
print(f"shape {features_of(reports).shape}; {right:.0f} % with an untrained network, a single draw")

# %% [markdown]
# Online, the same lines compute features with BioBERT. They were **not run here**, because this
# notebook was built without internet. KerasHub reads `model.safetensors`; if a repository only has
# PyTorch's file, save the model again with `transformers` to a folder and pass that folder instead
# of the handle.
#
# ```python
# handle = "hf://dmis-lab/biobert-v1.1"
# bert = keras_hub.models.BertBackbone.from_preset(handle)
# tokens = keras_hub.models.BertTextClassifierPreprocessor.from_preset(handle, sequence_length=64)
# ```
#
# Which features are best? The table shows five draws, with `C` and scaling chosen on validation for
# each set of features. *random* means 64 random numbers per word.

# %% tags=["plumbing", "nbval-check-output"]
texts = stored.where(part="text").scores("network", "labels_per_class", scale=100)
tlk.table(texts, "reports, labels of each class", note="BERT: two layers of 64. Spread over draws.")

# %% [markdown]
# The word counts are best. With five labels the word vectors are less than a point behind them, and
# four points ahead of random vectors; those four points are what was learned without labels. With
# thirty labels they are three points behind. The transformer does not benefit from its training
# (ten epochs, one run): with thirty labels it is five points worse than untrained. Averaged outputs
# of the real BERT make poor sentence features, too ([Reimers and Gurevych
# 2019](https://arxiv.org/abs/1908.10084)), because BERT learned to guess words, not to summarise a
# text.
#
# All this holds for short reports of a few phrases. Where texts use many rare words, a network
# trained on a large corpus has an advantage. Run the simple word counts next to it.
#
# ## Where it fails
#
# Features hold only what the network learned to extract. If that does not include what you ask for,
# no classifier can recover it. Here are two cases, with 30 labels. In one, the ViT trained on
# printed letters gets digits behind synthetic stripes, which swap bright and dark. In the other, a
# CNN trained on letters gets lesions. *Frozen* and *random* are linear probes, on the network and
# on the same network untrained. *Fine-tuned* and *scratch* train the whole network.

# %% tags=["plumbing", "nbval-check-output"]
behind = tlk.results("adapters", part="draws", network="glyph_vit", task="blinds")
behind = behind.where(method=["head", "full"])
far = tlk.results("tasks", preset="glyph_resnet_small", task="lesions", labels_per_class=30)
learns = {"head": "head on frozen features", "full": "whole network, fine-tuned"}
rows = []
for name, draws in behind.scores("method", scale=100).items():
    rows.append(["ViT from letters: digits behind blinds", learns[name], draws])
scores = far.scores("method", scale=100)
for name in ("frozen", "random", "fine-tuned", "scratch"):
    rows.append(["CNN from letters: lesions", name, scores[name]])
tlk.table(rows, ["30 labels", "what", "test, %"])

# %% [markdown]
# Behind the stripes, the head on frozen features misses every fourth digit, and fine-tuning gains
# 16 points (± 1). The network itself has to change; [chapter 10.1](10_1_adapters.ipynb) does that
# with few parameters. For lesions, features learned from letters are twelve points (± 1.4) *behind*
# those of the same network with random weights, and fine-tuning does not repair that. There you
# need another source, not another classifier.
#
# ## What it costs

# %% tags=["plumbing"]
rows = []
for name, what in {"in fit": "network inside fit", "once": "features once, head alone"}.items():
    row = stored.where(part="cache", what=name).rows[0]
    rows.append([f"{what}, ten epochs", row["choice"], row["seconds"], "8,967"])
for row in stored.where(part="classifier", task="lesions", labels_per_class=30, seed=20):
    rows.append(
        [f"{row['what']}, on the features", "0", row["seconds"], f"{row['parameters']:,.0f}"]
    )
header = ["210 images of lesions", "through the network", "seconds of one core", "numbers stored"]
tlk.table(rows, header)

# %% [markdown]
# (One run each.) Once the features are computed, training a classifier takes about a second or much
# less, so you can compare many. Nearest neighbours stores every feature vector it was given; the
# others store a fixed number of parameters. In memory the 1,280 features of an image take 5 KiB,
# the image itself 108.
#
# ## Try it yourself

# %% [markdown] tags=["question"]
# ### Exercise 1: the nearest neighbour, by hand
#
# One nearest neighbour takes three lines of NumPy. For every new image, find the labelled image
# whose `features` point in the most similar direction (cosine), and take its label.

# %% [markdown] tags=["hint"]
# Divide every row of `features` and of `seen` by its length, `np.linalg.norm(..., axis=1,
# keepdims=True)`. `a @ b.T` then holds the cosine of every pair.

# %% tags=["answer"]
ours, theirs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, seen))
nearest = np.argmax(theirs @ ours.T, axis=1)
rows = [["nearest neighbour", 100 * balanced_accuracy_score(truth, labels[nearest])]]
rows += [["linear probe", probed(features, labels, seen, truth)]]
tlk.table(rows, ["one draw", "validation, %"], digits=0)

# %% [markdown] tags=["answer"]
# A single nearest neighbour is a coarser classifier than a linear one: in the stored draws the best
# number of neighbours for lesions was 20, the largest that was tried. The advantage of neighbours
# is that they can be shown: *this* labelled image is the reason.

# %% [markdown] tags=["question"]
# ### Exercise 2: which depth, on your own data
#
# Measure every block of `backbone` with `tlk.probe`, in one pass. Where would you take the
# features?

# %% [markdown] tags=["hint"]
# `tlk.probe(backbone, (images, labels), (new, truth), strength=0.01)`.

# %% tags=["answer"]
tlk.probe(backbone, (images, labels), (new, truth), strength=0.01)

# %% [markdown] tags=["answer"]
# At the last block, as in the stored runs with 30 labels. (This is plain accuracy, not balanced
# accuracy, so the numbers differ from those in the tables above.) With 5 labels per class the block
# before it is ahead in the stored runs, 43 to 38, by more in some draws than in others. Perhaps its
# 112 features are easier to learn from than 1,280.

# %% [markdown] tags=["question"]
# ### Exercise 3: the wrong scale
#
# This network takes pixels from 0 to 255 and scales them itself. What happens to the features if
# somebody divides by 255 first, as many guides do? Is there an error or a warning?

# %% [markdown] tags=["hint"]
# `reader.predict(images / 255)`, the same for `new`, then `probed`.

# %% tags=["answer"]
dark, dark_seen = (reader.predict(part / 255, verbose=0) for part in (images, new))
rows = [["0 to 255", probed(features, labels, seen, truth)]]
rows += [["0 to 1", probed(dark, labels, dark_seen, truth)]]
tlk.table(rows, ["pixels", "validation, %"], digits=0)

# %% [markdown] tags=["answer"]
# There is none, and the probe's score is about halved: to the network every image is nearly black.
# Features fail silently, so run a probe before you train anything large.

# %% [markdown]
# ## What to remember
#
# - Compute features once: with the network frozen, one `predict` gives the same head as sending
#   every image through the network in every epoch, for a fraction of the work.
# - First choose the network and the depth, with a linear probe on validation images. The classifier
#   on top matters less, and a linear one is hard to beat.
# - Features hold what the network was trained for. If the probe stays low at every depth, take
#   another source, or fine-tune the network.
#
# **Then**: part of the network learns as well, in [chapter 8.2](08_02_fine_tuning.ipynb).
