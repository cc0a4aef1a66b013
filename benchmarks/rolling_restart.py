"""Restart two servers behind HAProxy, one after the other, under load: `python benchmarks/rolling_restart.py`.

Needs `haproxy` and `wrk` (Debian's packages). HAProxy asks /readyz of each server every 0.2 s. A server that gets SIGTERM
answers /readyz with 503 and every other request as usual for ODDIGIT_DRAIN_S seconds, so no request may fail.
"""

import argparse
import shutil
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from common import BUILD, BenchmarkError, free_port, serving, seven_png, started, stop, wrk

CONFIG = """
global
  maxconn 256
defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  option redispatch
frontend front
  bind 127.0.0.1:{front}
  default_backend servers
backend servers
  option httpchk GET /readyz
  http-check send hdr Host health
  default-server check inter 200ms fall 1 rise 1
  server a 127.0.0.1:{a}
  server b 127.0.0.1:{b}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="of load; both restarts must fit in")
    seconds = parser.parse_args().seconds
    if not shutil.which("haproxy"):
        raise BenchmarkError("haproxy is needed: apt-get install haproxy")
    with ExitStack() as stack:
        front, *backends = (free_port() for _ in range(3))
        servers = [stack.enter_context(serving(port=port, log=BUILD / f"{port}.log")) for port in backends]
        config = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "haproxy.cfg"
        config.write_text(CONFIG.format(front=front, a=backends[0], b=backends[1]))
        url, log = f"http://127.0.0.1:{front}", BUILD / "haproxy.log"
        ready = urllib.request.Request(f"{url}/readyz")
        stack.enter_context(started(["haproxy", "-f", str(config), "-db"], ready, front, log=log, variables={}))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        options = {"connections": 16, "seconds": seconds, "accepts_failures": True}
        load = pool.submit(wrk, f"{url}/score", "image/png", seven_png(), **options)
        for server in servers:
            time.sleep(2)
            if stop(server.process) == float("inf"):
                raise BenchmarkError("A server did not end after SIGTERM.")
            stack.enter_context(serving(port=server.port, log=BUILD / f"{server.port}.log"))
            time.sleep(1)
        if load.done():
            raise BenchmarkError("The load ended before the restarts; give it more --seconds.")
        result = load.result()
    print(f"{result.answers:,} answers; failed requests: {result.failures or 'none'}")
    if result.failures:
        raise BenchmarkError("Requests failed during the restarts.")


if __name__ == "__main__":
    main()
