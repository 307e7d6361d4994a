"""What was found, as a table, beside the goals, and as a plot."""

from statistics import median
from typing import Any, NamedTuple

from servers import DIRECT

Sample = dict[str, Any]  # metric, n, server, round, and value or error


class Metric(NamedTuple):
    title: str
    each: str  # what n counts
    decimals: int
    less_is_better: bool = False

    def row(self, n: int) -> str:
        return f"{self.title}, {n} {self.each}{'s'[: n > 1]}"


METRICS = {
    "stream down": Metric("1 stream down, MB/s", "KiB write", 0),
    "stream up": Metric("1 stream up, MB/s", "KiB write", 0),
    "rate": Metric("connections/s", "client", 0),
    "trips": Metric("64-byte round trips/s", "connection", 0),
    "trips beside": Metric("64-byte round trips/s beside a blocked one", "connection", 0),
    "trips kept": Metric("round trips kept beside it, %", "connection", 1),
    "down": Metric("down, MB/s", "stream", 0),
    "down beside": Metric("down beside a blocked one, MB/s", "stream", 0),
    "down kept": Metric("down kept beside it, %", "stream", 1),
    "up": Metric("up, MB/s", "stream", 0),
    "down cpu": Metric("down, CPU s per GB", "stream", 3, True),
    "up cpu": Metric("up, CPU s per GB", "stream", 3, True),
    "idle": Metric("idle, KiB per connection", "connection", 1, True),
    "echo 64": Metric("64-byte datagrams there and back/s", "association", 0),
    "echo 1400": Metric("1400-byte datagrams there and back, MB/s", "association", 1),
    "echo 8192": Metric("8192-byte datagrams there and back, MB/s", "association", 1),
    "echo 64 cpu": Metric("64-byte, CPU µs there and back", "association", 1, True),
    "echo 1400 cpu": Metric("1400-byte, CPU µs there and back", "association", 1, True),
    "echo 8192 cpu": Metric("8192-byte, CPU µs there and back", "association", 1, True),
    "associations": Metric("idle, KiB per association", "association", 1, True),
    "guest processes": Metric("guest's processes, MB", "idle connection", 1, True),
    "guest memory": Metric("guest with the kernel's share, MB", "idle connection", 1, True),
    "guest alone": Metric("guest with all of the files, MB", "idle connection", 1, True),
    "host processes": Metric("host's process, MB", "idle connection", 1, True),
    "host memory": Metric("host with the kernel's share, MB", "idle connection", 1, True),
    "host alone": Metric("host with all of the files, MB", "idle connection", 1, True),
    "start by muonsocks": Metric("socks-connect by muonsocks, ms", "byte", 1, True),
    "start by dante": Metric("socks-connect by dante, ms", "byte", 1, True),
    "connect by muonsocks": Metric("a connection by muonsocks, µs", "client", 0, True),
    "connect by microsocks": Metric("a connection by microsocks, µs", "client", 0, True),
    "client down": Metric("down in a Python program, MB/s", "stream", 0),
    "held by microsocks": Metric("a held connection by microsocks, µs", "client", 0, True),
    "held by muonsocks": Metric("a held connection by muonsocks, µs", "client", 0, True),
    "curl down": Metric("down in curl, MB/s", "stream", 0),
    "together": Metric("until all are there of those that take 1 s, s", "connection", 2, True),
}


class Goal(NamedTuple):
    metric: str
    n: int
    against: str | None  # the server a ratio is to; None: the goal is a figure of the metric itself
    floor: float
    aim: float


