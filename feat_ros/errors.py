# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Errors a user can mend: each message is one sentence with the value and the way out."""


class FeatRosError(Exception):
    """Base of every error that is the input's fault, not ours; a command prints it and exits 1."""


class ConfigError(FeatRosError):
    """An option has an unknown name, a wrong type or a value out of range."""


class CameraError(FeatRosError):
    """A camera model or its parameters cannot be used."""


class ImageError(FeatRosError):
    """An image cannot be read or is not 8-bit RGB or grey."""


class MapError(FeatRosError):
    """A map folder is missing, damaged, incomplete or does not fit what is asked of it."""


class SegmentError(MapError):
    """A segment of a map is missing or damaged; the others may be used.

    :ivar segment: its number in the map.
    """

    def __init__(self, message: str, segment: int) -> None:
        super().__init__(message)
        self.segment = segment


class NetworkError(FeatRosError):
    """Weights, an exported network or what runs it is missing, damaged or does not fit."""


class AbsentNetworkError(NetworkError):
    """What would run a network was never made or installed; nothing that is there is at fault."""


class DataError(FeatRosError):
    """A text file, folder or COLMAP model that was given as input cannot be used."""


class BagError(FeatRosError):
    """A recorded bag is missing, damaged or does not hold what is asked of it."""


class MessageError(FeatRosError):
    """The bytes of a message on a topic cannot be read."""


class GraphError(FeatRosError):
    """A ROS 2 graph cannot be joined, or a topic of it not be used."""


class TransformError(FeatRosError):
    """A transform between two frames cannot be given."""


class UnknownFrameError(TransformError):
    """No transform names the frame."""


class DisconnectedFramesError(TransformError):
    """No chain of transforms leads from one frame to the other."""


class OutsideTimeRangeError(TransformError):
    """A transform on the way is not known at the time asked for."""
