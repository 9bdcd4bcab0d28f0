# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that train one network together, as torchrun starts them: one to each GPU."""

from __future__ import annotations

import atexit
from collections.abc import Iterable
from dataclasses import dataclass
import os

import torch
from torch import distributed, Tensor


@dataclass(frozen=True)
class Team:
    """Which of how many processes this is.

    :ivar rank: the first, 0, writes the run's folder.
    """

    rank: int = 0
    size: int = 1

    def numbers(self, first: int, last: int) -> range:
        """Return which batches this process makes of the steps from ``first`` to ``last``."""
        return range(first * self.size + self.rank, last * self.size, self.size)

    def mean_gradients(self, parameters: Iterable[Tensor], *, is_time_up: bool) -> bool:
        """Give all the mean of their gradients; return whether time is up for any of them."""
        if self.size == 1:
            return is_time_up
        gradients = [each.grad for each in parameters if each.grad is not None]
        flags = gradients[0].new_tensor([float(is_time_up)])
        total = torch.cat([each.reshape(-1) for each in (*gradients, flags)])
        distributed.all_reduce(total)
        *means, flags = (total / self.size).split([each.numel() for each in (*gradients, flags)])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.reshape(gradient.shape))
        return bool(flags > 0)


def join_team(device: str) -> tuple[Team, str]:
    """Join the processes that torchrun has started; without it this is the only one.

    :param device: of torch.
    :returns: and the device of this process: of several GPUs its own.
    """
    size = int(os.environ.get('WORLD_SIZE', 1))
    if size == 1:
        return Team(), device
    if not distributed.is_initialized():
        distributed.init_process_group('nccl' if device == 'cuda' else 'gloo')
        atexit.register(distributed.destroy_process_group)
    if device == 'cuda':
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
    return Team(distributed.get_rank(), size), device
