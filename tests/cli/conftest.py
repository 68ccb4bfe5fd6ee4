"""What `tlkeras fit` keeps for later runs goes nowhere but into the test's folder."""

import pytest

from tlkeras.utils import paths


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "kept_dir", lambda: tmp_path / "kept")
    return tmp_path / "kept"
