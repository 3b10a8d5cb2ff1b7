"""Runs the workloads, interleaved, and reduces what they measured to medians and spreads."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

from .contestants import Running
from .processes import cpus_of_this_machine, free_port, wait_for_port
from .workloads import STUB

# A run that takes so much longer than it should is stuck.
PATIENCE_SECONDS = 60
COUNTING_MILLISECONDS = 600
IDLE_CLIENTS = 10_000


@dataclass
class Options:
    rounds: int
    seconds: float
    quick: bool
    # {workload: contestants}; None: everyone plays everything.
    needed: dict | None = None


class Bench:
    def __init__(self, processes, stage, postgres, programs, folder, contestants, options):
        self.processes = processes
        self.stage = stage
        self.postgres = postgres
        self.programs = programs
        self.folder = folder
        self.contestants = contestants
        self.options = options
        self.servers = {}
        self.running = {}

    def run(self, workloads):
        """Returns {workload: {contestant: summary or {"error": why}}}."""
        return {workload.name: self.run_one(workload) for workload in workloads}

    def run_one(self, workload):
        players, results = {}, {}
        for contestant in filter(workload.is_for, self.contestants):
            if self.options.needed and contestant.name not in self.options.needed[workload.name]:
                continue
            running = self.on_stage(contestant, workload.server)
            if isinstance(running, Running):
                players[contestant.name] = running
            else:
                results[contestant.name] = {"error": running}
        samples = {name: [] for name in players}
        for round_index in range(self.options.rounds):
            say(f"{workload.name}: round {round_index + 1} of {self.options.rounds}")
            for name in rotated(list(players), round_index):
                sample = self.load(workload, players[name], int(self.options.seconds * 1_000))
                if self.postgres and not players[name].contestant.is_pooled:
                    self.postgres.settle()
                if "error" in sample:
                    results[name] = sample
                    self.leave_stage(players.pop(name), workload.server)
                    continue
                if alone := workload.without_idle():
                    # In the same round, or what the machine does meanwhile would be the idle ones' fault.
                    other = self.load(alone, players[name], int(self.options.seconds * 1_000))
                    sample["cpu_ns_without_idle"] = other["cpu_ns"] / units(alone, other) if "cpu_ns" in other else None
                samples[name].append(sample)
        for name, running in players.items():
            is_watched = running.process is not None
            results[name] = summary(workload, samples[name], is_watched)
            if is_watched and not workload.tls:
                counted = self.load(workload, running, COUNTING_MILLISECONDS, count_system_calls=True)
                results[name]["system_calls"] = system_calls(workload, counted)
        return {contestant.name: results[contestant.name] for contestant in self.contestants if contestant.name in results}

    def load(self, workload, running, milliseconds, count_system_calls=False):
        arguments = workload.arguments(running.contestant, self.options.quick)
        if count_system_calls:
            arguments += ["--count-system-calls", "true"]
        roams = workload.shards and len(cpus_of_this_machine()) < 4
        server = self.postgres.process.pid if workload.kinds else None
        return self.load_with(running, milliseconds, arguments, "load_tls" if workload.tls else "load", roams, server)

    def load_with(self, running, milliseconds, arguments, program="load", roams=False, server=None):
        """One run of the load generator: on the first CPU, while the pooler has the last ones, or wherever there is room."""
        command = [
            os.path.join(self.programs, program), "--port", str(running.port), "--milliseconds", str(milliseconds), *arguments]
        if running.process:
            command += ["--watch", str(running.process.pid)]
        if server:
            command += ["--server", str(server)]

        def pin():
            cpus = cpus_of_this_machine()
            os.sched_setaffinity(0, cpus if roams else cpus[:1])

        try:
            done = subprocess.run(
                command, capture_output=True, text=True, preexec_fn=pin, timeout=milliseconds / 1_000 + PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return {"error": "no end of it"}
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["load failed"])[-1]}
        return json.loads(done.stdout)

    def rss_per_idle_client(self):
        """Bytes: (RSS with room for and 10,000 clients connected - RSS with room for 10 and none) / 10,000."""
        found = {}
        for contestant in self.contestants:
            if contestant.command == "-" or contestant.clients_max < IDLE_CLIENTS + 1:
                continue
            if self.options.needed and contestant.name != "qcp-1":
                continue
            say(f"RSS per idle client: {contestant.name}")
            empty = self.rss_kb(contestant, clients=10, idle=0)
            full = self.rss_kb(contestant, clients=IDLE_CLIENTS + 1, idle=IDLE_CLIENTS)
            known = empty is not None and full is not None
            found[contestant.name] = (full - empty) * 1_024 / IDLE_CLIENTS if known else None
        return found

    def rss_kb(self, contestant, clients, idle):
        running = self.stage.start(contestant, self.server_port(STUB), clients=clients, arena="8 MB")
        if not isinstance(running, Running):
            return None
        try:
            sample = self.load_with(running, 100, ["--mode", "simple", "--clients", "1", "--idle", str(idle)])
            return sample.get("rss_kb")
        finally:
            self.stage.stop(running)

    def on_stage(self, contestant, server):
        key = contestant.name, server
        if key not in self.running:
            self.running[key] = self.stage.start(contestant, self.server_port(server))
        return self.running[key]

    def leave_stage(self, running, server):
        """After an error: a fresh one plays the next workload."""
        self.stage.stop(running)
        self.running.pop((running.contestant.name, server), None)

    def server_port(self, server):
        if server not in self.servers:
            self.servers[server] = self.start_stub() if server == STUB else self.postgres.port
        return self.servers[server]

    def start_stub(self):
        port = free_port()
        command = [os.path.join(self.programs, "stub_backend"), "--listen", str(port)]
        process = self.processes.start(command, os.path.join(self.folder, "stub.log"), cpus=stub_cpus())
        if not wait_for_port(port, process):
            raise SystemExit("the stub backend did not start")
        return port


def stub_cpus():
    """Beside the load if there are but two CPUs, else one of its own; never the pooler's."""
    cpus = cpus_of_this_machine()
    return cpus[:1] if len(cpus) < 4 else cpus[1:2]


def rotated(items, by):
    by %= max(len(items), 1)
    return items[by:] + items[:by]


def summary(workload, samples, is_watched):
    """Medians, with the lowest and highest of the rounds beside them."""
    columns = {
        "per_second": [units(workload, sample) / sample["seconds"] for sample in samples],
        **{key: [sample[key] for sample in samples] for key in ("p50_us", "p99_us", "p999_us")},
    }
    if is_watched:
        columns["cpu_us"] = [sample["cpu_ns"] / 1_000 / units(workload, sample) for sample in samples]
        if workload.kinds:
            columns["server_cpu_us"] = [sample["server_cpu_ns"] / 1_000 / units(workload, sample) for sample in samples]
        without_idle = [sample.get("cpu_ns_without_idle") for sample in samples]
        if samples and None not in without_idle:
            columns["cpu_us_without_idle"] = [nanoseconds / 1_000 for nanoseconds in without_idle]
        columns["rss_kb"] = [sample["rss_kb"] for sample in samples]
    reduced = {key: {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": values}
               for key, values in columns.items()}
    return {"unit": workload.unit, "rounds": len(samples), **reduced}


def units(workload, sample):
    return max(sample["bytes"] / 1e9 if workload.size else sample["transactions"], 1e-9)


def system_calls(workload, sample):
    counted = sample.get("system_calls")
    return None if counted is None else counted / units(workload, sample)


def say(text):
    print(text, file=sys.stderr, flush=True)
