"""The TFDS builders under `data/tasks/`: found, prepared once, and read into memory.

Importing this module makes them known to TFDS. Beside what TFDS asks of it, a builder may have
these class attributes:

    SLOW     why its preparation takes a while; said on standard error before it begins
    NOTE     what a reader must know about the data, such as "Synthetic"; in every title
    DOMAINS  {domain: configuration}: the same classes seen otherwise; the first is the default
    START    the network to start from, if not the one for photographs
    GROUP    the feature (a patient, say) whose values are in one split only
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
    """Names of the tasks that come with tlkeras."""
    return [folder.name for folder in paths.tasks()]


def builder_class(name: str) -> type[tfds.core.DatasetBuilder]:
    """The builder of a task."""
    return importlib.import_module(f"tlkeras_tasks.{name}.{name}_dataset_builder").Builder


def load(name: str, domain: str | None, cache: Path) -> Contents:
    """A task that comes with tlkeras, prepared if it is not yet.

    Args:
        name: the task, with `/configuration` after it or not.
        domain: one of the builder's DOMAINS; None: the first, if there are any.
        cache: where prepared tasks are kept.

    Raises:
        ValueError: no such configuration or domain, or both given.
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
    """Raises ValueError if a domain was asked of what has none."""
    if domain is not None:
        raise ValueError(f"{name} has no domains: leave domain={domain!r} out.")


def _choose(
    made_by: type[tfds.core.DatasetBuilder], name: str, config: str, domain: str | None
) -> tuple[str, str | None]:
    """The configuration ("" for the default) and the domain."""
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
    """Every feature of a split, images and labels first; text as str, class labels as int32."""
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
    """A builder whose files are there, generated if need be.

    Once: other processes wait, and a kill leaves nothing half done. TFDS writes to a folder of
    its own and renames it at the end; what killed processes left behind is removed here, where
    no other process can be writing.

    Args:
        open_builder: makes the builder anew, so that it sees what is there by then.
        cache: folder for the lock.
        name: the task's, for the lock and for messages.
        slow: why it takes a while; None: the builder's SLOW.
        options: for `download_and_prepare`.
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
    return open_builder()  # reads what is there now


def _register() -> None:
    """Makes `data/tasks/` the package `tlkeras_tasks`, wherever it is, and its builders known."""
    root = paths.data_root() / "tasks"
    spec = importlib.util.spec_from_file_location(
        "tlkeras_tasks", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    sys.modules["tlkeras_tasks"] = importlib.util.module_from_spec(spec)
    for name in names():
        assert issubclass(builder_class(name), tfds.core.DatasetBuilder)


_register()
