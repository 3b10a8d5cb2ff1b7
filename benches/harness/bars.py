"""The bars that QCP has to clear, judged by the ratios of one run: of each round's two figures, and of those the median.

A bar is *passed*, *failed* or *not measured*; what was measured in fewer than ROUNDS_MIN rounds, or against a floor that
does not count, is not measured, whatever it shows.
"""

import statistics
from dataclasses import dataclass

ROUNDS_MIN = 5
MODES = ("simple", "extended", "prepared")
PASSED, FAILED, UNMEASURED, REPORTED = "passed", "FAILED", "not measured", "reported"


def needed():
    """{workload: contestants} that the bars need, and no more."""
    wanted = {"simple-64": ["qcp-1", "pgbouncer", "haproxy", "floor-ring", "floor-epoll"]}
    for mode in MODES:
        for clients in (64, 1, 16, 256, 1_024):
            peers = [] if mode == "prepared" else ["pgbouncer"]
            wanted.setdefault(f"{mode}-{clients}", ["qcp-1", *peers, "floor-ring"])
    wanted["idle-64"] = ["qcp-1"]
    for clients in (64, 1_024):
        wanted[f"shards-{clients}"] = ["qcp-1", "qcp-2"]
    wanted["result"] = ["qcp-1", "pgbouncer", "haproxy"]
    wanted["churn"] = ["qcp-1", "pgbouncer"]
    for workload in ("tls-simple-64", "tls-churn"):
        wanted[workload] = ["qcp-tls", "pgbouncer-tls"]
    wanted["tls-result"] = ["qcp-tls", "haproxy-tls"]
    return wanted


@dataclass
class Verdict:
    bar: str
    state: str
    measured: str


