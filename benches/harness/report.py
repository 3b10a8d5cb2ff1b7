"""Tables for people."""

COLUMNS = ("", "per s", "(low - high)", "p50 us", "p99 us", "p99.9 us", "CPU us", "(low - high)", "calls", "RSS MB")


def table(results):
    lines = []
    for workload, by_contestant in results.items():
        unit = next((found["unit"] for found in by_contestant.values() if "unit" in found), "transaction")
        lines += ["", f"{workload}, per {unit}"]
        lines += aligned([COLUMNS, *(row(name, found) for name, found in by_contestant.items())])
        of_server = {name: found["server_cpu_us"] for name, found in by_contestant.items() if "server_cpu_us" in found}
        lines += [f"  CPU us of PostgreSQL, {name}: {number(cpu['median'])} {spread(cpu)}" for name, cpu in of_server.items()]
    return "\n".join(lines)


def row(name, found):
    if "error" in found:
        return [name, "-", found["error"]]
    speed = [
        name,
        number(found["per_second"]["median"]), spread(found["per_second"]),
        *(number(found[key]["median"]) for key in ("p50_us", "p99_us", "p999_us")),
    ]
    if "cpu_us" not in found:
        return speed + ["-"] * (len(COLUMNS) - len(speed))
    calls = found.get("system_calls")
    return speed + [
        number(found["cpu_us"]["median"]), spread(found["cpu_us"]),
        "-" if calls is None else number(calls),
        number(found["rss_kb"]["median"] / 1_024),
    ]


def number(value):
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(found):
    return f"({number(found['low'])} - {number(found['high'])})"


def aligned(rows):
    whole = [row for row in rows if len(row) == len(COLUMNS)]
    widths = [max(len(row[index]) for row in whole) for index in range(len(COLUMNS))]
    widths[0] = max(len(row[0]) for row in rows)
    return ["  " + row[0].ljust(widths[0]) + "  " + "  ".join(
        cell.rjust(width) for cell, width in zip(row[1:], widths[1:])) if len(row) == len(COLUMNS)
        else "  " + row[0].ljust(widths[0]) + "  " + " ".join(row[1:]) for row in rows]


def rss_lines(rss_per_idle_client):
    if not rss_per_idle_client:
        return ""
    lines = ["", "RSS per idle client, bytes"]
    lines += [f"  {name}: {'-' if value is None else f'{value:,.0f}'}" for name, value in rss_per_idle_client.items()]
    return "\n".join(lines)


def bars(verdicts):
    width = max(len(verdict.bar) for verdict in verdicts)
    lines = ["", "bars"]
    lines += [f"  {verdict.bar.ljust(width)}  {verdict.state.ljust(12)}  {verdict.measured}" for verdict in verdicts]
    return "\n".join(lines)
