"""Plots: bars for one workload's contestants, lines over the number of clients. Written by hand, no library."""

import math
import os
from html import escape

WIDTH, MARGIN, BAR, GAP = 720, 120, 22, 8
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")


def write_all(results, folder):
    os.makedirs(folder, exist_ok=True)
    for workload, by_contestant in results.items():
        measured = {name: found for name, found in by_contestant.items() if found.get("rounds")}
        if measured:
            unit = next(iter(measured.values()))["unit"]
            poolers = {name: found for name, found in measured.items() if "cpu_us" in found}
            if poolers:
                save(folder, f"{workload}-cpu", bars(f"{workload}: CPU us per {unit}", poolers, "cpu_us"))
            save(folder, f"{workload}-throughput", bars(f"{workload}: {unit}s per second", measured, "per_second"))
    for family in ("simple", "extended", "prepared", "stub-simple", "stub-extended", "stub-prepared"):
        for key, title in (("cpu_us", "CPU us per transaction"), ("p99_us", "p99 us"), ("per_second", "transactions per second")):
            series = over_clients(results, family, key)
            if any(len(points) > 1 for points in series.values()):
                save(folder, f"{family}-over-clients-{key.replace('_', '-')}", lines(f"{family}: {title}", series))


def over_clients(results, family, key):
    series = {}
    for workload, by_contestant in results.items():
        prefix, _, clients = workload.rpartition("-")
        if prefix != family or not clients.isdigit():
            continue
        for name, found in by_contestant.items():
            if key in found:
                series.setdefault(name, []).append((int(clients), found[key]["median"]))
    return {name: sorted(points) for name, points in series.items()}


def bars(title, measured, key):
    top = max(found[key]["high"] for found in measured.values()) or 1
    scale = (WIDTH - MARGIN - 90) / top
    parts = []
    for index, (name, found) in enumerate(measured.items()):
        y = 40 + index * (BAR + GAP)
        value = found[key]
        middle = y + BAR / 2
        low, high, end = (MARGIN + value[at] * scale for at in ("low", "high", "median"))
        colour = COLOURS[index % len(COLOURS)]
        parts += [
            text(MARGIN - 8, middle + 4, name, "end"),
            f'<rect x="{MARGIN}" y="{y}" width="{end - MARGIN:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#333" stroke-width="1.5"/>',
            text(max(high, end) + 6, middle + 4, figure(value["median"])),
        ]
    return document(title, 50 + len(measured) * (BAR + GAP), parts)


def lines(title, series):
    height, left, right, top, bottom = 380, 70, WIDTH - 130, 40, 340
    clients = sorted({x for points in series.values() for x, _ in points})
    highest = max(y for points in series.values() for _, y in points) or 1
    reach = math.log(clients[-1] / clients[0]) or 1

    def place(x, y):
        return left + (right - left) * math.log(x / clients[0]) / reach, bottom - (bottom - top) * y / highest

    parts = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#888"/>']
    parts += [text(place(x, 0)[0], bottom + 18, str(x), "middle") for x in clients]
    parts += [text(left - 6, place(clients[0], y)[1] + 4, figure(y), "end") for y in (0, highest / 2, highest)]
    for index, (name, points) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<rect x="{right + 14}" y="{top + index * 20}" width="12" height="12" fill="{colour}"/>')
        parts.append(text(right + 32, top + index * 20 + 10, name))
    parts.append(text((left + right) / 2, height - 6, "clients", "middle"))
    return document(title, height, parts)


def figure(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def text(x, y, words, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def document(title, height, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    name = f'<text x="12" y="22" font-size="14" font-weight="bold">{escape(title)}</text>'
    return "\n".join([head, ground, name, *parts, "</svg>", ""])


def save(folder, name, content):
    with open(os.path.join(folder, f"{name}.svg"), "w") as file:
        file.write(content)
