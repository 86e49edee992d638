"""The commands behind the Makefile: `python -m lib <command>`."""

import argparse
import ast
import sys

from lib import TenfoldError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a refusal is one sentence on stderr and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except TenfoldError as error:
        print(f"tenfold: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "tenfold: interrupted; finished stages are kept, so the same command goes on from there.", file=sys.stderr
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib", description="Tenfold's commands; `make help` lists them too."
    )
    commands = parser.add_subparsers(required=True)

    def add(name: str, run, help: str):
        command = commands.add_parser(name, help=help)
        command.set_defaults(command=run)
        command.add_argument("--profile", default="cpu")
        command.add_argument("--papers", default="", help="short names; all where empty")
        return command

    command = add("reproduce", reproduce, "run notebooks and judge their claims")
    command.add_argument("--seed", type=int, help="seed of every run (default: the notebook's)")
    command.add_argument("--dry-run", action="store_true", help="print the plan and run nothing")
    command.add_argument("--force", action="store_true", help="run even what has not changed")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one parameter")
    command = add("sweep", sweep, "papers x seeds on a Dask cluster, merged into intervals over seeds")
    command.add_argument("--seeds", default="0 1 2", help="seeds, separated by blanks")
    command.add_argument("--workers", type=int, default=2, help="processes of the local cluster")
    command.add_argument(
        "--scheduler", default="", help="address of a running Dask scheduler (default: a local cluster)"
    )
    add("assets", assets, "bring models and data")
    add("claims", claims, "print the verdict table and write it into the README")
    add("docs", docs, "build the site from results and docstrings")
    add("doctor", doctor, "what is here, what is missing, how to get it")
    add("record", record, "record golden results from a clean commit")
    add("bench", bench, "ratios to peers, measured in turn")
    command = commands.add_parser("new", help="write the first files of a new paper")
    command.set_defaults(command=new)
    command.add_argument("paper", help="its short name, which becomes a package")
    return parser


def reproduce(options) -> int:
    """Plan and run; exit status 1 where any notebook failed."""
    from lib.lab import report
    from lib.lab.reproduce import plan
    from lib.lab.reproduce import reproduce as run

    jobs = plan(options.profile, options.papers.split(), options.seed, _overrides(options.set))
    if options.dry_run:
        _print_plan(jobs)
        return 0
    _fetch_what_they_need(jobs)
    outcomes = run(jobs, force=options.force)
    done = [outcome.job.paper for outcome in outcomes if outcome.state != "failed"]
    if all(outcome.state == "unchanged" for outcome in outcomes):
        print("Nothing has changed since the last run: nothing to do.")
    if done:
        report.print_verdicts(options.profile, done)
    report.print_outcomes(outcomes)
    if options.profile == "cpu" and any(outcome.state == "ran" for outcome in outcomes):
        report.update_readme()
    return int(any(outcome.state == "failed" for outcome in outcomes))


def sweep(options) -> int:
    """Run papers × seeds on a cluster and print the claims over seeds; exit status 1 where any run failed."""
    from lib.lab import report
    from lib.lab import sweep as sweeps

    try:
        seeds = [int(seed) for seed in options.seeds.split()]
    except ValueError:
        raise TenfoldError(
            f'seeds are whole numbers, not {options.seeds!r}: write for example SEEDS="0 1 2".'
        ) from None
    jobs = sweeps.jobs(options.profile, options.papers.split(), seeds)
    _fetch_what_they_need(jobs)
    failed = 0
    for count, outcome in enumerate(sweeps.sweep(jobs, workers=options.workers, scheduler=options.scheduler), start=1):
        failed += outcome.state == "failed"
        print(
            f"[{count}/{len(jobs)}] {outcome.job.name}: {outcome.state} {outcome.minutes:.1f} min {outcome.reason}",
            flush=True,
        )
    report.print_sweep(sweeps.merge(options.profile, options.papers.split()))
    return int(failed > 0)


def _fetch_what_they_need(jobs) -> None:
    from lib import zoo

    zoo.fetch_all({name for job in jobs if not job.up_to_date() for name in job.models_and_data()})


def _overrides(settings: list[str]) -> dict:
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise TenfoldError(f"{setting!r} is not NAME=VALUE: write for example --set documents=8.")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def _print_plan(jobs) -> None:
    from rich.markup import escape
    from rich.table import Table

    from lib import zoo
    from lib.lab import report

    title = f"plan, profile {jobs[0].profile} (nothing is run)" if jobs else "no papers"
    table = Table(title=title, title_justify="left")
    for column in ("paper", "notebook", "minutes", "memory", "models and data"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        needs = "\n".join(zoo.describe(name) for name in job.models_and_data())
        state = " (unchanged)" if job.up_to_date() else ""
        minutes, memory = job.cost.get("minutes", "?"), job.cost.get("memory_gib", "?")
        table.add_row(job.paper + state, job.notebook.name, f"{minutes}", f"{memory} GiB", needs)
    console = report.console()
    console.print(table)
    for job in jobs:
        values = ", ".join(f"{name}={value!r}" for name, value in job.parameters.items())
        console.print(f"[bold]{job.paper}[/] parameters: {escape(values)}", highlight=False)
    print(f"in all about {sum(job.cost.get('minutes', 0) for job in jobs):g} minutes")


def assets(_options) -> int:
    """Fetch, check and unpack every asset."""
    from lib import zoo

    print("fetched" if zoo.fetch_all() else "all assets are here")
    return 0


def claims(options) -> int:
    """Print the verdicts; for the default profile also refresh the README."""
    from lib.lab import report

    report.print_verdicts(options.profile, options.papers.split() or None)
    if options.profile == "cpu" and report.update_readme():
        print("README.md: verdict table written anew.")
    return 0


def docs(_options) -> int:
    """Build the site."""
    from lib.lab.site.build import build

    print(f"The site is built: open {build()}")
    return 0


def doctor(_options) -> int:
    """Print what is here and what is missing; exit status 1 where something is to be done."""
    from lib import zoo
    from lib.lab import doctor as surgery

    rows = surgery.examine(zoo.missing())
    surgery.print_examination(rows)
    return int(any(remedy for *_, remedy in rows))


def _papers(options) -> list[str]:
    from lib.lab import paths

    names = options.papers.split() or list(paths.paper_notebooks())
    for name in names:
        paths.notebook_of(name)
    return names


def record(options) -> int:
    """Record golden files."""
    from lib.lab import golden

    for paper in _papers(options):
        print(golden.record(paper).name)
    return 0


def new(options) -> int:
    """Write a new paper's first files, and say what comes next."""
    from lib.lab import template

    print(template.create(options.paper), end="")
    return 0


def bench(options) -> int:
    """Run benchmarks of the papers that have them."""
    from lib.lab import bench as benches
    from lib.lab.reproduce import plan
    from lib.lab.reproduce import reproduce as reproduce_all

    for paper in _papers(options):
        if benches.has_bench(paper) or options.papers:
            benches.print_rows(benches.run(paper, options.profile))
    (page,) = plan(options.profile, ["benchmarks"], overrides={"profile": options.profile})
    return int(reproduce_all([page], force=True)[0].state == "failed")


if __name__ == "__main__":
    sys.exit(main())
