"""What a chapter works with, offline and online."""

import pytest

from tlkeras.tasks.load import list_tasks
from tlkeras.utils.paths import presets
from tlkeras.utils.profiles import OFFLINE, ONLINE, setting


@pytest.mark.parametrize("chapter", OFFLINE)
def test_offline_a_chapter_needs_only_what_is_here(chapter):
    found = setting(chapter, "offline")
    assert found.backbone in {path.name for path in presets()}
    for name in (found.task, found.source):
        assert not name or name.split("/")[0] in repr(list_tasks()), name


def test_the_profile_chooses(monkeypatch):
    assert list(OFFLINE) == list(ONLINE)
    offline = setting("00")
    monkeypatch.setenv("TLKERAS_PROFILE", "online")
    assert setting("00") != offline == setting("00", "offline")
    with pytest.raises(ValueError, match="No settings for chapter '99'; there are"):
        setting("99")
