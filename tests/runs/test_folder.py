"""A run in a folder: written whole, read in a fresh process, refused where it is damaged."""

import json
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from small import easy_data, small_backbone, with_head

import tlkeras as tlk
from tlkeras.utils import paths

FILES = ["README.md", "history.csv", "history.png", "model.keras", "report.html", "run.json"]
RATES = tlk.optimizers.layerwise_decay(0.5)


def trained(model=None, data=None, **options):
    plan = [tlk.Stage("tune", tlk.policies.all_blocks(), epochs=1, rates=RATES)]
    model = with_head(small_backbone()) if model is None else model
    return tlk.fit_stages(model, plan, data or easy_data(), verbose=0, seed=0, **options)


@pytest.fixture(scope="module")
def run():
    keras.utils.set_random_seed(0)
    return trained(validation_data=easy_data(seed=1))


@pytest.fixture
def folder(run, tmp_path):
    return run.save(tmp_path / "runs" / "a", classes=["cat", "dog", "owl"], seed=0)


def softmax(scores):
    exponents = np.exp(scores - scores.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def test_a_run_is_all_there_is_to_know(run, folder, tmp_path):
    assert sorted(file.name for file in folder.iterdir()) == FILES
    again, (x, _) = tlk.load_run(folder), easy_data()
    assert again.classes == ("cat", "dog", "owl") and again.image_size == (16, 16)
    assert again.plan.to_dict() == run.plan.to_dict() and again.history == run.history
    assert repr(again) == repr(run) and again.seconds == run.seconds
    given, wanted = again.model.predict(x, verbose=0), run.model.predict(x, verbose=0)
    np.testing.assert_allclose(given, softmax(wanted), atol=1e-6)
    assert again.record["seed"] == 0 and again.record["versions"]["keras"] == keras.__version__
    again.plot()
    twice = tlk.load_run(again.save(tmp_path / "b", classes=again.classes))
    np.testing.assert_allclose(twice.model.predict(x, verbose=0), given, atol=1e-6)


def test_the_model_needs_keras_alone(folder):
    code = (
        "import sys, keras; keras.saving.load_model(sys.argv[1]); print('tlkeras' in sys.modules)"
    )
    path = folder / "model.keras"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_the_model_at_hand_stays_as_it_is(run, folder):
    kernel = run.model.layers[-1]
    assert run.model.optimizer is not None and not kernel._outbound_nodes


def one(activation=None, classes=1):
    backbone = small_backbone()
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, keras.layers.Dense(classes, activation)(x))


@pytest.mark.parametrize(
    ("model", "labels", "loss", "output"),
    [
        (lambda: one(), lambda y: y % 2, None, "sigmoid"),
        (lambda: one("sigmoid"), lambda y: y % 2, None, "sigmoid"),
        (lambda: one(classes=3), lambda y: np.triu(np.ones((3, 3)))[y], None, "sigmoid"),
        (lambda: one("softmax", 3), lambda y: y, None, "softmax"),
        (lambda: one(classes=3), lambda y: np.eye(3)[y], None, "softmax"),
        (lambda: one(), lambda y: y / 3.0, "mse", "numbers"),
    ],
)
def test_it_gives_what_its_loss_took_it_for(model, labels, loss, output, tmp_path):
    x, y = easy_data()
    run = trained(model(), (x, labels(y).astype("float32")), loss=loss)
    again = tlk.load_run(run.save(tmp_path / "run"))
    assert again.output == output
    given = again.model.predict(x, verbose=0)
    if output == "softmax":
        np.testing.assert_allclose(given.sum(-1), 1, atol=1e-5)
    if output == "sigmoid":
        assert ((given >= 0) & (given <= 1)).all()
    assert len(again.classes) == (
        2 if output == "sigmoid" and given.shape[1] == 1 else len(given[0])
    )


def test_names_must_fit(run, tmp_path):
    with pytest.raises(ValueError, match="Expected 3 names"):
        run.save(tmp_path / "run", classes=["cat", "dog"])
    with pytest.raises(ValueError, match="colour"):
        run.save(tmp_path / "run", colour="red")
    assert not list(tmp_path.iterdir())


def test_what_fails_leaves_nothing(run, tmp_path):
    broken = tlk.Run(run.model, run.plan, run.stages, run.history | {"loss": []})
    with pytest.raises(ValueError):
        broken.save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_run_of_no_epoch_is_kept_too(run, tmp_path):
    again = tlk.load_run(tlk.Run(run.model, run.plan).save(tmp_path / "run"))
    assert again.history == {} and again.plot().axes


def test_a_folder_that_is_no_run_is_left_alone(run, folder, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"other files \(README.md\)"):
        run.save(tmp_path / "notes")
    with pytest.raises(ValueError, match="is a file"):
        run.save(tmp_path / "notes" / "README.md")
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="thesis.txt"):
        run.save(folder)
    run.save(folder, force=True, seed=5)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert tlk.load_run(folder).record["seed"] == 5


def spoil(folder, **changes):
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "run.json").unlink(), "with its run.json"),
        (lambda f: (f / "run.json").write_text("{"), "as tlkeras writes it"),
        (lambda f: (f / "run.json").write_text('{"a": 1}'), "as tlkeras writes it"),
        (lambda f: spoil(f, tlkeras_run=99), "Update tlkeras"),
        (lambda f: spoil(f, stages=[{}]), "as tlkeras writes it"),
        (lambda f: (f / "model.keras").unlink(), "found none"),
        (lambda f: (f / "model.keras").write_bytes(b"PK"), "is damaged"),
        (lambda f: [p.unlink() for p in f.iterdir()] + [f.rmdir()], "no folder"),
        (lambda f: (f / "run.json").write_text('{"tlkeras_run": 1}'), "as tlkeras writes it"),
    ],
)
def test_a_damaged_folder_is_refused(folder, harm, says):
    harm(folder)
    with pytest.raises(ValueError, match=says):
        tlk.load_run(folder)


def test_code_in_a_model_is_not_run(folder):
    x = keras.Input((4,))
    keras.Model(x, keras.layers.Lambda(lambda x: x * 2)(x)).save(folder / "model.keras")
    spoil(folder, model_sha256=paths.digest(folder / "model.keras"))
    with pytest.raises(ValueError, match="Cannot read the model .* arbitrary code"):
        tlk.load_run(folder)


def test_the_card_says_what_a_reader_asks(run, tmp_path):
    hostile = "<script>|`[x](y)"
    task = SimpleNamespace(
        name="birds", classes=("cat", "dog", hostile), image_size=(16, 16), note="Synthetic",
        counts={"train": 1200, "test": 80}, report=("3 images grey", "left out \udcff.png"),
    )  # fmt: skip
    metrics = {"test": {"accuracy": 0.875}}
    folder = run.save(tmp_path / "run", task=task, network="glyph_resnet", metrics=metrics)
    card = (folder / "README.md").read_text()
    for said in (
        "train 1,200, test 80",
        "Synthetic",
        "0.875",
        "Apache-2.0",
        "3 images grey",
        "all_blocks()",
    ):
        assert said in card
    assert "<script>" not in card and r"&lt;script&gt;\|\`\[x\](y)" in card
