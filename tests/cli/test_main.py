"""The command line: what it writes, prints and returns, and how it treats mistakes."""

import csv
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import small
from local_server import serving
from PIL import Image

import tlkeras as tlk
from tlkeras.cli import fit as command
from tlkeras.cli import main, tasks
from tlkeras.runs.folder import WRITTEN
from tlkeras.tasks import online
from tlkeras.training.stage_monitor import StageMonitor

FAST = {
    "head_only": {"epochs": 2},
    "two_stage": {"head_epochs": 1, "tune_epochs": 1},
    "progressive": {"head_epochs": 1, "block_epochs": 1, "blocks": 2},
    "middle_only": {"head_epochs": 1, "tune_epochs": 1},
    "full": {"epochs": 1},
    "recipe_a": {"head_epochs": 1, "tune_epochs": 1},
    "recipe_b": {"head_epochs": 1, "tune_epochs": 1, "blocks": 2},
    "recipe_c": {"epochs": 1},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "SETTINGS", FAST)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path):
    return small.photos(tmp_path / "photos")


@pytest.fixture
def backbone(tmp_path):
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    for width in (4, 6, 8):
        x = keras.layers.Conv2D(width, 3, 2, "same", activation="relu")(x)
    keras.Model(image, x).save(tmp_path / "small.keras")
    return "small.keras"


@pytest.fixture
def fit(photos, backbone):
    return lambda *more: main.main(["fit", "photos", "--backbone", backbone, *more])


def test_fit_leaves_a_model_and_its_record(fit, tmp_path, capsys):
    assert fit() == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("test accuracy ") and "on 7 images" in out
    folder = tmp_path / "runs" / "photos"
    assert sorted(p.name for p in folder.iterdir()) == sorted(WRITTEN)
    model = keras.saving.load_model(folder / "model.keras")
    assert model.predict(np.zeros((1, 16, 16, 3)), verbose=0).shape == (1, 2)
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["stage"] for row in rows] == ["head", "tune"]
    assert float(rows[0]["val_accuracy"]) >= 0
    run = tlk.load_run(folder)
    assert [stage.epochs for stage in run.plan.stages] == [1, 1]
    assert run.classes == ("bright", "dark")
    assert run.record["command"].startswith("tlkeras fit photos --backbone ")
    assert Image.open(folder / "history.png").size[0] > 300


def test_json_is_one_object_and_nothing_else(fit, tmp_path, capsys):
    assert fit("--json", "--labels-per-class", "5", "--seed", "3") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "stem" in captured.err or "block" in captured.err
    assert result["labels_per_class"] == 5 and result["seed"] == 3
    assert result["counts"] == {"train": 10, "validation": 5, "test": 7}
    assert 0 <= result["test_accuracy"] <= 1 and result["train_seconds"] > 0
    first, second = result["stages"]
    assert (first["name"], first["epochs"], first["learning_rate"]) == ("head", 1, 1e-2)
    assert first["trainable_parameters"] < second["trainable_parameters"]
    assert (tmp_path / result["model_path"]).is_file()
    assert json.loads((tmp_path / "runs/photos/run.json").read_text())["result"] == result


def test_the_accuracy_printed_is_that_of_the_model_written(fit, tmp_path, capsys):
    assert fit("--json", "--recipe", "full") == 0
    result = json.loads(capsys.readouterr().out)
    model = keras.saving.load_model(result["model_path"])
    x, y = tlk.load_task("photos").arrays("test")
    assert result["test_accuracy"] == (model.predict(x, verbose=0).argmax(-1) == y).mean()


@pytest.mark.parametrize("recipe", FAST)
def test_every_recipe_runs(fit, recipe, capsys):
    assert fit("--recipe", recipe, "--quiet") == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1 and not captured.err


def test_the_settings_fit_the_recipes(monkeypatch):
    monkeypatch.undo()
    for name, settings in command.SETTINGS.items():
        assert getattr(tlk.recipes, name)(**settings).stages


def test_results_are_written_again_but_nothing_else_is_touched(fit, tmp_path, capsys):
    assert fit("--quiet", "--out", "mine") == 0 and fit("--out", "mine") == 0
    assert "the earlier run in mine will be replaced" in capsys.readouterr().out
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    capsys.readouterr()
    assert fit("--quiet", "--out", "mine") == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert fit("--quiet", "--out", "mine", "--force") == 0
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_report_says_how_good_it_is(fit, tmp_path, capsys):
    assert fit("--json") == 0
    accuracy = json.loads(capsys.readouterr().out)["test_accuracy"]
    text = (tmp_path / "runs/photos/report.html").read_text()
    assert f"Accuracy {accuracy:.1%} on 7 test images" in text and "tlkeras fit photos" in text
    assert str(tlk.load_run("runs/photos").record["network"]["name"]) == "small.keras"


