"""How many threads OpenMP has and how they wait, decided before torch loads its runtime."""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Any of them says how threads wait; the second is GNU's, the third Intel's and LLVM's."""
COUNT, OURS = "OMP_NUM_THREADS", "FUSION_MRE_THREADS"
"""The second repeats what `set_threads` gave the first: whoever inherits both counts anew."""
PROCESSES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
"""How many processes a launcher started on this machine: torchrun's, DeepSpeed's, MPI's."""


def set_threads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Settle both where the user has not.

    Waiting threads sleep: on a machine with other work a spinning one burns the core that the
    thread it waits for needs. The processes of a machine share its cores, of which a container may
    use fewer than OpenMP sees.
    """
    if not any(environ.get(name) for name in WAITING):
        environ.update({"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"})
    if by_user(environ) is None:
        environ[COUNT] = environ[OURS] = str(share(processes_here(environ)))


def by_user(environ: Mapping[str, str] = os.environ) -> str | None:
    """OMP_NUM_THREADS where it is not ours."""
    count = environ.get(COUNT)
    return count if count and count != environ.get(OURS) else None


def share(processes: int) -> int:
    """Threads of each of so many processes."""
    return max(1, cores() // max(1, processes))


def account(environ: Mapping[str, str] = os.environ) -> str:
    """How many threads this process has, and why, in a line."""
    if count := by_user(environ):
        torchrun = count == "1" and environ.get("TORCHELASTIC_RUN_ID")
        hint = " (torchrun sets 1 where nobody has set it)" if torchrun else ""
        return f"threads: {count} a process, as {COUNT} in the environment says{hint}"
    processes = processes_here(environ)
    parted = f" among {processes} processes" if processes > 1 else ""
    return f"threads: {share(processes)} a process, of {cores()} cores{parted}; or set {COUNT}"


def cores(root: Path = Path("/")) -> int:
    """Physical cores of the affinity, and no more than the cgroup's quota."""
    numbers = os.sched_getaffinity(0)
    siblings = root / "sys/devices/system/cpu"
    try:
        places = (siblings / f"cpu{n}/topology/thread_siblings_list" for n in numbers)
        count = len({place.read_text() for place in places})
    except OSError:
        count = len(numbers)
    return max(1, min([count, *map(int, _quotas(root / "sys/fs/cgroup"))]))


def _quotas(cgroup: Path) -> list[float]:
    """In cores, as version 2 and 1 of cgroups say it; none where there is no limit."""
    quotas = []
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
            quotas += [int(quota) / int(period)] if int(quota) > 0 else []
        except (OSError, ValueError, ZeroDivisionError):  # not there, or "max"
            continue
    return quotas


def processes_here(environ: Mapping[str, str] = os.environ) -> int:
    """Processes of a launcher on this machine; 1 without one."""
    counts = [environ[name] for name in PROCESSES if environ.get(name, "").isdecimal()]
    return max(1, int(counts[0])) if counts else 1
