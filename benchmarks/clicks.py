"""The table that decides: BET against what an engineer would have in an afternoon, on click models.

    python benchmarks/clicks.py --run-dir runs/clicks --threads 1
    python benchmarks/clicks.py --run-dir runs/clicks --data frappe --models fm --budgets 1/16,1/64

Full tables d 64 wide (Frappe 16), shares of their parameters and of their fp32 bytes. All methods
have the same probes, finalists, starts (from scratch, and from the full tables' rows) and rates;
validation chooses. A seed is a split and all that is random. Cells that --run-dir has results of
are not run again; several processes may share it, each with data or models of its own. --from adds
the results of other run folders. Written are --out (a JSON line a cell) and a report beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

from common import machine, parser, setup

from bet_torchrec.comparison import METHODS, Settings, grid, read_results, run_cells
from bet_torchrec.comparison.report import report

DATA = "movielens-1m-clicks,frappe,renttherunway,epinions"
BUDGETS = ",".join(f"1/{n}{kind}" for kind in ("", " bytes") for n in (4, 16, 64, 256))
WIDTHS = "0,1,2,4,8,16,32,64"


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--run-dir", type=Path, required=True)
    p.add_argument("--data-dir", type=Path)
    p.add_argument("--data", default=DATA)
    p.add_argument("--models", default="fm,deepfm,dlrm")
    p.add_argument("--methods", default=",".join(("full", *METHODS)))
    p.add_argument("--budgets", default=BUDGETS)
    p.add_argument("--widths", default=WIDTHS)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--probes", type=int, default=30)
    p.add_argument("--finalists", type=int, default=3)
    p.add_argument("--from", type=Path, nargs="*", default=[], dest="others")
    p.add_argument("--report-only", action="store_true")
    args = p.parse_args()
    setup(args)
    cells = grid(
        data=args.data.split(","),
        models=args.models.split(","),
        methods=args.methods.split(","),
        budgets=args.budgets.split(","),
        seeds=range(args.seeds),
    )
    if not args.report_only:
        settings = Settings(
            probes=args.probes,
            finalists=args.finalists,
            widths=tuple(int(width) for width in args.widths.split(",")),
        )
        run_cells(cells, args.run_dir, settings, data_dir=args.data_dir)
    found = {}
    for folder in (args.run_dir, *args.others):
        found |= read_results(folder / "results.jsonl")
    text = f"{machine()}\n\n{report(found)}"
    print(text)
    if args.out is not None:
        lines = [json.dumps(record) for record in found.values()]
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
