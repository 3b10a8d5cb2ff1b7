"""Who is measured: reads benches/contestants.txt, writes their configurations, starts and stops them."""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field

from .postgres import unprivileged_user
from .processes import cpus_of_this_machine, free_port, wait_for_port

CLIENTS_MAX = 11_000
ARENA = "64 MB"


@dataclass(frozen=True)
class Contestant:
    name: str
    port: str
    command: str
    facts: dict = field(hash=False)

    @property
    def is_pooled(self):
        return "unpooled" not in self.facts

    @property
    def has_tls(self):
        return "tls" in self.facts

    @property
    def keeps_sessions(self):
        """Has part in no workloads but those that show what that costs."""
        return "session" in self.facts

    @property
    def clients_max(self):
        return int(self.facts.get("clients", CLIENTS_MAX if self.is_pooled else 1_100))

    @property
    def cpus(self):
        """The last ones of the machine; the load has the first."""
        return cpus_of_this_machine()[-int(self.facts.get("cpus", 1)):]


def read(path):
    contestants = []
    for line in open(path):
        words = line.split(maxsplit=2)
        if not words or line.startswith("#"):
            continue
        name, facts = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", words[0]).groups()
        pairs = (fact.partition("=") for fact in (facts or "").split(",") if fact)
        contestants.append(Contestant(name, words[1], words[2].strip(), {key: value for key, _, value in pairs}))
    return contestants


@dataclass
class Running:
    """A contestant in front of one server, `process` none if the load goes to the server itself."""

    contestant: Contestant
    port: int
    process: subprocess.Popen | None


class Stage:
    """Starts contestants in front of servers, each pair once, and keeps them until told otherwise."""

    def __init__(self, processes, folder, configurations, programs):
        self.processes = processes
        self.folder = folder
        self.configurations = configurations
        self.programs = programs
        self.count = 0

    def start(self, contestant, server_port, clients=CLIENTS_MAX, arena=ARENA):
        """Returns a `Running`, or a text that says why there is none."""
        if contestant.command == "-":
            return Running(contestant, server_port, None)
        self.count += 1
        folder = os.path.join(self.folder, f"{self.count}-{contestant.name}")
        os.mkdir(folder)
        os.chmod(folder, 0o755)
        port = free_port() if contestant.port == "*" else int(contestant.port)
        self.write_configurations(folder, {
            "PORT": port, "SERVER": server_port, "USER": unprivileged_user() or "", "DIR": folder,
            "CLIENTS": clients, "ARENA": arena,
            "KEY": "tls-of-user.key" if unprivileged_user() else "tls.key", "PREPARED": pgbouncer_prepared()})
        filled = contestant.command.format(port=port, server=server_port, programs=self.programs, dir=folder)
        command = shlex.split(filled)
        if not shutil.which(command[0]):
            return f"{command[0]} is not there"
        log = os.path.join(folder, "log")
        process = self.processes.start(command, log, cpus=contestant.cpus)
        if wait_for_port(port, process):
            return Running(contestant, port, process)
        self.processes.stop(process)
        tail = open(log, errors="replace").read().strip().splitlines()[-1:]
        return "does not listen" + (f": {tail[0]}" if tail else "")

    def stop(self, running):
        if running.process:
            self.processes.stop(running.process)

    def write_configurations(self, folder, values):
        self.write_certificate(folder)
        for name in os.listdir(self.configurations):
            text = open(os.path.join(self.configurations, name)).read()
            for key, value in values.items():
                text = text.replace(f"@{key}@", str(value))
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)


    def write_certificate(self, folder):
        """One for all: ECDSA on P-256, as an operator would make it today."""
        first = os.path.join(self.folder, "tls")
        if not os.path.exists(first + ".crt") and shutil.which("openssl"):
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                 "-subj", "/CN=localhost", "-keyout", first + ".key", "-out", first + ".crt"], capture_output=True, check=True)
        if not os.path.exists(first + ".crt"):
            return
        certificate, key = open(first + ".crt").read(), open(first + ".key").read()
        for name, text in (("tls.crt", certificate), ("tls.key", key), ("both.pem", certificate + key)):
            path = os.path.join(folder, name)
            with open(path, "w") as file:
                file.write(text)
            os.chmod(path, 0o600)
        os.chmod(os.path.join(folder, "tls.crt"), 0o644)
        # PgBouncer reads its key as the user that it becomes, and QCP takes a key that root or its own user has.
        if name_of_owner := unprivileged_user():
            shutil.copy(os.path.join(folder, "tls.key"), os.path.join(folder, "tls-of-user.key"))
            shutil.chown(os.path.join(folder, "tls-of-user.key"), name_of_owner)


def pgbouncer_prepared():
    if not shutil.which("pgbouncer"):
        return ""
    version = subprocess.run(["pgbouncer", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)", version)
    knows_prepared = found and tuple(map(int, found.groups())) >= (1, 21)
    return "max_prepared_statements = 200" if knows_prepared else ""
