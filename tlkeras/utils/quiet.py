"""Keeps TensorFlow's start-up messages out of terminals and notebooks.

TF_CPP_MIN_LOG_LEVEL=3 silences TensorFlow 2.20. TensorFlow 2.21 still writes six lines to file
descriptor 2, which a notebook shows in red boxes: three while its first C++ library loads, and the
same three while `_pywrap_profiler_plugin` loads, before these libraries read the variable
(tensorflow #100442):

    WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
    I0000 ... port.cc:153] oneDNN custom operations are on. ...
    I0000 ... cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.

Measured without a GPU, in a plain process (Keras 3.12.0 on 2.20.0, 3.15.1 on 2.21.0) and in a
Jupyter kernel (2.21.0). CUDA_VISIBLE_DEVICES and the variables of absl and gRPC change nothing;
TF_ENABLE_ONEDNN_OPTS=0 hides the second line, but changes results.

Therefore, while one of TensorFlow's libraries loads, the lines that the variable should suppress
are dropped and all others are passed on. Only lines that a library writes just before it ends the
process are lost. If you set the variable yourself, you get every line.
"""

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from types import ModuleType

# absl's information, warning and error lines; those of fatal errors begin with F and are kept.
CHATTER = re.compile(rb"WARNING: All log messages before absl::InitializeLog|[IWE]\d{4} \d\d:\d\d")


def install() -> None:
    """Make later imports and uses of TensorFlow quiet."""
    # KerasHub and TFDS draw progress bars with tqdm, which warns if ipywidgets is not installed.
    warnings.filterwarnings("ignore", "IProgress not found")
    # Keras warns of its own default in every plain `fit` on a dataset.
    warnings.filterwarnings("ignore", "`shuffle=True` was passed, but will be ignored")
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        sys.meta_path.insert(0, _Finder())
        logging.getLogger("tensorflow").addFilter(_is_no_retracing)


def _is_no_retracing(record: logging.LogRecord) -> bool:
    """False for the retracing warning: every stage recompiles, which TensorFlow takes for a bug."""
    return "triggered tf.function retracing" not in record.getMessage()


class _Finder(MetaPathFinder):
    """Finds TensorFlow's modules as usual, and gives the C++ ones the loader below."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("tensorflow.python."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, ExtensionFileLoader):
            spec.loader = _Loader(name, spec.loader.path)
        return spec


class _Loader(ExtensionFileLoader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        with without_chatter():
            return super().create_module(spec)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Hold back what is written to file descriptor 2, then pass on all but the chatter."""
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
