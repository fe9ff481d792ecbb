"""Generate load with wrk, and measure the processor time that other processes use under this load."""

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """
wrk.method = "POST"
wrk.body = %(body)s
for name, value in pairs(%(headers)s) do wrk.headers[name] = value end
done = function(summary, latency, requests)
  local bad = summary.errors
  io.write(string.format('\\nRESULT {"calls":%%d,"seconds":%%f,"p50":%%f,"p99":%%f,"failed":%%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    bad.connect + bad.read + bad.write + bad.status + bad.timeout))
end
"""


# By name, a function that lists process ids. It is called before and after a run, because processes start and end.
type Watched = Mapping[str, Callable[[], Iterable[int]]]


@dataclass(frozen=True)
class Measured:
    """One run: number of calls, seconds, latencies in ms, and processor microseconds per call by process."""

    calls: int
    seconds: float
    p50: float
    p99: float
    failed: int
    cpu: dict[str, float]

    @property
    def rate(self) -> float:
        return self.calls / self.seconds


def measure(url: str, script: Path, *, connections: int, seconds: float, watched: Watched) -> Measured:
    """Call `url` over `connections` connections for `seconds`; measure the processor time of `watched` processes."""
    before = {name: processor_seconds(pids()) for name, pids in watched.items()}
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), url]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in printed.splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    calls = max(result["calls"], 1)
    cpu = {name: (processor_seconds(pids()) - before[name]) / calls * 1e6 for name, pids in watched.items()}
    return Measured(**result, cpu=cpu)


def script_for(path: Path, body: object, headers: Mapping[str, str]) -> Path:
    """Write a wrk script that posts `body`."""
    spelled = {"Content-Type": "application/json", **headers}
    table = "{" + ",".join(f"[{json.dumps(name)}]={json.dumps(value)}" for name, value in spelled.items()) + "}"
    path.write_text(SCRIPT % {"body": json.dumps(json.dumps(body)), "headers": table})
    return path


def processor_seconds(pids: Iterable[int]) -> float:
    """Return the processor seconds used by these processes; ended processes count 0."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Return the process ids of the children of a process, of their children, and so on."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [each for child in map(int, listed) for each in (child, *descendants(child))]


def named(name: str, marker: str) -> list[int]:
    """Return the ids of processes called `name` that have `marker` in their own or their parent's command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "comm").read_text().strip() == name:
                pid = int(path.name)
                lines = [(Path(f"/proc/{each}") / "cmdline").read_text() for each in (pid, parent_of(pid))]
                if any(marker in line for line in lines):
                    found.append(pid)
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
