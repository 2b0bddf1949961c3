#!/usr/bin/env python3
"""How fast a dsv3-serve loads a checkpoint: seconds until it is ready, and the rate that its own `load` events tell.

    benchmarks/serving/load_rate.py --binary ./dsv3-serve --model /dev/shm/dsv3 -- --device cuda

Prints one JSON object. Exit code 77 if this build lacks the device."""

import argparse
import glob
import json
import os
import sys
import tempfile

from server_process import ServerProcess


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ready-seconds", type=float, default=300)
    parser.add_argument("--log", help="the server's log")
    parser.add_argument("flags", nargs="*", help="after --: flags of the server")
    args = parser.parse_args()
    log = args.log or tempfile.mkdtemp(prefix="dsv3-load-") + "/server.log"
    size = sum(os.path.getsize(path) for path in glob.glob(os.path.join(args.model, "*.safetensors")))
    with ServerProcess(args.binary, args.model, ["--load-format", "safetensors", *args.flags], log) as server:
        ready = server.wait_ready(args.ready_seconds)
        loads = server.events("load")
        code = server.stop()
    last = loads[-1] if loads else {}
    print(json.dumps({"bytes": size, "ready_s": round(ready, 2), "ready_gbps": round(size / ready / 1e9, 2),
                      "load_gbps": round(last["bytes_per_second"] / 1e9, 2) if last else None, "load_events": len(loads), "exit": code}))
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
