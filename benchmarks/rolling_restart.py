"""Restart two servers behind HAProxy, one after the other, under load: `python benchmarks/rolling_restart.py`.

Needs `haproxy` and `wrk` (Debian's packages). HAProxy asks /readyz of each server every 0.2 s. A server that gets SIGTERM
answers /readyz with 503 and every other request as usual for ODDIGIT_DRAIN_S seconds, so no request may fail.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from serve import BUILD, write_requests

ROOT = Path(__file__).parents[1]
FRONT, BACKENDS = 8140, (8141, 8142)
SECONDS = 30
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


def start(port: int) -> subprocess.Popen[bytes]:
    """A server that is ready."""
    server = subprocess.Popen([sys.executable, "-m", "app", "serve", "--port", str(port)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2)
            return server
        except OSError:
            time.sleep(0.1)
    sys.exit("The server did not start.")


def main() -> None:
    if not (shutil.which("haproxy") and shutil.which("wrk")):
        sys.exit("haproxy and wrk are needed: apt-get install haproxy wrk")
    write_requests(BUILD)
    config = Path(tempfile.mkdtemp()) / "haproxy.cfg"
    config.write_text(CONFIG.format(front=FRONT, a=BACKENDS[0], b=BACKENDS[1]))
    servers = [start(port) for port in BACKENDS]
    proxy = subprocess.Popen(["haproxy", "-f", str(config), "-db"])
    time.sleep(1.5)
    url = f"http://127.0.0.1:{FRONT}/score"
    load = subprocess.Popen(
        ["wrk", "-t1", "-c16", f"-d{SECONDS}s", "-s", str(BUILD / "raw.lua"), url], stdout=subprocess.PIPE, text=True
    )
    for index, port in enumerate(BACKENDS):
        time.sleep(2)
        servers[index].terminate()
        servers[index].wait()
        servers[index] = start(port)
        time.sleep(1)
    said, _ = load.communicate()
    print(said)
    print("failed requests: " + ("some, see above" if "Non-2xx" in said or "Socket errors" in said else "none"))
    for process in (proxy, *servers):
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
