"""The two worlds of the course: offline, the default, and online, where names are downloaded."""

import os

PROFILES = ("offline", "online")


def is_online(profile: str | None = None) -> bool:
    """Whether downloads are wanted: `profile`, else the variable TLKERAS_PROFILE, else not.

    Raises:
        ValueError: neither "offline" nor "online".

    >>> tlk.is_online("online"), tlk.is_online("offline")
    (True, False)
    """
    chosen = profile or os.environ.get("TLKERAS_PROFILE") or PROFILES[0]
    if chosen not in PROFILES:
        raise ValueError(f"The profile must be 'offline' or 'online', not {chosen!r}.")
    return chosen == "online"
