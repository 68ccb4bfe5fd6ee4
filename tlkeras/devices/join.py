"""Joins this process to others that train the same model: `jax.distributed`, with timeouts."""

import os
import socket

import keras

from tlkeras.utils import processes

HEARTBEAT = 10  # seconds without a heartbeat after which a process counts as dead
SHUTDOWN = 60  # seconds that a finished process waits for the others, which may still write files
PREFIX = "KERAS_DISTRIBUTION_"


def join(
    job_addresses: str | None,
    num_processes: int | None,
    process_id: int | None,
    start_timeout: int,
    quiet: bool = False,
) -> None:
    """Join this process to the others that the arguments or KERAS_DISTRIBUTION_* name, if any.

    Arguments and errors are those of `accelerate`. A process that has already joined stays so.
    """
    addresses = job_addresses or os.environ.get(f"{PREFIX}JOB_ADDRESSES")
    count, index = _number("num_processes", num_processes), _number("process_id", process_id)
    if addresses is None and count is None and index is None:
        return
    address, count, index = _checked(addresses, count, index)
    if count == 1:
        return
    if processes.joined():
        _check_same(count, index)
        return
    if not quiet:
        print(
            f"tlkeras: process {index} of {count} waits up to {start_timeout} s for the others at "
            f"{address}; if one of them ends later, all do: start them again",
            flush=True,
        )
    _initialize(address, count, index, start_timeout)


def _number(name: str, given: int | None) -> int | None:
    """Return an argument or, if it is None, the integer in the environment variable."""
    text = os.environ.get(f"{PREFIX}{name.upper()}") if given is None else str(given)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"Expected {name} ({PREFIX}{name.upper()}) to be a whole number; found {text!r}."
        ) from None


def _checked(
    job_addresses: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int]:
    """Return the address of process 0, the number of processes, and the index of this one."""
    backend = keras.backend.backend()
    if backend != "jax":
        raise ValueError(
            f"Expected Keras's jax backend, which alone trains in several processes here; found "
            f"{backend}. Set KERAS_BACKEND=jax, or remove {PREFIX}* from the environment."
        )
    addresses = job_addresses.split(",") if job_addresses else []
    if num_processes is None and len(addresses) > 1:
        num_processes = len(addresses)
    given = {"job_addresses": addresses, "num_processes": num_processes, "process_id": process_id}
    if num_processes is None or process_id is None or not (addresses or num_processes == 1):
        missing = [name for name, value in given.items() if value in (None, [])]
        raise ValueError(
            f"Expected job_addresses, num_processes and process_id together; found no "
            f"{' and no '.join(missing)}. Pass them to accelerate, or set {PREFIX}* for each."
        )
    if num_processes < 1:
        raise ValueError(f"Expected num_processes to be at least 1; found {num_processes}.")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"Expected process_id from 0 to num_processes - 1 = {num_processes - 1}; found "
            f"{process_id}. Number the processes from 0."
        )
    if len(addresses) not in (0, 1, num_processes):
        raise ValueError(
            f"Expected the address of process 0, or one for each of the {num_processes} "
            f"processes; found {len(addresses)}: {job_addresses}."
        )
    for address in addresses:
        if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
            raise ValueError(f"Expected an address as host:port; found {address!r}.")
    return (addresses or [""])[0], num_processes, process_id


def _check_same(count: int, index: int) -> None:
    found = processes.index(), processes.count()
    if found != (index, count):
        raise ValueError(
            f"Expected this process to stay {found[0]} of {found[1]}, as it was joined; found "
            f"{index} of {count}. Start a new process to join others."
        )


def _initialize(address: str, count: int, index: int, start_timeout: int) -> None:
    import jax

    try:
        jax.distributed.initialize(
            address, count, index,
            initialization_timeout=start_timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
            coordinator_bind_address=_bind_address(address),
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"Expected process {index} of {count} to join the others at {address}; found: {error}. "
            "Choose an address of the machine of process 0, and a free port."
        ) from error
    except RuntimeError as error:
        raise ValueError(
            "Expected accelerate() before anything else that uses JAX; found JAX already at work. "
            "Call it first, right after the imports."
        ) from error


def _bind_address(address: str) -> str | None:
    """Return where process 0 listens: only at this address, if it belongs to this machine.

    None leaves it to JAX: JAX_COORDINATOR_BIND_ADDRESS, or else all networks of the machine.
    """
    host = address.rpartition(":")[0].strip("[]")
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.bind(where)
    except OSError:  # the address of a load balancer, or of another machine
        return None
    return address
