"""Independent pieces of work on a Ray cluster: each a task, lost workers tried again, nothing left running after an error or Ctrl-C."""

import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch

from sottovoce.errors import MachineError, MissingDependencyError, first_line
from sottovoce.system.versions import environment

LOCAL = "local"
RETRIES = 3  # of a task whose worker was lost
WAITING = 4  # tasks in the queue for each that runs: enough that no worker waits, and few enough that data sets may be of any size
T = TypeVar("T")


class Cluster:
    """A cluster that this process has joined. `threads`: CPU threads of each task, and the CPUs that it reserves; `gpus`: likewise.

    Raises `MachineError` if GPUs are wanted and it has none.
    """

    def __init__(self, ray: Any, threads: int, *, gpus: int = 0) -> None:
        self._ray, self._threads, self._references = ray, threads, list[Any]()
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        # More than any machine has would never start.
        cpus = max(1, min(threads, int(largest)))
        options = {"num_cpus": cpus, "max_retries": RETRIES, "retry_exceptions": False}
        resources = ray.cluster_resources()
        self.slots = max(1, int(resources.get("CPU", 1)) // cpus)
        if gpus:  # in a task, Ray shows those that it reserved, counted from 0
            if not (free := int(resources.get("GPU", 0)) // gpus):
                raise MachineError("no machine of the cluster has a GPU that Ray knows of; leave --device out, or --ray")
            options["num_gpus"] = gpus
            self.slots = min(self.slots, free)
        self._run: Any = ray.remote(**options)(_run)

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Start `function(*arguments)` somewhere; both must be importable there. The future raises what it raised, or `MachineError`."""
        reference = self._run.remote(function, arguments, self._threads, environment())
        self._references.append(reference)
        result: Future[T] = Future()

        def arrived(future: Any) -> None:
            try:
                result.set_result(future.result())
            except Exception as exc:  # noqa: BLE001 - passed on to whoever waits
                result.set_exception(self._plain(exc))
            self._references.remove(reference)

        reference.future().add_done_callback(arrived)
        return result

    def map(self, function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """Yield the results of `function(*arguments)` for each of `arguments`, in the order in which they arrive."""
        left = iter(arguments)
        running = {self.submit(function, *given) for given in islice(left, WAITING * self.slots)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {self.submit(function, *given) for given in islice(left, len(done))}
            for future in done:
                yield future.result()

    def cancel(self) -> None:
        """End what is running or waiting."""
        for reference in list(self._references):
            self._ray.cancel(reference, force=True)

    def _plain(self, exc: Exception) -> Exception:
        """Return the error of the task itself, without Ray's wrapping."""
        cause = getattr(exc, "cause", None)
        if isinstance(cause, Exception):
            return cause
        return MachineError(
            f"a worker of the cluster was lost {RETRIES + 1} times ({first_line(exc)}); look at its memory, and start again"
        )


def _run(function: Callable[..., Any], arguments: tuple[Any, ...], threads: int, wanted: dict[str, str]) -> Any:
    """Run one task in a worker. Raises `MachineError` where other versions would give other results."""
    own = environment()
    if different := sorted(name for name in wanted if own.get(name) != wanted[name]):
        name = different[0]
        raise MachineError(
            f"a worker of the cluster has {name} {own.get(name)}, and this process {wanted[name]}; install the same everywhere"
        )
    torch.set_num_threads(threads)
    return function(*arguments)


@contextmanager
def joined_cluster(address: str | None, *, threads: int | None = None, gpus: int = 0) -> Iterator[Cluster | None]:
    """Join the Ray cluster at `address`, or start one on this machine ("local"); None: there is none, and None is given.

    `threads`: CPU threads of each task (default: those of this process); `gpus`: that each task has to itself.
    Inside of another such block, give that one's cluster. What still runs at the end of the block is cancelled. Raises
    `MissingDependencyError` without the package ray, and `MachineError` if the cluster cannot be reached.
    """
    if address is None:
        yield None
        return
    if _joined:
        yield _joined[0]
        return
    try:
        ray = importlib.import_module("ray")
    except ImportError as exc:
        raise MissingDependencyError("--ray needs the package ray; install it with: pip install 'sottovoce[ray]'") from exc
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address == LOCAL:
            os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: on a busy machine workers would hardly ever run
            ray.init(address="local", include_dashboard=False, **settings)
        else:
            ray.init(address=address, **settings)
    except Exception as exc:  # what Ray raises has no common root
        raise MachineError(
            f"the Ray cluster {address!r} cannot be reached ({first_line(exc)}); give its address, or --ray alone for one here"
        ) from exc
    finally:
        if in_main_thread:  # Ray sets a handler of its own
            signal.signal(signal.SIGTERM, before)
    try:
        cluster = Cluster(ray, threads or torch.get_num_threads(), gpus=gpus)
        _joined.append(cluster)
        try:
            yield cluster
        finally:
            _joined.clear()
            cluster.cancel()
    finally:
        ray.shutdown()


_joined: list[Cluster] = []
