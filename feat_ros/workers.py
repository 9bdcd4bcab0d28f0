# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Independent tasks in other processes, of this machine or of a cluster, by Ray.

Results come in the order of the tasks, so that what is made of them is the same to the byte as
in one process. A worker that dies has its task done again elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import lru_cache
import os
from types import TracebackType
from typing import Any, TypeVar

from feat_ros.errors import ConfigError, FeatRosError, MapError

Item = TypeVar('Item')
Result = TypeVar('Result')

# Tasks that wait for each worker, so that none is idle.
_AHEAD = 3
_RETRIES = 3


class Workers:
    """Processes that tasks are given to; a context manager.

    :param count: processes of this machine; on a cluster the most tasks at once.
    :param address: of a Ray cluster, whose machines see the images and the map under the same
        paths; none starts Ray here, for as long as the context lasts.
    :raises ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, count: int, address: str | None = None) -> None:
        self.count = count
        # What is set here is what Ray's processes see.
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
        os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')
        try:
            import ray
        except ModuleNotFoundError:
            raise ConfigError(
                'workers need Ray: pip install "feat_ros[ray]", or build without --workers'
            ) from None
        self._ray = ray
        cores = {} if address else {'num_cpus': count, 'include_dashboard': False}
        try:
            ray.init(
                address=address, log_to_driver=False, logging_level='ERROR', **cores,
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f'there is no Ray cluster at {address}: {reason}') from None
        self._remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_run)

    def __enter__(self) -> Workers:
        """Return it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop what was started."""
        self._ray.shutdown()

    def map(
        self,
        make: Callable[..., Callable[[Item], Result]],
        arguments: tuple[Hashable, ...],
        items: Iterable[Item],
    ) -> Iterator[Result]:
        """Yield ``make(*arguments)(item)`` of each item, in order; made once in each process.

        :raises MapError: a task made its worker die again and again.
        :raises FeatRosError: what a task raised.
        """
        waiting: deque[tuple[Item, Any]] = deque()
        try:
            for item in items:
                waiting.append((item, self._remote.remote(make, arguments, item)))
                if len(waiting) > _AHEAD * self.count:
                    yield self._result(*waiting.popleft())
            while waiting:
                yield self._result(*waiting.popleft())
        finally:
            for _, reference in waiting:
                self._ray.cancel(reference, force=True)

    def _result(self, item: object, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, FeatRosError):
                raise error.cause from None
            raise
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            raise MapError(
                f'a worker died {_RETRIES + 1} times over {item} '
                f'({type(error).__name__}): give it more memory, or build with fewer --workers; '
                'the same command goes on from here'
            ) from None


def _run(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...], item: Any) -> Any:
    return _made(make, arguments)(item)


@lru_cache(maxsize=4)
def _made(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> Any:
    import cv2

    # As many workers as cores, each with one thread.
    cv2.setNumThreads(1)
    return make(*arguments)
