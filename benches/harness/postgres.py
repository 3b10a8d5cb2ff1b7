"""A private PostgreSQL in a temporary folder."""

import glob
import os
import pwd
import shutil
import signal
import subprocess
import time

from .processes import free_port, identity, wait_for_port

SETTLE_SECONDS = 0.2
SETTLE_SECONDS_MAX = 10

SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "jit": "off",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    # direct, haproxy and pgpool2 bring a backend for each client; two of them may still be closing theirs.
    "max_connections": "2200",
    "listen_addresses": "127.0.0.1",
}


class Postgres:
    """Every login is trusted; PostgreSQL refuses to run as root, so root lends it to an unprivileged user."""

    def __init__(self, processes, folder):
        self.programs = find_programs()
        self.user = unprivileged_user()
        self.port = free_port()
        data = os.path.join(folder, "postgres")
        os.mkdir(data, 0o700)
        if self.user:
            shutil.chown(data, self.user, self.user)
        self.run("initdb", "-D", data, "-A", "trust", "-U", "bench", "-E", "UTF8", "--locale=C", "-N")
        settings = {**SETTINGS, "port": str(self.port), "unix_socket_directories": data}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        command = [os.path.join(self.programs, "postgres"), "-D", data, *options]
        log = os.path.join(folder, "postgres.log")
        self.process = process = processes.start(command, log, user=self.user, stop_signal=signal.SIGINT)
        if not wait_for_port(self.port, process, 60):
            raise SystemExit(f"PostgreSQL did not start:\n{open(log).read()}")
        self.run("createdb", *self.address(), "bench")
        self.run("pgbench", *self.address(), "-i", "-q", "-s", "1", "bench")
        self.run("psql", *self.address(), "-q", "-c", "create unlogged table sink (line text)", "bench")

    def settle(self):
        """Waits until no more backends are closing: a thousand of them cost the next contestant half a second."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        before = None
        while time.monotonic() < deadline:
            now = children_count(self.process.pid)
            if now == before:
                return
            before = now
            time.sleep(SETTLE_SECONDS)

    def address(self):
        return "-h", "127.0.0.1", "-p", str(self.port), "-U", "bench"

    def run(self, program, *arguments):
        command = [os.path.join(self.programs, program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **identity(self.user))
        if done.returncode:
            raise SystemExit(f"{program} failed: {done.stderr}")


def children_count(process):
    with open(f"/proc/{process}/task/{process}/children") as children:
        return len(children.read().split())


def find_programs():
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: float(path.split("/")[-2]))
    for folder in reversed(folders):
        if os.path.exists(os.path.join(folder, "initdb")):
            return folder
    initdb = shutil.which("initdb")
    if initdb:
        return os.path.dirname(initdb)
    raise SystemExit("no initdb: install PostgreSQL")


def unprivileged_user():
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            pass
    raise SystemExit("PostgreSQL does not run as root, and there is no user postgres")
