"""bet-torchrec inspect: a plan in words, and in two pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..files.lines import read_lines
from .options import add_quiet
from .run_folder import HISTORY, METRICS, PLAN, read_json

if TYPE_CHECKING:
    from ..planning.plan import SizePlan


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="print a plan; plot sizes against rank and fitness against iteration",
        description="Print a plan and write sizes.png and, after a search, fitness.png.",
    )
    parser.add_argument("path", type=Path, help="a plan file, or the run folder of `plan`/`train`")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: beside it)")
    parser.add_argument(
        "--reference",
        type=Path,
        action="append",
        default=[],
        metavar="PLAN",
        help="another plan to draw in the same picture; may be repeated",
    )
    parser.add_argument("--no-plots", action="store_true", help="only print")
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    plan_path = find_plan(args.path)
    folder = plan_path.parent
    plan = load_plan(plan_path)
    if not args.quiet:
        print(plan.summary())
        print_facts(folder / METRICS, plan.metadata)
    probes = read_probes(folder / HISTORY)
    if probes and not args.quiet:
        best = max(probes, key=lambda probe: probe["fitness"])
        seconds = sum(probe["seconds"] for probe in probes)
        print(
            f"search: {len(probes)} probes in {seconds:,.0f} s, best fitness "
            f"{best['fitness']:.4f} at iteration {best['iteration']} ({best['strategy']})"
        )
    if args.no_plots:
        return
    out = folder if args.out is None else args.out
    out.mkdir(parents=True, exist_ok=True)
    references = {path.stem: load_plan(find_plan(path)) for path in args.reference}
    for written in draw(plan, probes, out, references=references):
        print(written)


def draw(
    plan: SizePlan,
    probes: list[dict[str, Any]],
    out: Path,
    *,
    references: dict[str, SizePlan] | None = None,
) -> list[Path]:
    """Write sizes.png and, if there are probes, fitness.png into ``out``; returns their paths."""
    from ..plots import plot_fitness, plot_sizes

    written = [out / "sizes.png"]
    plot_sizes(plan, written[0], references=references)
    if probes:
        anchors = [p["fitness"] for p in probes if p["strategy"] == "anchor"]
        written.append(out / "fitness.png")
        plot_fitness(
            [probe["fitness"] for probe in probes],
            written[1],
            iterations=[probe["iteration"] for probe in probes],
            kinds=[KINDS.get(probe["strategy"], probe["strategy"]) for probe in probes],
            references={"equal sizes": max(anchors)} if anchors else None,
            title=f"{plan.budget.describe()}: {len(probes)} probes",
        )
    return written


KINDS = {
    "anchor": "equal sizes",
    "subset": "some tables alone",
    "small": "small tables full, the rest equal",
    "count": "count^alpha",
    "local": "near the best",
    "predicted": "best predicted",
    "random": "random",
    "nearest": "nearest to the best",
}


def find_plan(path: Path) -> Path:
    """The plan file that a path means: itself, or the one in a run folder."""
    found = path / PLAN if path.is_dir() else path
    if not found.is_file():
        raise InvalidInputError(f"expected a plan or a folder with {PLAN}, found none at {path}")
    return found


def load_plan(path: Path) -> SizePlan:
    from ..planning.plan import SizePlan

    return SizePlan.load(path)


def read_probes(path: Path) -> list[dict[str, Any]]:
    """A search's probes that came to a quality; none where there is no such file."""
    if not path.is_file():
        return []
    probes = [line for line in read_lines(path).values if line.get("kind") == "probe"]
    return [probe for probe in probes if probe.get("state") == "ok"]


def print_facts(path: Path, otherwise: Mapping[str, Any]) -> None:
    """What metrics.json says beside the plan; without one, what the plan itself remembers."""
    facts = read_json(path) if path.is_file() else otherwise
    for key, value in facts.items():
        print(f"{key}: {value:.5g}" if isinstance(value, float) else f"{key}: {value}")