def test_a_report_that_fails_costs_no_training(fit, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no space left")

    monkeypatch.setattr(tlk, "interpret", fails, raising=False)
    assert fit() == 0
    assert "no space left" in capsys.readouterr().err and tlk.load_run("runs/photos").classes


def test_validation_accuracy_stands_in_where_there_is_no_test(fit, photos, tmp_path, capsys):
    moved = tmp_path / "split" / "train"
    moved.parent.mkdir()
    photos.rename(moved)
    for name in ("bright", "dark"):
        (tmp_path / "split" / "val" / name).mkdir(parents=True)
        (moved / name / "0.bmp").rename(tmp_path / "split" / "val" / name / "0.bmp")
    assert main.main(["fit", "split", "--backbone", "small.keras", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("validation accuracy ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "photo"], "No task and no folder"),
        (["fit", "./photo"], "No folder 'photo': expected one that holds"),
        (["fit", "photos/../small.keras"], "small.keras is a file"),
        (["fit", "photos", "--backbone", "resnett50"], "ResNet50"),
        (["fit", "photos", "--labels-per-class", "99"], "labels_per_class=99"),
        (["fit", "photos", "--image-size", "-1"], "image_size"),
        (["fit", "photos", "--out", "small.keras"], "is a file"),
        (["fit", "photos", "--out", "photos/out"], "inside the images' own folder"),
        (["fit", "photos", "--out", "small.keras/out"], "small.keras: not a directory. Choose"),
        (["fit", "photos", "--seed", "-1"], "--seed must be 0 or more"),
        (["recommend", "--images", "-5"], "at least 1, not -5"),
    ],
)
def test_a_mistake_costs_one_line(photos, backbone, arguments, says, capsys):
    assert main.main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("tlkeras: ") and says in line
    assert not Path("runs").exists()


def test_an_unknown_option_shows_those_of_its_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main.main(["fit", "photos", "--epoch-count", "3"])
    said = capsys.readouterr().err
    assert (
        said.startswith("usage: tlkeras fit ") and "unrecognized arguments: --epoch-count" in said
    )


def test_traceback_shows_where_an_error_arose():
    with pytest.raises(ValueError, match="No task"):
        main.main(["fit", "photo", "--traceback"])


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "run", interrupted)
    assert main.main(["tasks"]) == 130
    assert capsys.readouterr().err == "tlkeras: interrupted\n"


def test_an_interrupt_before_the_first_epoch_costs_no_earlier_run(fit, monkeypatch, capsys):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    assert fit("--recipe", "head_only", "--quiet") == 0
    before = Path("runs/photos/run.json").read_bytes()
    monkeypatch.setattr(StageMonitor, "on_epoch_begin", interrupted, raising=False)
    with pytest.warns(RuntimeWarning, match="interrupted in epoch 1"):
        assert fit("--recipe", "full", "--quiet") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert Path("runs/photos/run.json").read_bytes() == before


def test_a_warning_is_told_without_its_place_in_the_code(monkeypatch):
    told, usual = [], warnings.formatwarning

    def warned(options):
        told.append(warnings.formatwarning("odd", UserWarning, "x.py", 1))
        return 0

    monkeypatch.setattr(tasks, "run", warned)
    assert main.main(["tasks"]) == 0 and told == ["tlkeras: odd\n"]
    assert warnings.formatwarning is usual


def test_a_run_that_diverged_is_no_success(fit, monkeypatch, capsys):
    monkeypatch.setitem(FAST, "full", {"epochs": 2, "lr": 1e30})
    with pytest.warns(RuntimeWarning):
        assert fit("--recipe", "full", "--json") == 1
    assert "loss became" in json.loads(capsys.readouterr().out)["stopped"]


def test_a_second_run_finds_what_the_first_kept_until_it_is_cleared(fit, kept, capsys):
    fit("--recipe", "head_only", "--quiet")
    (path,) = kept.glob("*.features")
    size = path.stat().st_size
    fit("--recipe", "head_only", "--quiet", "--seed", "1", "--force")
    assert path.stat().st_size == size
    capsys.readouterr()
    assert main.main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == size
    assert main.main(["cache", "--clear"]) == 0 and "removed from" in capsys.readouterr().out
    assert not list(kept.glob("*.features"))


def test_tasks_are_listed(capsys):
    assert main.main(["tasks"]) == 0
    offline, downloaded = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in offline.splitlines()] == tlk.list_tasks()
    heading, *lines = downloaded.splitlines()
    assert "TLKERAS_PROFILE=online" in heading
    assert [line.split()[0] for line in lines] == online.names()
    assert main.main(["tasks", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)["tasks"]
    assert {"digits", "glyphs"} <= {task["name"] for task in tasks} and tasks[0]["card"]
    assert [task["name"] for task in tasks if not task["online"]] == tlk.list_tasks()
    assert [task["name"] for task in tasks if task["online"]] == online.names()


def test_the_list_of_tasks_needs_neither_keras_nor_tensorflow():
    code = "import sys; from tlkeras.cli import main; main.main(['tasks']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "digits" in done.stdout and not done.stderr
    assert not {"tensorflow", "keras"} & set(done.stdout.split())


@pytest.mark.parametrize(("profile", "says"), [("", "stands in"), ("online", "404")])
def test_a_task_that_cannot_be_downloaded_costs_one_line(profile, says, monkeypatch, capsys):
    monkeypatch.setenv("TLKERAS_PROFILE", profile)
    monkeypatch.setenv("TLKERAS_DATA_DIR", "data")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with serving() as server:
        monkeypatch.setattr(online, "_MEDMNIST", server.url("gone", "{file}"))
        assert main.main(["fit", "dermamnist", "--json"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("tlkeras: ") and says in line and not captured.out


@pytest.mark.parametrize("command", [[], *([name] for name in main.COMMANDS)])
def test_help_is_everywhere(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main([*command, "--help"])
    assert "usage: tlkeras" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main(["--version"])
    assert capsys.readouterr().out == f"tlkeras {tlk.__version__}\n"


def test_recommend_answers_or_shows_the_guide(capsys):
    asked = ["recommend", "--images", "8000", "--shift", "high"]
    assert main.main(asked) == 0 and "adapters" in capsys.readouterr().out
    assert main.main([*asked, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert tlk.Plan.from_dict(plan).stages
    assert main.main(["recommend"]) == 0 and "every block" in capsys.readouterr().out
    assert main.main(["recommend", "--images", "tiny"]) == 2
    assert "how many" in capsys.readouterr().err
