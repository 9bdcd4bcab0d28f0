# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What ``launch_test`` runs: the launch file beside a bag, and what is then on the graph.

MAP and BAG are in the environment; test_launch.py makes both.
"""

from collections.abc import Callable
import os
import time
from typing import Any
import unittest

from ament_index_python.packages import get_package_share_directory
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from launch import LaunchDescription
from launch.actions import ExecuteProcess, IncludeLaunchDescription, TimerAction
from launch.launch_description_sources import PythonLaunchDescriptionSource
import launch_testing
from launch_testing.actions import ReadyToTest
import launch_testing.asserts
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

_PATIENCE_S = 90.0


def generate_test_description() -> LaunchDescription:
    """Localize, and play a bag again and again."""
    launch = os.path.join(get_package_share_directory('feat_ros'), 'launch')
    localize = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(os.path.join(launch, 'localize.launch.py')),
        launch_arguments={
            'map': os.environ['MAP'], 'image': '/camera/image', 'camera_info': '/camera/info',
            'odom': '/odom',
        }.items(),
    )  # fmt: skip
    bag = ExecuteProcess(cmd=['ros2', 'bag', 'play', os.environ['BAG'], '--rate', '0.5', '--loop'])
    return LaunchDescription([localize, TimerAction(period=3.0, actions=[bag]), ReadyToTest()])


class TestGraph(unittest.TestCase):
    """While it runs."""

    node: Any

    @classmethod
    def setUpClass(cls) -> None:
        """Join the graph."""
        rclpy.init()
        cls.node = rclpy.create_node('listener')

    @classmethod
    def tearDownClass(cls) -> None:
        """Leave it."""
        cls.node.destroy_node()
        rclpy.shutdown()

    def hear(
        self, kind: Any, topic: str, is_enough: Callable[[list[Any]], Any], qos: Any = 10
    ) -> list[Any]:
        """Return the messages of a topic when there are enough of them."""
        heard: list[Any] = []
        subscription = self.node.create_subscription(kind, topic, heard.append, qos)
        end_s = time.monotonic() + _PATIENCE_S
        while not is_enough(heard) and time.monotonic() < end_s:
            rclpy.spin_once(self.node, timeout_sec=0.1)
        self.node.destroy_subscription(subscription)
        self.assertTrue(is_enough(heard), f'{topic}: {heard[-1:]}')
        return heard

    def test_poses(self) -> None:
        """Poses in the map, with a covariance."""
        kind = PoseWithCovarianceStamped
        poses = self.hear(kind, '/localizer/pose', lambda heard: len(heard) >= 3)
        for message in poses:
            self.assertEqual(message.header.frame_id, 'map')
            for k in range(6):
                self.assertGreater(message.pose.covariance[7 * k], 0.0)

    def test_map_from_odom(self) -> None:
        """The transform that Nav2 needs, and no other of ours."""

        def of_map(heard: list[Any]) -> list[Any]:
            return [t for m in heard for t in m.transforms if t.header.frame_id == 'map']

        heard = self.hear(TFMessage, '/tf', lambda heard: len(of_map(heard)) >= 5, 100)
        self.assertEqual({t.child_frame_id for t in of_map(heard)}, {'odom'})

    def test_map_points(self) -> None:
        """Points come to those who ask late."""
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        points = self.hear(PointCloud2, '/localizer/map_points', lambda heard: heard, latched)
        self.assertGreater(points[0].width, 100)

    def test_diagnostics(self) -> None:
        """They say that all is well."""

        def is_well(heard: list[Any]) -> bool:
            return any(message.status[0].level == b'\0' for message in heard)

        self.hear(DiagnosticArray, '/diagnostics', is_well)


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    """When it is over."""

    def test_exit_code(self, proc_info: Any) -> None:
        """The node ended in order."""
        node = next(p for p in proc_info.process_names() if 'localizer' in p)
        launch_testing.asserts.assertExitCodes(proc_info, process=node)