GOALS = [
    Goal("rate", 64, "microsocks", 1.2, 1.6),
    Goal("rate", 16, "microsocks", 1.0, 1.4),
    Goal("rate", 1, "microsocks", 0.9, 1.2),
    Goal("trips", 64, "microsocks", 1.2, 1.8),
    Goal("trips", 1, "microsocks", 1.0, 1.3),
    Goal("down", 1, DIRECT, 0.95, 1.3),
    Goal("up", 1, DIRECT, 0.95, 1.3),
    Goal("down", 4, DIRECT, 0.65, 0.9),
    Goal("up", 4, DIRECT, 0.65, 0.9),
    Goal("down cpu", 1, "dante", 0.45, 0.3),
    Goal("up cpu", 1, "dante", 0.45, 0.3),
    Goal("down cpu", 4, "dante", 0.45, 0.3),
    Goal("up cpu", 4, "dante", 0.45, 0.3),
    Goal("idle", 1000, "microsocks", 0.25, 0.17),
    Goal("idle", 9000, "microsocks", 0.25, 0.17),
    Goal("stream down", 4, None, 1000, 1000),
    Goal("stream down", 16, None, 1500, 1500),
    Goal("stream up", 4, None, 1000, 1000),
    Goal("stream up", 16, None, 1500, 1500),
    Goal("trips kept", 50, None, 90, 90),
    Goal("down kept", 50, None, 90, 90),
    Goal("guest memory", 1000, None, 20, 20),
    Goal("host memory", 1000, None, 20, 20),
    Goal("start by muonsocks", 1, "nc + python3 -IS", 1.5, 1.3),
    Goal("start by dante", 1, "nc + python3 -IS", 1.5, 1.3),
    Goal("start by muonsocks", 1, "nc + python3", 1.5, 1.1),
    Goal("start by dante", 1, "nc + python3", 1.5, 1.1),
    Goal("connect by muonsocks", 1, "PySocks", 1.3, 1.0),
    Goal("connect by microsocks", 1, "PySocks", 1.3, 1.0),
    Goal("client down", 1, "PySocks", 0.95, 1.0),
    Goal("held by microsocks", 1, "proxychains4", 1.6, 1.3),
    Goal("held by muonsocks", 1, "proxychains4", 1.6, 1.3),
    Goal("curl down", 1, "curl's own SOCKS", 0.95, 1.0),
    Goal("together", 200, None, 4, 2.5),
]
REFERENCES = [
    "microsocks",
    "dante",
    "nc + python3 -IS",
    "nc + python3",
    "PySocks",
    "proxychains4",
    "torsocks",
    "curl's own SOCKS",
    DIRECT,
]


