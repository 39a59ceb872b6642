"""A real OpenSearch for tests: one node on a free loopback port, started by the JDK of the machine.

Set `OPENSEARCH_URL` to use a running server instead. Otherwise Maven copies the jars of tests/opensearch/pom.xml into
build/opensearch once, and a JDK of version 21 or later compiles and runs tests/opensearch/Launcher.java.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import ROOT, skip_or_fail

HERE = ROOT / "tests" / "opensearch"
JAVA = 21
START_SECONDS = 240
FOR_SPEED = ("--add-modules=jdk.incubator.vector",)  # like the official distribution
FOR_START = ("-XX:TieredStopAtLevel=1",)  # short tests end before full compilation pays off


def java_binary() -> str:
    """Return a `java` of version 21 or later with its compiler, from JAVA_HOME, PATH or /usr/lib/jvm."""
    folders = [Path(os.environ["JAVA_HOME"]) / "bin"] if os.environ.get("JAVA_HOME") else []
    if on_path := shutil.which("java"):
        folders.append(Path(on_path).resolve().parent)
    folders += sorted(Path("/usr/lib/jvm").glob("*/bin"), reverse=True)
    for folder in folders:
        java = folder / "java"
        if java.exists() and (folder / "javac").exists() and _java_version(java) >= JAVA:
            return str(java)
    skip_or_fail(f"no JDK {JAVA} or later in JAVA_HOME, PATH or /usr/lib/jvm. Install one, or set OPENSEARCH_URL.")


def _java_version(java: Path) -> int:
    output = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', output)
    return int(version.group(1)) if version else 0


def jars() -> Path:
    """Return the folder with the jars of the server. Maven fills it once for each version of the pom."""
    pom = HERE / "pom.xml"
    folder = ROOT / "build" / "opensearch" / hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        skip_or_fail("no mvn on PATH to fetch OpenSearch. Install Maven, or set OPENSEARCH_URL.")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    arguments = ["dependency:copy-dependencies", f"-DoutputDirectory={partial}", "-DincludeScope=runtime"]
    done = subprocess.run([maven, "-q", "-B", "-f", str(pom), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        skip_or_fail(f"Maven could not fetch OpenSearch: {(done.stdout + done.stderr).strip()[:500]}")
    if folder.is_dir():
        shutil.rmtree(partial)
    else:
        partial.rename(folder)
    return folder


def launcher(java: str, classes: Path) -> Path:
    """Return the folder with the compiled launcher, built once for each source, set of jars and JDK."""
    source = HERE / "Launcher.java"
    digest = hashlib.sha256(f"{source.read_text()} {classes.name} {java}".encode()).hexdigest()[:12]
    folder = classes.with_name(f"launcher-{digest}")
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        compiler = str(Path(java).with_name("javac"))
        subprocess.run([compiler, "-cp", f"{classes}/*", "-d", str(partial), str(source)], check=True)
        with suppress(OSError):  # another test run has built the same classes
            partial.rename(folder)
    return folder


@dataclass
class OpenSearchServer:
    """One node with its own folder. It can be killed and started again with the same port and data.

    options: of the virtual machine. settings: of the node.
    """

    folder: Path
    heap: str = "1g"
    port: int = 0
    options: tuple[str, ...] = FOR_START
    settings: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the node and wait until it answers. A restart uses the same port."""
        java, classes, port_file = java_binary(), jars(), self.folder / "port"
        port_file.unlink(missing_ok=True)
        command = [
            java, f"-Xms{self.heap}", f"-Xmx{self.heap}", "-XX:ActiveProcessorCount=2", "-XX:+UseSerialGC",
            "--enable-native-access=ALL-UNNAMED", "-Dlog4j2.disable.jmx=true", "-Dlog4j2.level=warn", *self.options,
            "-cp", f"{launcher(java, classes)}:{classes}/*", "Launcher", str(port_file),
            f"path.home={self.folder}", "cluster.name=tests", "node.name=tests",
            "discovery.type=single-node", "network.host=127.0.0.1", f"http.port={self.port}", "transport.port=0",
            "http.type=netty4", "transport.type=netty4", "cluster.routing.allocation.disk.threshold_enabled=false",
            *self.settings,
        ]  # fmt: skip
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not port_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                log_text = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"OpenSearch did not start: {log_text}")
            time.sleep(0.1)
        self.port = int(port_file.read_text())

    def stop(self) -> None:
        """Shut down the node."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill the node, like a power failure."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()


@pytest.fixture(scope="session")
def opensearch_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an OpenSearch for the whole test run. Each test uses its own indexes."""
    if url := os.environ.get("OPENSEARCH_URL"):
        yield url
        return
    server = OpenSearchServer(tmp_path_factory.mktemp("opensearch"))
    server.start()
    yield server.url
    server.stop()
