"""`load_task`, which loads tasks that come with tlkeras, folders of images, and downloads."""

import difflib
import os
from pathlib import Path

from tlkeras.tasks import builders, folders, online
from tlkeras.tasks.contents import keep, sides
from tlkeras.tasks.task import Task
from tlkeras.utils import paths, profiles


def list_tasks(profile: str | None = None) -> list[str]:
    """Return the names of the tasks that come with tlkeras; if online, of the online ones too.

    Args:
        profile: "offline" or "online". None: the environment variable TLKERAS_PROFILE, else
            offline.

    Raises:
        ValueError: the profile is neither "offline" nor "online".

    >>> tlk.list_tasks("offline")
    ['clothes', 'digits', 'glyphs', 'lesions', 'scenes']
    """
    return builders.names() + (online.names() if profiles.is_online(profile) else [])


def load_task(
    name_or_folder: str | os.PathLike,
    labels_per_class: int | None = None,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    data_dir: str | os.PathLike | None = None,
    domain: str | None = None,
    profile: str | None = None,
    regression: bool = False,
    skip_unreadable: bool = False,
    white: float | None = None,
    verbose: int = 1,
) -> Task:
    """Load a task by name, or from a folder of images.

    Args:
        name_or_folder: one of `list_tasks()` (followed by `/config` if the task has several), or
            a folder with one folder of images for each class, or with `train/`, `validation/`
            and `test/` laid out that way, or with a `labels.csv` (see `tlkeras.tasks.folders`). A
            task's name takes precedence over a folder of the same name; write `./digits` for the
            folder.
        labels_per_class: keep this many training images of each class, drawn by `seed`.
            Validation and test data are not reduced. None keeps all.
        seed: determines which labels are kept and the order of training. It does not move an image
            from one split to another, so runs with different seeds share their test images.
        image_size: pixels per side, or (height, width). None: the size of the images; for TFDS
            downloads and for folders, see `tlkeras.tasks.online` and `folders`.
        batch_size: images per batch.
        data_dir: folder for prepared tasks. None: the environment variable TLKERAS_DATA_DIR, else
            the user's cache folder.
        domain: one of the task's domains, which show the same classes differently. None: the first.
        profile: "offline", which downloads nothing, or "online". None: the environment variable
            TLKERAS_PROFILE, else offline.
        regression: True if the labels in a folder's `labels.csv` are numbers to be predicted.
        skip_unreadable: leave out files of a folder that cannot be read, instead of raising an
            error; the task's report names them.
        white: the value that becomes 255 in a folder's files of more than 8 bits per channel, such
            as `Task.white` of another task. None: the largest value that the bits in use can hold.
        verbose: 0 shows no progress while a folder is read.

    Raises:
        ValueError: there is no such task or domain; more labels are asked for than there are; files
            are not images; or `regression` is set without a table of numbers.
        FileNotFoundError: the folder does not exist.
        ConnectionError: an online task in the offline profile, or a failed download.

    >>> task = tlk.load_task("digits", labels_per_class=30)
    >>> task
    Task(digits: 10 classes, 32x32, train 300, validation 200, test 800)
    >>> images, labels = next(iter(task.train))
    >>> print(images.shape, labels.shape)
    (32, 32, 32, 3) (32,)
    """
    size = None if image_size is None else sides(image_size)
    cache = paths.cache_dir(data_dir)
    is_online = profiles.is_online(profile)
    name = str(name_or_folder)
    first = name.partition("/")[0]
    if regression and first in builders.names() + online.names():
        raise ValueError(f"regression=True is for a folder with a labels.csv; {name} has classes.")
    if first in builders.names():
        found = builders.load(name, domain, cache)
    elif first in online.names():
        builders.refuse_domain(name, domain)
        found = online.load(name, cache, size, is_online)
    elif (folder := Path(name).expanduser()).is_dir() or not _could_be_a_name(name):
        builders.refuse_domain(name, domain)
        found = folders.load(folder, size, regression, skip_unreadable, white, cache, verbose)
        name = folder.resolve().name
    else:
        raise ValueError(_unknown(name))
    if labels_per_class is not None:
        keep(found, labels_per_class, seed)
    _, height, width, _ = found.splits["train"]["image"].shape
    return Task(**vars(found), name=name, image_size=size or (height, width),
                batch_size=batch_size, seed=seed)  # fmt: skip


def _could_be_a_name(name: str) -> bool:
    return not name.startswith((".", "~")) and "/" not in name and os.sep not in name


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, builders.names() + online.names(), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"No task and no folder is called {name!r}.{hint} Tasks: {', '.join(builders.names())}; "
        f"online, with TLKERAS_PROFILE=online: {', '.join(online.names())}. "
        "Or give a folder with one folder of images for each class."
    )