class Judge:
    def __init__(self, results, rss_per_idle_client, cpus_count):
        self.results = results
        self.rss = rss_per_idle_client
        self.cpus_count = cpus_count
        self.verdicts = []
        self.floor_counts = False

    def judge(self):
        self.judge_floor()
        for mode in MODES:
            self.judge_against_floor(f"{mode}-64", 1.3 if mode == "prepared" else 1.15)
        self.at_most("simple-64: CPU, of PgBouncer's", 0.65, self.ratio("cpu_us", "simple-64", "qcp-1", "pgbouncer"))
        self.at_most("extended-64: CPU, of PgBouncer's", 0.75, self.ratio("cpu_us", "extended-64", "qcp-1", "pgbouncer"))
        for mode in MODES:
            for clients in (1, 16, 256, 1_024):
                name = f"{mode}-{clients}"
                self.judge_against_floor(name, 1.25)
                if mode != "prepared":
                    self.at_most(f"{name}: CPU, of PgBouncer's", 1.0, self.ratio("cpu_us", name, "qcp-1", "pgbouncer"))
        idle = self.found("idle-64", "qcp-1")
        self.at_most("idle-64: CPU, of that without them", 1.05, self.quotient(idle, "cpu_us", idle, "cpu_us_without_idle"))
        self.at_most("simple-1: p50, of PgBouncer's", 1.1, self.ratio("p50_us", "simple-1", "qcp-1", "pgbouncer"))
        self.at_most("simple-64: p99, of PgBouncer's", 0.9, self.ratio("p99_us", "simple-64", "qcp-1", "pgbouncer"))
        for clients in (64, 1_024):
            cpu = self.ratio("cpu_us", f"shards-{clients}", "qcp-2", "qcp-1")
            self.at_most(f"2 shards, {clients:,} clients: CPU, of 1 shard's", 1.05, cpu)
        self.judge_throughput_of_two_shards()
        self.at_most("result: CPU per GB, of haproxy's", 1.0, self.ratio("cpu_us", "result", "qcp-1", "haproxy"))
        self.at_most("result: CPU per GB, of PgBouncer's", 1 / 3, self.ratio("cpu_us", "result", "qcp-1", "pgbouncer"))
        self.at_least("result: throughput, of haproxy's", 0.95, self.ratio("per_second", "result", "qcp-1", "haproxy"))
        self.at_most("churn: CPU, of PgBouncer's", 0.75, self.ratio("cpu_us", "churn", "qcp-1", "pgbouncer"))
        self.at_most("RSS per idle client, bytes", 512, self.rss.get("qcp-1"))
        self.at_most("simple-64: system calls", 0.5, self.system_calls("simple-64"))
        self.at_most("simple-1: system calls", 4.5, self.system_calls("simple-1"))
        tls = lambda key, workload, other: self.ratio(key, workload, "qcp-tls", other)  # noqa: E731
        self.at_most("tls-simple-64: CPU, of PgBouncer's with TLS", 1.0, tls("cpu_us", "tls-simple-64", "pgbouncer-tls"))
        self.at_most("tls-result: CPU per GB, of haproxy's with TLS", 1.1, tls("cpu_us", "tls-result", "haproxy-tls"))
        # A full handshake, a login, a query: the handshake is most of it.
        self.at_most("tls-churn: CPU per handshake, of PgBouncer's", 1.0, tls("cpu_us", "tls-churn", "pgbouncer-tls"))
        self.note("heap allocations per transaction: 0", REPORTED, "judged by tests/no_alloc.rs, not here")
        return self.verdicts

    def judge_session_state(self):
        """What it costs to keep sessions, of what it costs not to."""
        for mode in ("simple", "extended", "prepared", "accounts"):
            name = f"alike-{mode}-64"
            for contestant, limit in (("qcp-fast", 1.1), ("qcp-balanced", 1.15)):
                self.at_most(f"{name}: CPU of {contestant}, of none's", limit, self.ratio("cpu_us", name, contestant, "qcp-1"))
            fast = self.ratio("server_cpu_us", name, "qcp-fast", "qcp-1")
            self.at_most(f"{name}: PostgreSQL's CPU with fast, of that with none", 1.1, fast)
            pairs = self.pairs(self.found(name, "qcp-balanced"), "server_cpu_us", self.found(name, "qcp-1"), "server_cpu_us")
            more = statistics.median(balanced - none for balanced, none in pairs) if pairs else None
            self.at_most(f"{name}: PostgreSQL's CPU with balanced, us more than with none", 10, more)
        # On one backend that goes from one kind to the other again and again, a round trip more would be two calls more.
        calls = [self.system_calls(name, "qcp-fast-narrow") for name in ("narrow-two-kinds-2", "narrow-alike-2")]
        more = calls[0] - calls[1] if None not in calls else None
        self.at_most("two kinds of clients on one backend: system calls more than with one kind", 0.5, more)
        return self.verdicts

    def judge_floor(self):
        """An honest floor is worth more than a flattering one: otherwise no bar is measured against it."""
        before = len(self.verdicts)
        self.at_most("the floor counts: CPU, of haproxy's", 0.65, self.ratio("cpu_us", "simple-64", "floor-ring", "haproxy"))
        epoll = self.ratio("cpu_us", "simple-64", "floor-ring", "floor-epoll")
        self.at_most("the floor counts: CPU, of the epoll floor's", 0.78, epoll)
        self.floor_counts = all(verdict.state == PASSED for verdict in self.verdicts[before:])

    def judge_against_floor(self, workload, limit):
        ratio = self.ratio("cpu_us", workload, "qcp-1", "floor-ring")
        bar = f"{workload}: CPU, of the ring floor's"
        if ratio is not None and not self.floor_counts:
            self.note(f"{bar} <= {limit}", UNMEASURED, f"{ratio:.3f}, but the floor does not count in this run")
        else:
            self.at_most(bar, limit, ratio)

    def judge_throughput_of_two_shards(self):
        ratio = self.ratio("per_second", "shards-1024", "qcp-2", "qcp-1")
        bar = "2 shards: throughput, of 1 shard's"
        if self.cpus_count >= 4:
            self.at_least(bar, 1.85, ratio)
        else:
            # Not measured at all is not the same as measured on too few cores.
            state = UNMEASURED if ratio is None else REPORTED
            shown = "" if ratio is None else f"{ratio:.3f}, "
            self.note(f"{bar} >= 1.85", state, f"{shown}it takes 4 cores to judge, and here are {self.cpus_count}")

    def at_most(self, bar, limit, measured):
        self.compare(f"{bar} <= {limit:.3g}", measured, measured is not None and measured <= limit)

    def at_least(self, bar, limit, measured):
        self.compare(f"{bar} >= {limit:.3g}", measured, measured is not None and measured >= limit)

    def compare(self, bar, measured, holds):
        if measured is None:
            self.note(bar, UNMEASURED, "")
        else:
            self.note(bar, PASSED if holds else FAILED, f"{measured:.3f}")

    def note(self, bar, state, measured):
        self.verdicts.append(Verdict(bar, state, measured))

    def ratio(self, key, workload, ours, theirs):
        return self.quotient(self.found(workload, ours), key, self.found(workload, theirs), key)

    def quotient(self, ours, our_key, theirs, their_key):
        """What the machine does in a round falls on both: this cancels more than the quotient of two medians would."""
        pairs = self.pairs(ours, our_key, theirs, their_key)
        return statistics.median(our / their for our, their in pairs) if pairs else None

    @staticmethod
    def pairs(ours, our_key, theirs, their_key):
        """Both figures of each round; nothing if there were too few rounds, or one of them was not measured."""
        if min(ours.get("rounds", 0), theirs.get("rounds", 0)) < ROUNDS_MIN or our_key not in ours or their_key not in theirs:
            return []
        return list(zip(ours[our_key]["rounds"], theirs[their_key]["rounds"], strict=True))

    def found(self, workload, contestant):
        return self.results.get(workload, {}).get(contestant, {})

    def system_calls(self, workload, contestant="qcp-1"):
        return self.results.get(workload, {}).get(contestant, {}).get("system_calls")