class Results:
    """The samples of a run; `ours` is the server that the ratios and goals are about."""

    def __init__(self, samples: list[Sample], ours: str) -> None:
        self.ours = ours
        self.servers = list(dict.fromkeys(sample["server"] for sample in samples))
        keys = dict.fromkeys((sample["metric"], sample["n"]) for sample in samples)
        self.rows = sorted(keys, key=lambda row: (list(METRICS).index(row[0]), row[1]))
        self.samples = samples

    def values(self, metric: str, n: int, server: str) -> dict[int, float]:
        """Round -> value; empty if a single round had an error."""
        key = (metric, n, server)
        found = [s for s in self.samples if (s["metric"], s["n"], s["server"]) == key]
        return {} if any("error" in s for s in found) else {s["round"]: s["value"] for s in found}

    def ratios(self, metric: str, n: int, against: str) -> list[float]:
        """Ours by theirs, round by round, so that a machine that slows down does not matter."""
        mine, theirs = self.values(metric, n, self.ours), self.values(metric, n, against)
        return sorted(mine[i] / theirs[i] for i in mine.keys() & theirs.keys() if theirs[i] > 0)

    def figures(self, goal: Goal) -> list[float]:
        """What it is about: ratios, or our values."""
        if goal.against is None:
            return sorted(self.values(goal.metric, goal.n, self.ours).values())
        return self.ratios(goal.metric, goal.n, goal.against)

    def cell(self, metric: str, n: int, server: str) -> str:
        if values := self.values(metric, n, server):
            return f"{median(values.values()):,.{METRICS[metric].decimals}f}"
        key = (metric, n, server)
        found = [s for s in self.samples if (s["metric"], s["n"], s["server"]) == key]
        wrong = sum("error" in sample for sample in found)
        return f"{wrong} of {len(found)} failed" if found else "-"

    def table(self) -> str:
        """Medians, and the medians of our ratios to what we are measured against."""
        references = [
            name
            for name in REFERENCES
            if {name, self.ours} <= {*self.servers} and name != self.ours
        ]
        lines = [["", *self.servers, *(f"{self.ours} / {name}" for name in references)]]
        for metric, n in self.rows:
            about = METRICS[metric]
            line = [about.row(n)]
            line += [self.cell(metric, n, server) for server in self.servers]
            for name in references:
                ratios = self.ratios(metric, n, name)
                line.append(f"{median(ratios):.2f}" if ratios else "-")
            lines.append(line)
        return aligned(lines) + self.errors()

    def errors(self) -> str:
        wrong = [sample for sample in self.samples if "error" in sample]
        lines = {
            f"{METRICS[s['metric']].title}, {s['n']}, {s['server']}: {s['error']}" for s in wrong
        }
        return "".join(f"\nfailed: {line}" for line in sorted(lines))

    def goals(self) -> list[dict[str, Any]]:
        """Each goal this run can tell of: floor, aim, and what was reached."""
        found = []
        for goal in GOALS:
            about = METRICS[goal.metric]
            title = f"{about.title}, {goal.n}, to {goal.against}"
            figures = self.figures(goal)
            if not figures or goal.against == self.ours:
                continue
            sign = -1 if about.less_is_better else 1
            reached = median(figures)
            verdict = "short"
            if sign * reached >= sign * goal.floor:
                verdict = "aim" if sign * reached >= sign * goal.aim else "floor"
            found.append(
                {
                    "goal": title if goal.against else about.row(goal.n),
                    "floor": goal.floor,
                    "aim": goal.aim,
                    "reached": round(reached, 3),
                    "range": [round(figures[0], 3), round(figures[-1], 3)],
                    "verdict": verdict,
                }
            )
        return found

    def goals_table(self) -> str:
        lines = [[f"{self.ours}", "floor", "aim", "reached", "rounds", ""]]
        for goal in self.goals():
            low, high = goal["range"]
            figures = [short(goal["floor"]), short(goal["aim"]), short(goal["reached"], 3)]
            lines.append([goal["goal"], *figures, f"{short(low)}-{short(high)}", goal["verdict"]])
        return aligned(lines) if lines[1:] else "no goal: that takes both servers it is about"

    def against_dante(self) -> str:
        """One goal more: better than dante in every row."""
        worse, compared = [], 0
        for metric, n in self.rows:
            if ratios := self.ratios(metric, n, "dante"):
                compared += 1
                if (median(ratios) < 1) != METRICS[metric].less_is_better:
                    worse.append(f"{METRICS[metric].title}, {n}")
        if not compared or self.ours == "dante":
            return ""
        what = f"all but: {'; '.join(worse)}" if worse else "all"
        return f"better than dante in {compared - len(worse)} of {compared} rows: {what}"

    def plot(self, path: str, title: str) -> None:
        """A panel a metric, a group of bars a number of connections."""
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot

        metrics = list(dict.fromkeys(metric for metric, _ in self.rows))
        columns = min(2, len(metrics))
        height = (len(metrics) + columns - 1) // columns
        figure, axes = pyplot.subplots(
            height, columns, figsize=(5.5 * columns, 2.8 * height), squeeze=False
        )
        width = 0.8 / len(self.servers)
        for axis, metric in zip(axes.flat, metrics, strict=False):
            numbers = [n for name, n in self.rows if name == metric]
            for i, server in enumerate(self.servers):
                found = [self.values(metric, n, server).values() for n in numbers]
                heights = [median(values) if values else 0 for values in found]
                places = [
                    group + (i - len(self.servers) / 2 + 0.5) * width
                    for group in range(len(numbers))
                ]
                axis.bar(places, heights, width, label=server)
            axis.set_xticks(range(len(numbers)), [str(n) for n in numbers])
            about = METRICS[metric]
            better = " (less is better)" if about.less_is_better else ""
            axis.set_title(f"{about.title}{better}", fontsize=10)
            axis.set_xlabel(f"{about.each}s", fontsize=8)
            axis.tick_params(labelsize=8)
        for axis in axes.flat[len(metrics) :]:
            axis.axis("off")
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="lower right", fontsize=9)
        figure.suptitle(title, fontsize=9)
        figure.tight_layout()
        figure.savefig(path)


def line(sample: Sample) -> str:
    about = "{metric}, {n}, {server}, round {round}: ".format_map(sample)
    if "error" in sample:
        return about + str(sample["error"])
    return f"{about}{sample['value']:,.{METRICS[sample['metric']].decimals}f}"


def short(figure: float, decimals: int = 2) -> str:
    """A ratio with so many decimals, or what is large enough to have fewer."""
    return f"{figure:,.{decimals if figure < 10 else 1 if figure < 100 else 0}f}"


def aligned(lines: list[list[str]]) -> str:
    """A table in Markdown that can be read as it is; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *body = (
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in lines
    )
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([head, rule, *body])
