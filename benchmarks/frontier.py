"""The frontier: test AUC and log loss against bytes a row, from full fp32 to half a byte.

    python benchmarks/frontier.py --run-dir runs/frontier --data frappe --models fm --threads 1
    python benchmarks/frontier.py --run-dir runs/frontier --out benchmarks/results/frontier.jsonl \
        --report-only

A model is trained with full tables; then its tables are stored in every form of frontier_forms.py,
as they are and trained on, all alike: by ``rounding_epochs`` from the trained model, the best state
on validation kept (the one before any training on included).
"narrow" is a model of its own, trained from scratch with a smaller embedding_dim, then as all
others. Bytes are all that is served of the tables: codes, scales, axes (a byte an entry)
and codebooks (fp16).

A line a form, with the commit and the settings that it ran with, in --run-dir/frontier.jsonl, which
is only ever appended to; what is there is not run again. --out takes a copy of the lines, a picture
and a report.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import machine, parser, setup
from frontier_forms import Form, forms
from frontier_report import pictures, report

from bet_torchrec.data.clicks import load_clicks
from bet_torchrec.files import replace_file
from bet_torchrec.files.lines import append_line, read_lines
from bet_torchrec.progress import progress_bar
from bet_torchrec.provenance import provenance
from bet_torchrec.tasks import ClickTask
from bet_torchrec.training import Trained, TrainingWorkbench, clicks, rounding_epochs

TARGETS = "16,8,6,4,3,2,1.5,1,0.5"
RATES = {"frappe": 1e-2, "movielens-1m-clicks": 2e-3, "renttherunway": 1e-3}
L2 = {"frappe": 0.0, "movielens-1m-clicks": 1e-2, "renttherunway": 0.1}
BATCH = 2048


class Tasks:
    """One data set, model and seed: workbenches by width, on one split."""

    def __init__(self, data: str, model: str, seed: int, args: Any) -> None:
        self.split = load_clicks(data, seed=seed, data_dir=args.data_dir).by_rank()[0].compact()
        self.data, self.model, self.seed, self.folder = data, model, seed, args.run_dir

    def at(self, width: int) -> TrainingWorkbench:
        model: Any = self.model
        task = ClickTask(self.split, model, embedding_dim=width, batch_size=BATCH, l2=L2[self.data])
        folder = self.folder / f"{self.data}-{self.model}-{width}-{self.seed}"
        training = clicks(RATES[self.data]).training
        return TrainingWorkbench(task, training=training, run_dir=folder, seed=self.seed)


def measured(model: Trained) -> dict[str, Any]:
    found = model.evaluate(part="test").mean()
    return {"validation": model.quality, "auc": found["auc"], "log_loss": found["log_loss"]}


def ran(form: Form, tasks: Tasks, dim: int, args: Any) -> dict[str, Any]:
    """A form's record: as it is, and trained on."""
    began = time.process_time()
    bench = tasks.at(dim if form.width is None else form.width)
    start = bench.full()
    module = form.make(start)
    making = time.process_time() - began
    quality = bench.task.validate(start.model, module)
    outcome = dataclasses.replace(start.outcome, quality=quality)
    plain = dataclasses.replace(start, embedding=module, outcome=outcome)
    before = measured(plain)
    steps, taken = bench.task.steps_per_epoch, start.outcome.epochs
    settings = rounding_epochs(bench.training, steps, trained=taken)
    tuned = bench.fit(module, settings=settings, warm=start, seed=tasks.seed + 1)
    better = tuned.outcome.ok and tuned.quality > quality
    after = measured(tuned) if better else before
    return {
        "making_seconds": round(making, 2),
        "seconds": round(time.process_time() - began, 2),
        "epochs": tuned.outcome.epochs,
        "before": before,
        "after": after,
    }


def runs(tasks: Tasks, dim: int, done: set[tuple[Any, ...]], args: Any) -> Iterator[dict[str, Any]]:
    bench = tasks.at(dim)
    rows = sum(table.num_embeddings for table in bench.tables)
    origin = {"data": tasks.data, "model": tasks.model, "dim": dim, "seed": tasks.seed}
    targets = [float(target) for target in args.targets.split(",")]
    todo = [
        form
        for form in forms(bench, targets, args.most, parts=args.parts)
        if (*origin.values(), form.method, form.setting) not in done
        and (args.methods is None or form.method in args.methods.split(","))
        and (args.settings is None or form.setting in args.settings.split(","))
    ]
    with progress_bar(todo, desc=f"{tasks.data} {tasks.model} {tasks.seed}", shown=True) as bar:
        for form in bar:
            if time.perf_counter() - args.began > args.seconds:
                return
            bar.set_postfix_str(f"{form.method} {form.setting}")
            name = {"method": form.method, "setting": form.setting}
            size = {"bytes": form.bytes, "rows": rows, "bytes_a_row": form.bytes / rows}
            yield {**origin, **name, **size, **ran(form, tasks, dim, args)}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--run-dir", type=Path, required=True)
    p.add_argument("--data-dir", type=Path)
    p.add_argument("--data", default="frappe,movielens-1m-clicks,renttherunway")
    p.add_argument("--models", default="fm,deepfm,dlrm")
    p.add_argument("--methods", help="all unless given: names as in the lines, by commas")
    p.add_argument("--settings", help="all unless given: of the methods, likewise")
    p.add_argument("--dim", type=int, help="of the full tables: 64, Frappe 16")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--targets", default=TARGETS, help="bytes a row that ours are made for")
    p.add_argument("--parts", action="store_true", help="run ours with each part taken away")
    p.add_argument("--most", type=float, default=16, help="bytes a row of the others, at most")
    p.add_argument("--seconds", type=float, default=math.inf, help="begin no form after so many")
    p.add_argument("--report-only", action="store_true")
    args = p.parse_args()
    setup(args)
    args.began = time.perf_counter()
    path = args.run_dir / "frontier.jsonl"
    args.run_dir.mkdir(parents=True, exist_ok=True)
    if not args.report_only:
        for seed in range(args.seeds):
            for data in args.data.split(","):
                for model in args.models.split(","):
                    run(path, data, model, seed, args)
    found = read_lines(path).values
    text = f"{machine()}\n\n{report(found)}"
    print(text)
    if args.out is not None:
        replace_file(args.out, path.read_bytes().decode())
        replace_file(args.out.with_suffix(".md"), text)
        for picture in pictures(found, args.out):
            print(picture)


def run(path: Path, data: str, model: str, seed: int, args: Any) -> None:
    """Append what is missing of one data set, model and seed."""
    dim = args.dim or (16 if data == "frappe" else 64)
    done: set[tuple[Any, ...]] = set()
    checksum = 0
    if path.exists():
        kept = read_lines(path)
        os.truncate(path, kept.size)  # what a crash cut short is no line
        checksum = kept.checksum
        keys = ("data", "model", "dim", "seed", "method", "setting")
        done = {tuple(line[key] for key in keys) for line in kept.values}
    settings = {"batch": BATCH, "threads": args.threads}
    origin = provenance(seed=seed, settings=settings)
    told = {key: origin[key] for key in ("settings", "versions", "git")}
    for record in runs(Tasks(data, model, seed, args), dim, done, args):
        assert all(math.isfinite(record[k]["auc"]) for k in ("before", "after"))
        checksum = append_line(path, {**record, **told}, checksum)


if __name__ == "__main__":
    main()
