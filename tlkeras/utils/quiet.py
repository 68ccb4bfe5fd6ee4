"""Keeps TensorFlow's start-up chatter out of terminals and notebooks.

TensorFlow writes information lines to file descriptor 2 while its C++ libraries load, before it
reads TF_CPP_MIN_LOG_LEVEL (tensorflow #100442), so the variable alone does not help. `install`
sets it, and holds back the information among the lines that loading those libraries writes; every
other line (a missing library, say) is passed on. Nothing is done for a user who has set the
variable.
"""

import importlib.abc
import importlib.machinery
import logging
import os
import re
import sys
import tempfile
import warnings
from contextlib import contextmanager

NOISY = re.compile(r"tensorflow\.python\..*pywrap_")  # modules that load a C++ library
CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|I\d{4} \d\d:\d\d"  # absl, severity information
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: I "  # TensorFlow up to 2.20
    rb"|To enable the following instructions:"
    rb"|[EW]\d{4} \d\d:\d\d.*(cuda_\w+|computation_placer)\.cc"  # no GPU, or registered twice
)


def install() -> None:
    """Makes importing and using TensorFlow after this quiet."""
    # KerasHub and TFDS draw their bars with tqdm, which misses ipywidgets in every notebook.
    warnings.filterwarnings("ignore", "IProgress not found")
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        sys.meta_path.insert(0, _Finder())
        logging.getLogger("tensorflow").addFilter(_is_no_retracing)


def _is_no_retracing(record: logging.LogRecord) -> bool:
    """A stage compiles anew on purpose; TensorFlow takes many of them for a mistake."""
    return "triggered tf.function retracing" not in record.getMessage()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the noisy modules as usual, and wraps their loaders."""

    def find_spec(self, name, path=None, target=None):
        if not NOISY.match(name):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        with without_chatter():
            return self._loader.create_module(spec)

    def exec_module(self, module):
        with without_chatter():
            self._loader.exec_module(module)


@contextmanager
def without_chatter():
    """Holds back what is written to file descriptor 2, and passes on all but the chatter."""
    try:
        kept = os.dup(2)
    except OSError:  # no such descriptor (pythonw): nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not CHATTER.match(line):
                    os.write(2, line)
