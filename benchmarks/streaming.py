"""Promise of streaming: a model on a server is up-scaled in less time and on less disk than by download and surgery.

Measures `depthup upscale URL` beside a peer in the same run: a bare sequential download of the same files from the
same server (no checksum, no retry, no client library: the floor of every downloader), then `depthup upscale` of the
folder. The server is a process of its own on this machine; its speed is free, or limited like a network's.
Standard library only; Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from measuring import machine, measure, output_of, say
from mistral import NUM_REMOVED, Shape, expected_hashes, tensor_hashes, write_base

EXAMPLES = """examples:
  python benchmarks/streaming.py --gigabytes 0.2 --repeats 1              a first look, seconds
  python benchmarks/streaming.py --json docs/results/streaming.json      the published figures: 1.5 GB, 3 rounds
"""
LINKS = {"unlimited": 0, "125 MB/s (1 Gbit/s)": 125_000_000}  # bytes a second of the server, all connections together

# Serves a folder by byte ranges, from the page cache (sendfile), at a limited speed; /num-bytes-sent is what it says.
SERVER = """
import os, re, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
folder, limit = sys.argv[1], int(sys.argv[2])
lock, sent, free_at = threading.Lock(), 0, 0.0

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global sent, free_at
        if self.path == "/num-bytes-sent":
            text = str(sent).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        path = os.path.join(folder, os.path.basename(self.path))
        if not os.path.isfile(path):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = os.path.getsize(path)
        match = re.fullmatch(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range", ""))
        begin, end = (int(match[1]), int(match[2]) + 1) if match else (0, size)
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        self.wfile.flush()
        with open(path, "rb") as file:
            while begin < end:
                count = os.sendfile(self.connection.fileno(), file.fileno(), begin, min(end - begin, 1 << 20))
                begin += count
                with lock:
                    sent += count
                    free_at = max(free_at, time.monotonic() - 0.05) + (count / limit if limit else 0)
                    pause = free_at - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

# Downloads files one after the other, and syncs each to the disk: the least that a download can be.
DOWNLOAD = """
import os, sys, urllib.request
url, folder, *names = sys.argv[1:]
os.mkdir(folder)
for name in names:
    with urllib.request.urlopen(f"{url}/{name}") as response, open(f"{folder}/{name}", "wb", buffering=0) as file:
        while piece := response.read1(1 << 18):
            file.write(piece)
        os.fsync(file.fileno())
"""


@dataclass(frozen=True)
class Way:
    """One run of one way to the target."""

    seconds: float
    peak_bytes: int  # of memory, the largest process
    cpu_seconds: float
    disk_bytes: int  # most at one time
    network_bytes: int


@contextlib.contextmanager
def serving(folder: Path, limit: int) -> Iterator[str]:
    """The address of a server of the folder, a process of its own."""
    command = [sys.executable, "-c", SERVER, str(folder), str(limit)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def bytes_sent(url: str) -> int:
    """Bytes of files that the server has sent."""
    with urllib.request.urlopen(f"{url}/num-bytes-sent") as response:
        return int(response.read())


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """A list whose last member is the most disk that the folder took at one time while the block ran."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            now = 0
            for place, _, names in os.walk(folder):
                for name in names:
                    with contextlib.suppress(OSError):  # renamed meanwhile
                        now += os.lstat(os.path.join(place, name)).st_blocks * 512
            most.append(max(most[-1], now))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def run(commands: list[list[str]], url: str, shelf: Path, log: Path) -> Way:
    """Run commands one after the other, which write below ``shelf``."""
    shelf.mkdir()
    os.sync()
    before = bytes_sent(url)
    allowed = ["/usr/bin/env", "HF_HUB_OFFLINE=0", "NO_PROXY=*"]
    with watched(shelf) as most:
        runs = [measure([*allowed, *command], log) for command in commands]
    return Way(
        round(sum(run.seconds for run in runs), 4), max(run.peak_bytes for run in runs),
        round(sum(run.cpu_seconds for run in runs), 4), most[-1], bytes_sent(url) - before,
    )  # fmt: skip


def medians(runs: list[Way]) -> dict[str, float]:
    """The median of each figure."""
    return {field.name: median(getattr(run, field.name) for run in runs) for field in fields(Way)}


def benchmark(folder: Path, shape: Shape, repeats: int) -> tuple[dict[str, Any], dict[str, bool]]:
    """Make the base, run the rounds; returns the figures and what was checked of the outputs."""
    base, shelf, log = folder / "base", folder / "shelf", folder / "log"
    say(f"writing a base of {2 * shape.num_parameters / 1e9:.2f} GB")
    write_base(base, shape)
    names = sorted(path.name for path in base.iterdir())
    size = sum(path.stat().st_size for path in base.iterdir())
    defined = expected_hashes(tensor_hashes(base))
    upscale = [sys.executable, "-X", f"pycache_prefix={folder / 'compiled'}", "-m", "depthup", "upscale"]
    plan = ["--remove", str(NUM_REMOVED)]
    figures: dict[str, Any] = {"base_bytes": size, "links": {}}
    checks: dict[str, bool] = {}
    for link, limit in LINKS.items():
        ways: dict[str, list[Way]] = {"streamed": [], "download, then surgery": []}
        with serving(base, limit) as url:
            here = str(shelf / "base")
            commands = {
                "streamed": [[*upscale, url, str(shelf / "out"), *plan]],
                "download, then surgery": [
                    [sys.executable, "-c", DOWNLOAD, url, here, *names], [*upscale, here, str(shelf / "out"), *plan]
                ],
            }  # fmt: skip
            for number in range(repeats):
                for way in [*commands][:: 1 if number % 2 == 0 else -1]:
                    ways[way].append(found := run(commands[way], url, shelf, log))
                    say(f"{link}, round {number + 1}: {way:<24} {found.seconds:7.2f} s")
                    if number == 0:
                        checks[f"{link}, {way}: layers 0-23 then 8-31"] = tensor_hashes(shelf / "out") == defined
                    figures["target_bytes"] = sum(path.stat().st_size for path in (shelf / "out").iterdir())
                    shutil.rmtree(shelf)
        figures["links"][link] = {
            way: {"runs": [asdict(one) for one in found], "median": medians(found)} for way, found in ways.items()
        }
    return figures, checks


def ratios_of(figures: dict[str, Any]) -> dict[str, float]:
    """The ratios of the medians, and what was moved and held in units of the base and the target."""
    ratios = {}
    for link, ways in figures["links"].items():
        ours, theirs = (ways[way]["median"] for way in ("streamed", "download, then surgery"))
        for key, what in (("seconds", "time"), ("disk_bytes", "disk"), ("peak_bytes", "memory")):
            ratios[f"{link}: {what}, download then surgery / streamed"] = theirs[key] / ours[key]
        ratios[f"{link}: network bytes, streamed / base"] = ours["network_bytes"] / figures["base_bytes"]
        ratios[f"{link}: disk, streamed / target"] = ours["disk_bytes"] / figures["target_bytes"]
    return ratios


def as_text(result: dict[str, Any]) -> str:
    """The result as text."""
    head = (
        f"{'median of ' + str(result['repeats']):<26}{'wall':>10}{'CPU':>10}{'memory':>12}{'disk':>12}{'network':>12}"
    )
    lines = [f"base {result['base_bytes'] / 1e9:.2f} GB -> target {result['target_bytes'] / 1e9:.2f} GB"]
    for link, ways in result["links"].items():
        lines += ["", f"server: {link}", head]
        for way, found in ways.items():
            m = found["median"]
            lines.append(
                f"{way:<26}{m['seconds']:>8.2f} s{m['cpu_seconds']:>8.2f} s{m['peak_bytes'] / 1e6:>9.1f} MB"
                f"{m['disk_bytes'] / 1e9:>9.2f} GB{m['network_bytes'] / 1e9:>9.2f} GB"
            )
    lines += ["", *(f"{name}: {value:.2f}" for name, value in result["ratios"].items())]
    return "\n".join([*lines, "", *(f"{name}: {'yes' if value else 'NO'}" for name, value in result["checks"].items())])


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    add = parser.add_argument
    add("--gigabytes", type=float, default=1.5, help="size of the base, 10^9 bytes (default: 1.5)")
    add("--repeats", type=int, default=3, help="rounds; each runs both ways (default: 3)")
    where = "where everything is written and removed; takes 3.6 x --gigabytes (default: the temporary folder)"
    add("--dir", type=Path, default=Path(tempfile.gettempdir()), metavar="FOLDER", help=where)
    add("--json", type=Path, metavar="FILE", help="write all figures here as well")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or not 0.05 <= arguments.gigabytes <= 1000:
        parser.error("--repeats is at least 1, --gigabytes from 0.05 to 1000")
    if shutil.disk_usage(arguments.dir).free < 3.6e9 * arguments.gigabytes:
        parser.error(f"{3.6 * arguments.gigabytes:.1f} GB must be free in --dir")
    return arguments


def main() -> None:
    """Run the benchmark and print the report."""
    arguments = parse_arguments()
    ours = output_of([sys.executable, "-B", "-c", "import depthup; print(depthup.__version__, end='')"])
    shape, load = Shape.of_size(arguments.gigabytes), round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(prefix="depthup-benchmark-", dir=arguments.dir) as folder:
        figures, checks = benchmark(Path(folder), shape, arguments.repeats)
        surroundings = machine(Path(folder))
    result = {
        "benchmark": "streaming",
        "command": f"python benchmarks/streaming.py --gigabytes {arguments.gigabytes:g} --repeats {arguments.repeats}",
        "machine": {**surroundings, "load_average_before": load},
        "versions": {"python": platform.python_version(), "depthup": ours},
        "repeats": arguments.repeats, "base": asdict(shape),
        **figures, "ratios": ratios_of(figures), "checks": checks,
    }  # fmt: skip
    print(as_text(result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if not all(checks.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
