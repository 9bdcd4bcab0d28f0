# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The few calls of NVIDIA's driver that an engine needs, through ctypes: no package to install.

Names and signatures are those of the CUDA Driver API; those with ``_v2`` are what its header
makes of the plain names.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from pathlib import Path
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.errors import NetworkError

_LIBRARY = 'libcuda.so.1'
# "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 ..."
_PROC = Path('/proc/driver/nvidia/version')
# CUdevice_attribute: COMPUTE_CAPABILITY_MAJOR and _MINOR.
_CAPABILITY = (75, 76)
# CUstreamCaptureMode: THREAD_LOCAL.
_THREAD_LOCAL = 1


class CudaDriver:
    """The first GPU: memory, one stream, graphs. What it has allocated, it frees with itself.

    :raises NetworkError: there is no driver or no GPU, or a call failed.
    """

    def __init__(self) -> None:
        self._library = _library()
        self._device_memory: list[c_uint64] = []
        self._host_memory: list[c_void_p] = []
        self._graphs: list[c_void_p] = []
        device, self._context, self._stream = c_int(), c_void_p(), c_void_p()
        if not self.device_count():
            raise NetworkError('the CUDA driver finds no GPU')
        self._call('cuDeviceGet', byref(device), c_int(0))
        self._device = device
        self._call('cuDevicePrimaryCtxRetain', byref(self._context), device)
        self.activate()
        # CU_STREAM_NON_BLOCKING.
        self._call('cuStreamCreate', byref(self._stream), c_int(1))

    @staticmethod
    def device_count() -> int:
        """Return how many GPUs there are.

        :raises NetworkError: there is no driver, or it does not start.
        """
        count, library = c_int(), _library()
        _check(library, 'cuInit', library.cuInit(0))
        _check(library, 'cuDeviceGetCount', library.cuDeviceGetCount(byref(count)))
        return count.value

    def activate(self) -> None:
        """Make this GPU current in the calling thread."""
        self._call('cuCtxSetCurrent', self._context)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream.value or 0)

    @property
    def gpu(self) -> str:
        """Name and compute capability, for instance ``Orin (8.7)``."""
        name = ctypes.create_string_buffer(256)
        self._call('cuDeviceGetName', name, c_int(len(name)), self._device)
        parts = []
        for attribute in _CAPABILITY:
            value = c_int()
            self._call('cuDeviceGetAttribute', byref(value), c_int(attribute), self._device)
            parts.append(str(value.value))
        return f'{name.value.decode(errors="replace")} ({".".join(parts)})'

    @property
    def version(self) -> str:
        """Newest CUDA that the driver supports and, where it says so, its own version."""
        value = c_int()
        self._call('cuDriverGetVersion', byref(value))
        cuda = f'{value.value // 1000}.{value.value % 1000 // 10}'
        try:
            own = re.search(r'\d+\.\d[\d.]*', _PROC.read_text('utf-8', 'replace'))
        except OSError:
            own = None
        return f'{cuda}, {own[0]}' if own else cuda

    def on_device(self, num_bytes: int) -> int:
        """Return the address of new memory of the GPU."""
        address = c_uint64()
        self._call('cuMemAlloc_v2', byref(address), c_size_t(max(num_bytes, 1)))
        self._device_memory.append(address)
        return address.value

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a new array in memory that the GPU copies from and to by itself."""
        address, kind = c_void_p(), np.dtype(dtype)
        num_bytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        self._call('cuMemHostAlloc', byref(address), c_size_t(max(num_bytes, 1)), c_int(0))
        self._host_memory.append(address)
        content = (ctypes.c_uint8 * num_bytes).from_address(int(address.value or 0))
        made: npt.NDArray[Any] = np.ndarray(shape, kind, memoryview(content))
        return made

    def to_device(self, address: int, values: npt.NDArray[Any]) -> None:
        """Begin to copy a pinned array to the GPU."""
        self._call(
            'cuMemcpyHtoDAsync_v2', c_uint64(address), c_void_p(values.ctypes.data),
            c_size_t(values.nbytes), self._stream,
        )  # fmt: skip

    def to_host(self, values: npt.NDArray[Any], address: int) -> None:
        """Begin to copy from the GPU into a pinned array."""
        self._call(
            'cuMemcpyDtoHAsync_v2', c_void_p(values.ctypes.data), c_uint64(address),
            c_size_t(values.nbytes), self._stream,
        )  # fmt: skip

    def synchronize(self) -> None:
        """Wait until all that was begun is done."""
        self._call('cuStreamSynchronize', self._stream)

    def begin_capture(self) -> None:
        """Record what is begun from now on, instead of doing it."""
        self._call('cuStreamBeginCapture_v2', self._stream, c_int(_THREAD_LOCAL))

    def end_capture(self) -> c_void_p:
        """Return what was recorded, ready to be launched."""
        graph, executable = c_void_p(), c_void_p()
        self._call('cuStreamEndCapture', self._stream, byref(graph))
        self._call('cuGraphInstantiateWithFlags', byref(executable), graph, c_uint64(0))
        self._graphs.append(executable)
        self._call('cuGraphDestroy', graph)
        return executable

    def launch(self, executable: c_void_p) -> None:
        """Begin to do what was recorded."""
        self._call('cuGraphLaunch', executable, self._stream)

    def close(self) -> None:
        """Free all memory and leave the GPU; whatever fails is lost anyway."""
        library = self._library
        library.cuCtxSetCurrent(self._context)
        for graph in self._graphs:
            library.cuGraphExecDestroy(graph)
        for device_address in self._device_memory:
            library.cuMemFree_v2(device_address)
        for host_address in self._host_memory:
            library.cuMemFreeHost(host_address)
        library.cuStreamDestroy_v2(self._stream)
        library.cuDevicePrimaryCtxRelease_v2(self._device)
        self._device_memory, self._host_memory, self._graphs = [], [], []

    def _call(self, name: str, *arguments: Any) -> None:
        _check(self._library, name, getattr(self._library, name)(*arguments))


def _library() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        raise NetworkError(f'there is no CUDA driver ({_LIBRARY})') from None


def _check(library: Any, name: str, status: int) -> None:
    if status:
        text = c_char_p()
        library.cuGetErrorString(c_int(status), byref(text))
        reason = (text.value or b'unknown error').decode(errors='replace')
        raise NetworkError(f'CUDA failed in {name}: {reason} ({status})')
