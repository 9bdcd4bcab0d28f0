# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``feat_ros COMMAND``; one module a group of commands."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
import sys

from feat_ros.cli import bench, demo, engine, export, live, localize, maps, replay, town, train
from feat_ros.cli.common import close_bars, write_output
from feat_ros.errors import FeatRosError

_DESCRIPTION = """Where is this camera in the map that was built before?

  feat_ros map build    images with known poses -> a map folder
  feat_ros map info     what is in a map, checked and drawn from above
  feat_ros localize     new images -> poses with covariance, or the reason why not
  feat_ros replay       a recorded bag -> trajectory, figures and a report
  feat_ros live         the same on a running ROS 2 graph, without ROS installed
  feat_ros play         a recorded bag on a ROS 2 graph
  feat_ros evaluate     poses against ground truth
  feat_ros extract      look at the features of an image
  feat_ros bench        how fast, against a named baseline in the same run
  feat_ros export       a network as an ONNX file, for robots and TensorRT
  feat_ros engine       a TensorRT engine of that file, for the GPU at hand
  feat_ros town         drives through a made-up town, to try things on
  feat_ros train        a network from photographs of your own
  feat_ros demo         all of it once, in that town

"feat_ros COMMAND --help" explains each with an example."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog='feat_ros',
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for module in (maps, localize, replay, live, bench, export, engine, town, train, demo):
        module.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; return 0, 1 for an error of the input, 130 when interrupted."""
    logging.basicConfig(format='%(message)s', level=logging.WARNING)
    args = build_parser().parse_args(argv)
    try:
        result = args.run(args)
        if args.json is not None:
            write_output(args.json, json.dumps(result, indent=1) + '\n')
    except FeatRosError as error:
        close_bars()
        print(f'feat_ros: {error}', file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if Path(__file__).parent.parent.name == (error.name or '').split('.')[0]:
            raise
        print(
            f'feat_ros: this command needs the Python package {error.name!r}: install it with '
            f"pip install 'feat_ros[map]', or pip install {error.name}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        close_bars()
        print('feat_ros: interrupted; an unfinished build resumes', file=sys.stderr)
        return 130
    return 0
