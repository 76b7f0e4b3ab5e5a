"""Hold memory on a real GPU as a model's runner does, with sizes in bytes from stdin.

It allocates through the driver's own library (CUDA driver API: `cuMemAlloc_v2`, `cuMemFree_v2`) in pieces, so
that it can take more and free some. In /proc it looks like llama.cpp's server.
"""

from __future__ import annotations

import ctypes
import sys

PIECE = 64 << 20
_PR_SET_NAME = 15


class Held:
    """Memory held on the first card."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._check(self._cuda.cuInit(0))
        self._check(self._cuda.cuDeviceGet(ctypes.byref(device), 0))
        self._check(self._cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
        self._check(self._cuda.cuCtxSetCurrent(context))
        self._pieces: list[ctypes.c_uint64] = []

    def hold(self, size: int) -> bool:
        """Hold about this many bytes; return whether there was room for all of them."""
        wanted = -(-size // PIECE)
        while len(self._pieces) > wanted:
            self._check(self._cuda.cuMemFree_v2(self._pieces.pop()))
        while len(self._pieces) < wanted:
            piece = ctypes.c_uint64()
            if self._cuda.cuMemAlloc_v2(ctypes.byref(piece), ctypes.c_size_t(PIECE)):
                return False
            self._pieces.append(piece)
        return True

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise SystemExit(f"CUDA says {code}")


def main() -> None:
    """Read sizes until the end of stdin."""
    name = sys.argv[1] if len(sys.argv) > 1 else "llama-server"
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())
    held = Held()
    for line in sys.stdin:
        print("held" if held.hold(int(line)) else "full", flush=True)


if __name__ == "__main__":
    main()
