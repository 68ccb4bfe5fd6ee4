"""What `tlkeras fit` takes besides a task: labels.csv, augmentation, weights, budgets."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import tlkeras as tlk
from tlkeras.advice import interpret
from tlkeras.cli import fit as command
from tlkeras.cli import fit_options, main
from tlkeras.tasks import pictures, targets

FAST = {
    "head_only": {"epochs": 2},
    "two_stage": {"head_epochs": 2, "tune_epochs": 1},
    "full": {"epochs": 60, "lr": 1e-2},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "SETTINGS", FAST)
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    for width in (4, 8):
        x = keras.layers.Conv2D(width, 3, 2, "same", activation="relu")(x)
    keras.Model(image, x).save(tmp_path / "small.keras")


@pytest.fixture
def shots(tmp_path):
    """48 images, red or not and blue or not; their brightness is a number in euros."""
    rng = np.random.default_rng(0)
    (tmp_path / "shots").mkdir()
    reds, blues, values = rng.integers(0, 2, 48), rng.integers(0, 2, 48), rng.integers(0, 100, 48)
    for number, (red, blue, value) in enumerate(zip(reds, blues, values, strict=True)):
        image = rng.integers(value, value + 30, (16, 16, 3))
        image += np.array([120 * red, 0, 120 * blue])
        Image.fromarray(image.astype("uint8")).save(tmp_path / "shots" / f"{number}.bmp")

    def write(cells):
        lines = [f"{number}.bmp,{cell}" for number, cell in enumerate(cells)]
        (tmp_path / "shots" / "labels.csv").write_text("\n".join(["file,label", *lines]))
        return reds, blues, values

    write.values = reds, blues, values
    return write


def fit(*more):
    return main.main(["fit", "shots", "--backbone", "small.keras", *more])


def result_of(*more):
    assert fit(*more) == 0
    return json.loads(Path("runs/shots/run.json").read_text())["result"]


def test_several_labels(shots, capsys):
    reds, blues, _ = shots.values
    shots([";".join(["red"] * r + ["blue"] * b) for r, b in zip(reds, blues, strict=True)])
    result = result_of("--recipe", "full")
    assert result["kind"] == "labels" and result["classes"] == ["blue", "red"]
    assert result["measure"] == "mean_average_precision"
    assert result["test_mean_average_precision"] > 0.9 and 0 < result["test_f1"] <= 1
    assert len(result["thresholds"]) == 2 and all(0 < t < 1 for t in result["thresholds"])
    assert "val_mean_average_precision" in result["stages"][0]["metrics"]
    assert "test mean average precision " in capsys.readouterr().out


def test_a_number(shots, capsys):
    shots([f"{1000 * value + 5e6}" for value in shots.values[2]])
    result = result_of("--recipe", "full", "--regression")
    assert result["kind"] == "number" and result["measure"] == "mean_absolute_error"
    assert result["test_mean_absolute_error"] < 0.5 * result["test_error_of_the_mean"]
    x, y = tlk.load_task("shots", regression=True).arrays("test")
    model = keras.saving.load_model(result["model_path"])
    error = np.abs(model.predict(x, verbose=0)[:, 0].astype("float64") - y).mean()
    np.testing.assert_allclose(error, result["test_mean_absolute_error"], rtol=1e-3)
    assert "test mean absolute error " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "strength"), [("class", "strong"), ("labels", "light"), ("number", "strong")]
)
def test_augmentation(shots, kind, strength):
    cells = {"class": ["ab"[r] for r in shots.values[0]], "number": shots.values[2]}
    cells["labels"] = ["a;b" if r else "b" for r in shots.values[0]]
    shots(cells[kind])
    more = ["--regression"] if kind == "number" else []
    result = result_of("--augment", strength, "--recipe", "head_only", *more)
    assert result["kind"] == kind and result["stages"][0]["epochs"] == 2


def test_augmented_images_are_images_and_not_the_same():
    images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype("float32")
    changes = []
    for strength in ("light", "strong"):
        layers = tlk.augmentation(strength, seed=0, mixing=False)
        made = np.asarray(layers(images, training=True))
        assert made.shape == images.shape and made.min() >= 0 and made.max() <= 255
        np.testing.assert_array_equal(layers(images, training=False), images)
        changes.append(np.abs(made - images).mean())
    assert 5 < changes[0] < changes[1]


def test_views_of_augmented_images_are_cached_for_the_head_alone():
    plan = fit_options.changed(tlk.recipes.two_stage(), None, "light", "class", seed=0)
    assert [stage.views for stage in plan.stages] == [fit_options.VIEWS, None]
    assert all(stage.augment is not None for stage in plan.stages)


def test_balanced_weights_count_every_class_the_same(shots):
    shots(["rare" if number < 12 else "usual" for number in range(48)])
    task = tlk.load_task("shots")
    counts = np.bincount(task.arrays("train", "label")[0])
    weights = targets.class_weights(task)
    np.testing.assert_allclose([counts[label] * weight for label, weight in weights.items()],
                               counts.sum() / 2)  # fmt: skip
    plain = result_of("--recipe", "head_only")
    balanced = result_of("--recipe", "head_only", "--class-weight", "balanced")
    losses = [result["stages"][0]["metrics"]["loss"] for result in (plain, balanced)]
    assert losses[0] != losses[1]


def test_epochs_of_each_stage(shots):
    shots("ab"[red] for red in shots.values[0])
    result = result_of("--epochs", "3")
    assert [stage["epochs"] for stage in result["stages"]] == [3, 3]


def test_a_time_budget_ends_the_run_between_epochs(shots, monkeypatch, capsys):
    monkeypatch.setitem(FAST, "two_stage", {"head_epochs": 500, "tune_epochs": 500})
    shots("ab"[red] for red in shots.values[0])
    result = result_of("--time-budget", "0.05")
    out = capsys.readouterr().out
    assert "stopped early: after " in out and "0.05 minutes is used up" in out
    epochs = sum(stage["epochs"] for stage in result["stages"])
    assert 1 <= epochs < 1000 and result["train_seconds"] < 30 and not result["stopped"]
    assert result["ended"].startswith(f"after {epochs} epochs")


def test_a_tiny_budget_trains_one_epoch(shots):
    shots("ab"[red] for red in shots.values[0])
    result = result_of("--time-budget", "1e-9")
    assert [stage["epochs"] for stage in result["stages"]] == [1]


def test_auto_says_why_it_took_each_step(shots, capsys):
    shots("ab"[red] for red in shots.values[0])
    result = result_of("--recipe", "auto", "--time-budget", "5")
    assert result["recipe"] == "auto" and result["stages"][0]["name"] == "head"
    assert result["why"][0].startswith("The probe reads ") and not result["ended"]
    assert result["why"][0] in capsys.readouterr().err
    report = Path("runs/shots/report.html").read_text()
    card = Path("runs/shots/README.md").read_text()
    assert "as --backbone says. The probe reads" in report and result["why"][-1][:20] in card


def test_auto_ends_with_its_time(shots):
    shots("ab"[red] for red in shots.values[0])
    result = result_of("--recipe", "auto", "--time-budget", "1e-9")
    assert [stage["epochs"] for stage in result["stages"]] == [1]
    assert "is used up" in result["ended"] and "is used up" in result["why"][-1]


def test_unreadable_files_are_skipped_when_asked(shots, tmp_path, capsys):
    shots("ab"[red] for red in shots.values[0])
    (tmp_path / "shots" / "3.bmp").write_bytes(b"no picture")
    assert fit() == 2
    assert "--skip-unreadable" in capsys.readouterr().err
    result = result_of("--skip-unreadable", "--epochs", "1")
    assert sum(result["counts"].values()) == 47 and "3.bmp" in result["report"][0]


@pytest.mark.parametrize(
    ("cells", "options", "says"),
    [
        ("a;b", ["--class-weight", "balanced"], "Balanced weights are for one class an image"),
        ("a;b", ["--regression"], "expected one finite number"),
        ("1", ["--regression", "--class-weight", "balanced"], "a number each"),
        ("1", ["--regression", "--labels-per-class", "3"], "leave it out"),
        ("a;b", ["--recipe", "auto"], "for one class per image; these have several labels"),
        (None, ["--recipe", "auto", "--augment", "light"], "--augment does not go with"),
        (None, ["--epochs", "0"], "--epochs must be above 0; found 0"),
        (None, ["--time-budget", "nan"], "--time-budget must be above 0; found nan"),
    ],
)
def test_an_option_that_does_not_fit_costs_one_line(shots, cells, options, says, capsys):
    shots(["ab"[red] for red in shots.values[0]] if cells is None else [cells] * 48)
    assert fit(*options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tlkeras: ") and says in line


@pytest.mark.parametrize(
    ("cells", "options", "monitor", "mode"),
    [
        ("a", [], "val_accuracy", "max"),
        ("a;b", [], "val_mean_average_precision", "max"),
        ("1", ["--regression"], "val_scaled_error", "min"),
    ],
)
def test_the_epoch_kept_is_the_best_by_what_is_told_in_the_end(
    shots, monkeypatch, cells, options, monitor, mode
):
    monkeypatch.setattr(targets, "FEW", 1)
    shots([cells if red else cells[-1] + "2" for red in shots.values[0]])
    result_of("--epochs", "2", *options)
    run = tlk.load_run("runs/shots")
    assert {(stage.monitor, stage.mode) for stage in run.stages} == {(monitor, mode)}
    best = {stage.name: stage.metrics[monitor] for stage in run.stages}
    assert best[run.kept] == (max if mode == "max" else min)(best.values())


def test_few_images_choose_by_the_loss_and_a_recipe_stops_by_what_it_says(shots):
    shots(["ab"[red] for red in shots.values[0]])
    assert targets.FitInputs(tlk.load_task("shots")).monitor == "val_loss"
    assert targets.FitInputs(tlk.load_task("digits")).monitor == "val_accuracy"

    def monitors(recipe, kind):
        plan = fit_options.judged(getattr(tlk.recipes, recipe)(), "val_it", kind)
        return {stage.monitor for stage in plan.stages}

    assert monitors("two_stage", "class") == monitors("recipe_a", "labels") == {"val_it"}
    assert monitors("recipe_a", "class") == {"val_accuracy"}
    assert monitors("recipe_b", "labels") == {"val_loss"}


@pytest.mark.parametrize(("cells", "options"), [(None, {"rows": True}), (["1", "2"], {})])
def test_what_does_not_fit_in_memory_is_streamed_as_the_same_images_and_labels(
    shots, monkeypatch, cells, options
):
    values = [(cells or "ab")[red] for red in shots.values[0]]
    shots(values)
    task = tlk.load_task("shots", regression=cells is not None)
    held = targets.FitInputs(task, **options)
    monkeypatch.setattr(targets, "MEMORY", 0)
    streamed = targets.FitInputs(task, **options)
    batches = [np.concatenate(parts) for parts in zip(*streamed.validation, strict=True)]
    for array, same in zip(held.validation, batches, strict=True):
        np.testing.assert_array_equal(array, same)
    assert len(held.train[0]) == task.counts["train"]


def test_examples_that_fail_cost_no_scores(shots, monkeypatch, capsys):
    def fails(rows, *_):
        if rows:
            raise RuntimeError("no gradients")
        return ()

    monkeypatch.setattr(interpret, "shown", fails)
    shots(["ab"[red] for red in shots.values[0]])
    assert result_of("--epochs", "1")["test_accuracy"] is not None
    assert "the report has no examples: no gradients" in capsys.readouterr().err


def test_an_image_is_read_once_though_it_is_enlarged(shots, monkeypatch):
    seen, decode = [], pictures.decode

    def counted(path, *more):
        seen.append(path)
        return decode(path, *more)

    monkeypatch.setattr(pictures, "decode", counted)
    monkeypatch.setitem(command.LEAST, "glyph_resnet_small", 24)
    shots(["ab"[red] for red in shots.values[0]])
    result = result_of("--recipe", "head_only", "--backbone", "glyph_resnet_small")
    assert result["image_size"] == [24, 24] and len(seen) == len(set(seen)) == 48


def test_regression_is_for_folders(capsys):
    assert main.main(["fit", "digits", "--regression"]) == 2
    assert "digits has classes" in capsys.readouterr().err


def test_adapters_learn_in_place_of_the_backbone_and_are_merged(shots, capsys):
    shots([["dark", "red"][red] for red in shots.values[0]])
    rank, full = result_of("--lora", "2"), result_of("--recipe", "full", "--epochs", "3")
    assert rank["lora"] == 2 and full["lora"] is None
    head, tune = (stage["trainable_parameters"] for stage in rank["stages"])
    assert head < tune < full["stages"][0]["trainable_parameters"]
    assert "not save" not in capsys.readouterr().err
    start = keras.saving.load_model("small.keras")
    [stage] = result_of("--lora", "2", "--recipe", "full", "--epochs", "3")["stages"]
    assert stage["learning_rate"] == pytest.approx(0.1)  # ten times that of the recipe
    model = tlk.load_run("runs/shots").model
    assert not any("lora" in weight.name for weight in model.weights)
    then, now = (
        next(np.array(w) for w in one.weights if w.shape == (3, 3, 3, 4)) for one in (start, model)
    )
    assert np.linalg.matrix_rank((now - then).reshape(-1, 4), tol=1e-4) == 2
    assert main.main(["predict", "runs/shots", "shots/0.bmp"]) == 0
    assert fit("--lora", "0") == 2 and "--lora must be above 0" in capsys.readouterr().err
