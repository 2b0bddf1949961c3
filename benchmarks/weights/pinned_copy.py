#!/usr/bin/env python3
"""Rate of plain copies from pinned host memory to the GPU: the roof of loading weights. Needs only the CUDA runtime's library.

Prints one JSON object; exit code 77 where there is no GPU or no libcudart."""

import ctypes
import glob
import json
import sys
import time

BYTES, COPIES = 1 << 28, 40
HOST_TO_DEVICE = 1


def runtime():
    for name in ["libcudart.so", "libcudart.so.13", "libcudart.so.12", *sorted(glob.glob("/usr/local/cuda*/lib64/libcudart.so*"))]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    print("no libcudart on this machine")
    sys.exit(77)


def main():
    cuda = runtime()
    count = ctypes.c_int(0)
    if cuda.cudaGetDeviceCount(ctypes.byref(count)) != 0 or count.value == 0:
        print("no GPU on this machine")
        sys.exit(77)

    def check(code, what):
        if code != 0:
            sys.exit(f"{what}: CUDA error {code}")

    host, device = ctypes.c_void_p(), ctypes.c_void_p()
    check(cuda.cudaMallocHost(ctypes.byref(host), ctypes.c_size_t(BYTES)), "cudaMallocHost")
    check(cuda.cudaMalloc(ctypes.byref(device), ctypes.c_size_t(BYTES)), "cudaMalloc")
    ctypes.memset(host, 1, BYTES)

    def copies(number):
        start = time.perf_counter()
        for _ in range(number):
            check(cuda.cudaMemcpyAsync(device, host, ctypes.c_size_t(BYTES), HOST_TO_DEVICE, None), "cudaMemcpyAsync")
        check(cuda.cudaDeviceSynchronize(), "cudaDeviceSynchronize")
        return number * BYTES / (time.perf_counter() - start) / 1e9

    copies(4)
    rates = sorted(copies(COPIES) for _ in range(3))
    print(json.dumps({"pinned_h2d_gbps": round(rates[1], 2), "lowest": round(rates[0], 2), "highest": round(rates[2], 2)}))


if __name__ == "__main__":
    main()
