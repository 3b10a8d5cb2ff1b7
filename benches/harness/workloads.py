"""What is measured."""

from dataclasses import dataclass, replace

POSTGRES = "postgres"
STUB = "stub"


@dataclass(frozen=True)
class Workload:
    name: str
    server: str
    mode: str
    clients: int
    work: str = "select-1"
    idle: int = 0
    tls: bool = False
    # Clients that make a setting for their session are of so many kinds by it; 0: they make none.
    kinds: int = 0
    # Of workloads that run once instead of for a time; their costs are counted per GB.
    size: int = 0
    # Compares numbers of shards: where these take all CPUs, none is left for the load alone.
    shards: bool = False

    @property
    def unit(self):
        return "GB" if self.size else "transaction"

    def without_idle(self):
        """The same with nobody idle beside, which is what the idle ones are judged by."""
        return replace(self, idle=0) if self.idle else None

    def is_for(self, contestant):
        """Whether the contestant can take part at all; what it cannot do for another reason shows as its error."""
        if self.tls != contestant.has_tls:
            return False
        if self.kinds or contestant.keeps_sessions:
            return contestant.name in SESSION_STATE.get(self.name, ())
        needs_our_statement = self.mode == "prepared" and self.work != "select-1"
        if needs_our_statement and "prepared" in contestant.facts:
            return False
        return self.clients + self.idle <= contestant.clients_max

    def arguments(self, contestant, quick):
        arguments = ["--mode", self.mode, "--work", self.work, "--clients", str(self.clients), "--idle", str(self.idle)]
        if self.tls:
            direct = contestant.facts.get("tls") == "direct"
            arguments = ["--mode", self.mode, "--clients", str(self.clients), "--direct", str(direct).lower()]
        if self.kinds:
            arguments += ["--kinds", str(self.kinds)]
        if self.size:
            arguments += ["--size", str(self.size // 10 if quick else self.size)]
        if self.mode == "prepared" and "prepared" in contestant.facts:
            arguments += ["--skip-parse", "true"]
        return arguments


def workloads():
    listed = []
    for mode in ("simple", "extended", "prepared"):
        listed += [Workload(f"{mode}-{clients}", POSTGRES, mode, clients) for clients in (1, 16, 64, 256, 1_024)]
    for mode in ("simple", "extended", "prepared"):
        listed.append(Workload(f"accounts-{mode}-64", POSTGRES, mode, 64, work="account"))
    listed += [
        Workload("idle-64", POSTGRES, "simple", 64, idle=10_000),
        Workload("churn", POSTGRES, "churn", 16),
        Workload("result", POSTGRES, "result", 1, size=1_000_000_000),
        Workload("copy-in", POSTGRES, "copy-in", 1, size=200_000_000),
        Workload("pipeline-16", POSTGRES, "pipeline", 16),
    ]
    for mode in ("simple", "extended", "prepared"):
        listed += [Workload(f"stub-{mode}-{clients}", STUB, mode, clients) for clients in (1, 16, 64, 256, 1_024)]
    listed += [Workload(f"stub-simple-{clients}", STUB, "simple", clients) for clients in (4_096, 10_000)]
    listed += [Workload(f"shards-{clients}", STUB, "simple", clients, shards=True) for clients in (64, 1_024)]
    listed += [
        Workload("stub-idle-64", STUB, "simple", 64, idle=10_000),
        Workload("stub-churn", STUB, "churn", 16),
        Workload("stub-result", STUB, "result", 1, size=1_000_000_000),
        Workload("stub-copy-in", STUB, "copy-in", 1, size=200_000_000),
        Workload("stub-pipeline-16", STUB, "pipeline", 16),
    ]
    listed += [
        Workload("tls-simple-64", POSTGRES, "simple", 64, tls=True),
        Workload("tls-churn", POSTGRES, "churn", 16, tls=True),
        Workload("tls-result", POSTGRES, "result", 1, size=1_000_000_000, tls=True),
    ]
    # What it costs to keep sessions: clients that all have the same settings, and two kinds of them.
    for mode in ("simple", "extended", "prepared"):
        listed.append(Workload(f"alike-{mode}-64", POSTGRES, mode, 64, kinds=1))
    listed += [
        Workload("alike-accounts-64", POSTGRES, "simple", 64, work="account", kinds=1),
        Workload("two-kinds-64", POSTGRES, "simple", 64, kinds=2),
        Workload("narrow-alike-2", POSTGRES, "simple", 2, kinds=1),
        Workload("narrow-two-kinds-2", POSTGRES, "simple", 2, kinds=2),
    ]
    return listed


SESSION_STATE = {
    **{name: ("qcp-1", "qcp-fast", "qcp-balanced")
       for name in ("alike-simple-64", "alike-extended-64", "alike-prepared-64", "alike-accounts-64")},
    "two-kinds-64": ("qcp-fast", "qcp-balanced"),
    "narrow-alike-2": ("qcp-fast-narrow",),
    "narrow-two-kinds-2": ("qcp-fast-narrow",),
}
TLS = ("tls-simple-64", "tls-churn", "tls-result")
QUICK = ("simple-1", "simple-64", "extended-64", "prepared-64", "churn", "result")
QUICK_CONTESTANTS = ("qcp-1", "pgbouncer", "haproxy", "floor-ring", "floor-epoll")
