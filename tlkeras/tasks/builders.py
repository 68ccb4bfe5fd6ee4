"""The TFDS builders under `data/tasks/`: found, prepared once, and read into memory.

Importing this module registers them with TFDS. In addition to what TFDS requires, a builder can
have these class attributes:

    SLOW     why its preparation takes a while; printed to standard error before it begins
    NOTE     what a reader must know about the data, such as "Synthetic"; shown in every title
    DOMAINS  {domain: configuration}: other views of the same classes; the first is the default
    START    the network to start from, if not the one for photographs
    GROUP    a feature, such as the patient, none of whose values occurs in two splits
"""

import importlib.util
import io
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tlkeras.tasks.contents import PHOTOGRAPHS, SPLITS, Contents
from tlkeras.utils import paths
from tlkeras.utils.lock import lock


def names() -> list[str]:
    """Return the names of the tasks that come with tlkeras."""
    return [folder.name for folder in paths.tasks()]


def builder_class(name: str) -> type[tfds.core.DatasetBuilder]:
    """Return the builder class of a task."""
    return importlib.import_module(f"tlkeras_tasks.{name}.{name}_dataset_builder").Builder


def load(name: str, domain: str | None, cache: Path) -> Contents:
    """Load a task that comes with tlkeras, and prepare it first if necessary.

    Args:
        name: the task, optionally followed by `/configuration`.
        domain: one of the builder's DOMAINS. None: the first, if there are any.
        cache: the folder for prepared tasks.

    Raises:
        ValueError: the configuration or domain does not exist, or both are given.
    """
    name, _, config = name.partition("/")
    made_by = builder_class(name)
    config, domain = _choose(made_by, name, config, domain)

    def open_builder() -> tfds.core.DatasetBuilder:
        return made_by(config=config or None, data_dir=cache)

    builder = prepared(open_builder, cache, name)
    stored = [split for split in builder.info.splits if split not in SPLITS]
    return Contents(
        splits={split: _read(builder, split) for split in (*SPLITS, *stored)},
        classes=tuple(builder.info.features["label"].names),
        card=builder.info.description,
        note=getattr(made_by, "NOTE", ""),
        domain=domain,
        group=getattr(made_by, "GROUP", None),
        start=getattr(made_by, "START", PHOTOGRAPHS),
    )


def refuse_domain(name: str, domain: str | None) -> None:
    """Raise ValueError if a domain is given for something that has no domains."""
    if domain is not None:
        raise ValueError(f"{name} has no domains: leave domain={domain!r} out.")


def _choose(
    made_by: type[tfds.core.DatasetBuilder], name: str, config: str, domain: str | None
) -> tuple[str, str | None]:
    """Return the configuration ("" for the default) and the domain."""
    domains, configs = getattr(made_by, "DOMAINS", {}), list(made_by.builder_configs)
    if config and config not in configs:
        raise ValueError(f"{name} has the configurations {configs}, not {config!r}.")
    if config and domain:
        raise ValueError(
            f"{name}/{config} names a configuration and domain={domain!r} another: give one of "
            f"them, such as load_task({name!r}, domain={domain!r})."
        )
    if config:
        return config, next((key for key, value in domains.items() if value == config), None)
    if not domains:
        refuse_domain(name, domain)
        return "", None
    domain = next(iter(domains)) if domain is None else domain
    if domain not in domains:
        raise ValueError(f"{name} has the domains {list(domains)}, not {domain!r}.")
    return domains[domain], domain


def _read(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, np.ndarray]:
    """Read all features of a split, images and labels first; text as str, class labels as int32."""
    stored = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    features = builder.info.features
    arrays = {}
    for name in dict.fromkeys(["image", "label", *features]):
        array = stored[name]
        if isinstance(features[name], tfds.features.Text):
            array = np.array([text.decode("utf-8") for text in array])
        elif isinstance(features[name], tfds.features.ClassLabel):
            array = array.astype("int32")
        arrays[name] = array
    return arrays


def prepared(
    open_builder: Callable[[], tfds.core.DatasetBuilder],
    cache: Path,
    name: str,
    slow: str | None = None,
    **options: Any,
) -> tfds.core.DatasetBuilder:
    """Return a builder whose files exist; generate them if necessary.

    Only one process does so; others wait. Nothing half done remains if it is killed: TFDS writes to
    a temporary folder and renames it at the end, and leftovers of killed processes are removed
    here, while no other process can be writing.

    Args:
        open_builder: makes a new builder, which sees the files that exist by then.
        cache: folder for the lock.
        name: name of the task, for the lock and for messages.
        slow: why it takes a while. None: the builder's SLOW.
        options: passed to `download_and_prepare`.
    """
    builder = open_builder()
    if builder.data_path.exists():
        return builder
    cache.mkdir(parents=True, exist_ok=True)
    with lock(cache / f"{name}.lock"):
        builder = open_builder()
        if builder.data_path.exists():
            return builder
        for leftover in Path(builder.data_path).parent.glob("*incomplete*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if reason := slow or getattr(builder, "SLOW", None):
            print(f"Preparing {name} in {cache}, once: {reason}.", file=sys.stderr)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            builder.download_and_prepare(**options)
    return open_builder()  # reads the files that exist now


def _register() -> None:
    """Make `data/tasks/`, wherever it is, the package `tlkeras_tasks`; register its builders."""
    root = paths.data_root() / "tasks"
    spec = importlib.util.spec_from_file_location(
        "tlkeras_tasks", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    sys.modules["tlkeras_tasks"] = importlib.util.module_from_spec(spec)
    for name in names():
        assert issubclass(builder_class(name), tfds.core.DatasetBuilder)


_register()
