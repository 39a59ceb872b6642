"""A real OpenSearch for tests: one node on a free loopback port, started by the JDK of the machine.

`OPENSEARCH_URL` names a running one instead. Else Maven copies the jars of tests/opensearch/pom.xml once into
build/opensearch, and a JDK of version 21 or later compiles tests/opensearch/Launcher.java once and runs it on them.
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
FOR_SPEED = ("--add-modules=jdk.incubator.vector",)  # as the stock distribution has it
FOR_START = ("-XX:TieredStopAtLevel=1",)  # short tests end before thorough compiling pays


def java_binary() -> str:
    """A `java` of at least version 21 with its compiler: JAVA_HOME, then PATH, then /usr/lib/jvm."""
    places = [Path(os.environ["JAVA_HOME"]) / "bin"] if os.environ.get("JAVA_HOME") else []
    if on_path := shutil.which("java"):
        places.append(Path(on_path).resolve().parent)
    places += sorted(Path("/usr/lib/jvm").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "java").exists() and (place / "javac").exists() and _java_version(place / "java") >= JAVA:
            return str(place / "java")
    skip_or_fail(f"no JDK of version {JAVA} or later (JAVA_HOME, PATH, /usr/lib/jvm) and no OPENSEARCH_URL")


def _java_version(java: Path) -> int:
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    return int(found.group(1)) if found else 0


def jars() -> Path:
    """Folder with the server's jars; Maven fills it once for each version of the pom."""
    pom = HERE / "pom.xml"
    folder = ROOT / "build" / "opensearch" / hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        skip_or_fail("no mvn to fetch OpenSearch with, and no OPENSEARCH_URL")
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
    """Folder with the compiled launcher, made once for each source, set of jars and JDK."""
    source = HERE / "Launcher.java"
    digest = hashlib.sha256(f"{source.read_text()} {classes.name} {java}".encode()).hexdigest()[:12]
    folder = classes.with_name(f"launcher-{digest}")
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        compiler = str(Path(java).with_name("javac"))
        subprocess.run([compiler, "-cp", f"{classes}/*", "-d", str(partial), str(source)], check=True)
        with suppress(OSError):  # another run was first; its classes are as good
            partial.rename(folder)
    return folder


@dataclass
class OpenSearchServer:
    """One node with its own folder; may be killed and started again on the same port and data.

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
        """Start it and wait until it answers; the port is kept over a restart."""
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
                said = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"OpenSearch did not start: {said}")
            time.sleep(0.1)
        self.port = int(port_file.read_text())

    def stop(self) -> None:
        """Let it end in order."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()


@pytest.fixture(scope="session")
def opensearch_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an OpenSearch for the whole run; tests keep to indexes of their own."""
    if given := os.environ.get("OPENSEARCH_URL"):
        yield given
        return
    server = OpenSearchServer(tmp_path_factory.mktemp("opensearch"))
    server.start()
    yield server.url
    server.stop()
