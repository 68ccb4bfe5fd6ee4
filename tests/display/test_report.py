"""The report: one page that needs nothing else, in which names are text and pictures have words."""

import base64
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from light import bright, run_of
from PIL import Image

import tlkeras as tlk
from tlkeras.display import judged, page

HOSTILE = "<script>alert('1')</script> \" onload=x & $a$b_{"
NO_TEXT = "\udcff"  # what Python makes of a file's name that is not UTF-8


class Reader(HTMLParser):
    """Collects the tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.said, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    keras.utils.set_random_seed(0)
    x = np.zeros((40, 8, 8, 3)) + np.linspace(0, 255, 40)[:, None, None, None]
    y, names = (np.arange(40) >= 15).astype(int), ("dark", HOSTILE)
    plan = tlk.recipes.head_only(2)
    run = tlk.fit_stages(bright(), plan, (x, y), (x, y), verbose=0, seed=0)
    task = SimpleNamespace(
        name=HOSTILE, classes=names, image_size=(8, 8), note=HOSTILE, counts={"train": 40},
        report=(HOSTILE, NO_TEXT), features=("file",), test=(x, y), validation=(x, y),
        arrays=lambda split, name: ([f"{HOSTILE}{NO_TEXT}/{n}.png" for n in range(40)],),
    )  # fmt: skip
    found = tlk.interpret(run, task)
    path = tmp_path_factory.mktemp("report") / "report.html"
    run.save_report(path, task=task, interpretation=found, command=f"tlkeras fit {HOSTILE}")
    return Reader(path.read_text(encoding="utf-8")), found


def test_names_are_text_whatever_is_in_them(report):
    reader, found = report
    tags = {tag for tag, _ in reader.tags}
    assert "script" not in tags and not reader.open
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert "".join(reader.said).count(HOSTILE) > 5 and found.worst


def test_every_picture_is_in_the_page_and_has_words(report):
    reader, found = report
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) >= 5 + len(found.worst) + len(found.uncertain)
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert all(len(image["alt"]) > 10 for image in images)


def test_nothing_is_fetched(report):
    reader, _ = report
    addresses = [a.get("src") or a.get("href") for _, a in reader.tags if "src" in a or "href" in a]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    meta = [a for tag, a in reader.tags if tag == "meta"]
    assert any("default-src 'none'" in a.get("content", "") for a in meta)


def test_it_says_what_a_reader_asks(report):
    reader, found = report
    said = " ".join("".join(reader.said).split())
    accuracy, low, high = found.scores["accuracy"]
    assert (
        f"Accuracy {accuracy:.1%} on 40 test images" in said and f"{low:.1%} to {high:.1%}" in said
    )
    for words in ("only the new head learns", "not known to tlkeras", "seed", "2 (", "train 40"):
        assert words in said
    assert "40 images are too few to be sure of that" in said  # of calibration


def test_links_lead_somewhere(report):
    reader, _ = report
    ids = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    links = {a["href"][1:] for tag, a in reader.tags if tag == "a"}
    assert links == ids and len(ids) >= 6


def test_validation_images_flatter_and_it_is_said(tmp_path):
    x = np.zeros((8, 8, 8, 3)) + np.linspace(0, 255, 8)[:, None, None, None]
    y = (np.arange(8) >= 4).astype(int)
    run = tlk.fit_stages(bright(), tlk.recipes.head_only(1), (x, y), verbose=0)
    task = SimpleNamespace(test=None, validation=(x, y), features=(), classes=("a", "b"))
    found = tlk.interpret(run, task)
    text = run.save_report(tmp_path / "r.html", ["a", "b"], interpretation=found).read_text()
    assert "keep some for testing" in text
    assert "has not been measured" in run.save_report(tmp_path / "r.html", ["a", "b"]).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_what_the_doctor_finds_is_said(tmp_path):
    x = np.zeros((8, 8, 8, 3)) + np.linspace(0, 255, 8)[:, None, None, None]
    y = (np.arange(8) >= 4).astype(int)
    run = tlk.fit_stages(bright(), tlk.recipes.head_only(1), (x, y), (x, y), verbose=0)
    assert "What looks wrong" not in run.save_report(tmp_path / "r.html", ["a", "b"]).read_text()
    run.stages[0].failed = f"the loss became nan {HOSTILE}"
    text = run.save_report(tmp_path / "r.html", ["a", "b"]).read_text()
    assert "What looks wrong" in text and "<script>alert" not in text and "ten times" in text


def test_several_labels_and_numbers_have_a_report(tmp_path):
    x = np.zeros((8, 8, 8, 3)) + np.linspace(0, 255, 8)[:, None, None, None]
    rows = np.stack([np.ones(8), x[:, 0, 0, 0] > 100], axis=1).astype("float32")
    entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    for y, width, loss in ((rows, 2, entropy), (x[:, 0, 0, 0], 1, "mse")):
        run = tlk.fit_stages(bright(width), tlk.recipes.head_only(1), (x, y), loss=loss, verbose=0)
        names = ["there", HOSTILE][-width:]
        found = tlk.interpret(run, (x, y), classes=names)
        page = Reader(run.save_report(tmp_path / "r.html", names, interpretation=found).read_text())
        said = "".join(page.said)
        assert (
            "Mean" in said
            and HOSTILE in said
            and "interval" not in said
            and "confusion" not in said
            and not page.open
        )
        images = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
        assert any(alt.startswith("Predicted against true") for alt in images) == (width == 1)


def test_a_card_without_intervals_speaks_of_none(tmp_path):
    folder = run_of(bright(1), "mse", tmp_path, ("age",))
    x = np.zeros((8, 8, 8, 3)) + np.linspace(0, 255, 8)[:, None, None, None]
    found = tlk.interpret(folder, (x, x[:, 0, 0, 0]))
    card = (tlk.load_run(folder).save(folder, interpretation=found) / "README.md").read_text()
    assert "mean absolute error" in card and "interval" not in card and "recall" not in card


def test_many_classes_are_no_wall_of_numbers():
    figure = judged.confusion(np.eye(60, dtype=int), [f"class {n}" for n in range(60)])
    assert not figure.axes[0].texts and figure.get_size_inches().max() <= 9


def test_a_map_is_laid_over_its_image():
    image, heat = np.zeros((8, 6, 3)), np.zeros((2, 2))
    heat[0, 1] = 1
    warm = judged.warm(image, heat).sum(-1)
    assert warm.shape == (8, 6) and (warm[:2, 4:] == warm.max()).all()
    assert warm[:, :2].max() < warm.max() and warm[6:].max() < warm.max()


def test_small_images_are_shown_large():
    html = page.photos([(np.zeros((8, 8, 3)), "nothing")], "a caption", "a & b.png")
    assert '<img alt="nothing"' in html and "a caption <small>a &amp; b.png</small>" in html
    data = re.search('base64,([^"]*)', html)[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 160)
