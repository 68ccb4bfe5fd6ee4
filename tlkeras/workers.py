"""Which of several processes that train together this one is: TF_CONFIG."""

import json
import os

EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
)


def cluster() -> tuple[int, int]:
    """How many workers TF_CONFIG names, and which of them (from 0) this process is.

    Returns:
        (1, 0) if the variable is not set.

    Raises:
        ValueError: TF_CONFIG is not what TensorFlow expects, or names this process a parameter
            server or evaluator. Format: the guide "Multi-worker training with Keras" of TensorFlow.
    """
    text = os.environ.get("TF_CONFIG", "").strip() or "{}"
    try:
        config = json.loads(text)
        jobs = {name: len(hosts) for name, hosts in config.get("cluster", {}).items()}
        task = config.get("task", {})
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected TF_CONFIG to look like {EXAMPLE}; found something else ({error}). "
            "Correct it, or unset it to train on this machine alone."
        ) from None
    chiefs, workers = jobs.get("chief", 0), jobs.get("worker", 0)
    if sum(jobs.values()) <= 1:
        return 1, 0
    if kind not in ("chief", "worker") or not 0 <= index < jobs.get(kind, 0):
        raise ValueError(
            f"Expected TF_CONFIG to make this process one of its chief or workers; found task "
            f"{kind} {index} and jobs {jobs}. It should look like {EXAMPLE}."
        )
    return chiefs + workers, index + (chiefs if kind == "worker" else 0)
