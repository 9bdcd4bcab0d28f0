# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What both nodes share: a life cycle, refusals in one sentence, an orderly end."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from typing import Any

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from feat_ros.errors import FeatRosError
from feat_ros.nodes.parameters import read_parameters

_SPIN_S, _LAST_CALLBACKS = 0.2, 100


class Shell(LifecycleNode):
    """A managed node with parameters of a configuration; a subclass says what it does.

    :param kind: its configuration, with an option ``autostart``.
    :raises ConfigError: a parameter is unknown or out of range.
    """

    def __init__(self, name: str, kind: Any) -> None:
        super().__init__(name, automatically_declare_parameters_from_overrides=True)
        self.options = read_parameters(self, kind)
        self._handler = _ToRos(self.get_logger())
        logging.getLogger('feat_ros').addHandler(self._handler)

    def configure(self) -> None:
        """Open what is needed."""

    def activate(self) -> None:
        """Begin."""

    def deactivate(self) -> None:
        """Pause; :meth:`activate` may follow."""

    def cleanup(self) -> None:
        """Let go of what was opened."""

    def finish(self) -> int:
        """Say the last word before the end; return the exit code."""
        return 0

    def every(self, seconds: float, do: Any) -> Any:
        """Call something again and again, also while the ROS clock stands still."""
        return self.create_timer(seconds, do, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def let_go(self, inputs: list[Any]) -> None:
        """Destroy subscriptions and timers, and empty the list."""
        for each in inputs:
            (self.destroy_timer if hasattr(each, 'cancel') else self.destroy_subscription)(each)
        inputs.clear()

    def on_configure(self, state: State) -> TransitionCallbackReturn:
        """See :meth:`configure`."""
        return self._try(self.configure)

    def on_activate(self, state: State) -> TransitionCallbackReturn:
        """See :meth:`activate`."""
        done = self._try(self.activate)
        return super().on_activate(state) if done == TransitionCallbackReturn.SUCCESS else done

    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        """See :meth:`deactivate`."""
        self.deactivate()
        return super().on_deactivate(state)

    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        """See :meth:`cleanup`."""
        self.cleanup()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: State) -> TransitionCallbackReturn:
        """Deactivate and clean up, whatever the state is."""
        self.deactivate()
        self.cleanup()
        return TransitionCallbackReturn.SUCCESS

    def _try(self, do: Any) -> TransitionCallbackReturn:
        try:
            do()
        except FeatRosError as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception:  # a bug, of which rclpy would say nothing
            self.get_logger().fatal(traceback.format_exc())
            raise
        return TransitionCallbackReturn.SUCCESS


def run(make: Any) -> int:
    """Run a node until it is interrupted; return the exit code.

    A node with ``autostart`` that cannot be started ends, and its launch file sees it.
    """
    # rclpy's own handlers end the middleware at once, under the feet of the last frame.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    is_over = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_over.append(True))
    try:
        node = make()
    except FeatRosError as error:
        print(f'feat_ros: error: {error}', file=sys.stderr)
        rclpy.shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    code = 0
    if node.options.autostart and not _start(node):
        is_over, code = [True], 1
    while not is_over:
        executor.spin_once(_SPIN_S)
    # What came before the end still counts.
    for _ in range(_LAST_CALLBACKS):
        executor.spin_once(0.0)
    code = code or node.finish()
    node.deactivate()
    node.cleanup()
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    return code


def _start(node: Shell) -> bool:
    done = TransitionCallbackReturn.SUCCESS
    return bool(node.trigger_configure() == done and node.trigger_activate() == done)


class _ToRos(logging.Handler):
    """Log records of the package to ROS's log."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        say = self._logger.error if record.levelno >= logging.ERROR else self._logger.warning
        if record.levelno < logging.WARNING:
            say = self._logger.info if record.levelno >= logging.INFO else self._logger.debug
        say(self.format(record))
