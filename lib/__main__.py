"""The commands behind the Makefile: `python -m lib <command>`."""

import argparse
import ast
import os
import subprocess
import sys
import tempfile

import lib
from lib import TenfoldError


def main(arguments: list[str] | None = None) -> int:
    """Run one command, or print the commands where none is named; a refusal is one sentence and exit status 2."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    if not given:
        parser.print_help()
        return 0
    try:
        options = parser.parse_args(given)
        if not (options.anywhere or lib.is_checkout()):
            raise TenfoldError(
                f"`{options.name}` needs a checkout of Tenfold, with its notebooks: `git clone` the repository and run "
                f"`python -m lib {options.name}` or `make` there; the methods, `assets` and `doctor` work without."
            )
        return options.command(options)
    except TenfoldError as error:
        print(f"tenfold: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "lib":
            raise
        print(
            f"tenfold: {error.name!r} is not installed: `make env` brings it, or pip with the wheel's extra [all].",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "tenfold: interrupted; finished stages are kept, so the same command goes on from there.", file=sys.stderr
        )
        return 130


class Parser(argparse.ArgumentParser):
    """A parser that refuses as all of Tenfold does, without a page of usage."""

    def error(self, message: str):
        """Raise TenfoldError in place of printing usage and exiting."""
        raise TenfoldError(f"{message}; `{self.prog} --help` says what there is.")


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise TenfoldError(f"a seed is a whole number from 0 to 4294967295, not {text!r}: write for example SEED=1.")
    return int(text)


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise TenfoldError(f"the number of workers is 1 or more, not {text!r}: write for example WORKERS=2.")
    return int(text)


def _parser() -> Parser:
    installed = os.path.basename(sys.argv[0]) == "tenfold"
    parser = Parser(
        prog="tenfold" if installed else "python -m lib",
        description="Tenfold's commands; in a checkout, `make help` lists them too.",
    )
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")

    def add(name: str, run, help: str, *, profile: bool = False, papers: bool = False, anywhere: bool = False):
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(command=run, name=name, anywhere=anywhere)
        if profile:
            command.add_argument("--profile", default="cpu", help="smoke, cpu (the default) or gpu")
        if papers or profile:
            command.add_argument("--papers", default="", help="short names, separated by blanks; all where empty")
        return command

    command = add("reproduce", reproduce, "run notebooks and judge their claims", profile=True)
    command.add_argument("--seed", type=_seed, help="seed of every run (default: the notebook's)")
    command.add_argument("--dry-run", action="store_true", help="print the plan and run nothing")
    command.add_argument("--force", action="store_true", help="run even what has not changed")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override one parameter")
    command = add("sweep", sweep, "papers x seeds on a Dask cluster, merged into intervals over seeds", profile=True)
    command.add_argument("--seeds", default="0 1 2", help="seeds, separated by blanks")
    command.add_argument("--workers", type=_workers, default=2, help="processes of the local cluster")
    command.add_argument(
        "--scheduler", default="", help="address of a running Dask scheduler (default: a local cluster)"
    )
    command = add("replicate", replicate, "judge the claims again, at another seed", profile=True)
    command.add_argument("--seed", type=_seed, default=1, help="seed of every run, other than the published one")
    command.add_argument("--instructions", default="avx512", help="avx2, avx512 (without bfloat16) or native")
    command = add("assets", assets, "bring models and data", anywhere=True)
    command.add_argument("names", nargs="*", help="short names (default: those of the default runs)")
    command = add("serve", serve, "an OpenAI-compatible server of a model, on this machine only", anywhere=True)
    command.add_argument("model", help="a short name, a folder or a hub name")
    command.add_argument("--port", type=int, default=8000)
    add("claims", claims, "print the verdict table, and write README and claims page anew", profile=True)
    add("docs", docs, "build the site from results and docstrings")
    add("doctor", doctor, "what is here, what is missing, how to get it", anywhere=True)
    add("record", record, "record golden results from a clean commit", papers=True)
    add("rehearse", rehearse, "run the gpu profile's notebooks to their last cell on tiny stand-ins", papers=True)
    command = add("train", train, "make a paper's shipped weights again (hours; goes on where it was stopped)")
    command.add_argument("paper", help="its short name")
    command.add_argument("--seed", type=_seed, default=0, help="seed of the training")
    command = add("replies", replies, "record again the replies of a model that a paper's notebook replays")
    command.add_argument("paper", help="its short name")
    command.add_argument("--model", default="qwen2.5-coder-1.5b-instruct", help="its short name, or at the endpoint")
    command.add_argument("--url", default="", help="an OpenAI-compatible endpoint, up to /v1; without it, loaded here")
    add("mutants", mutants, "break each core formula once, and see that its test fails", papers=True)
    add("bench", bench, "ratios to peers, measured in turn", profile=True)
    command = add("new", new, "write the first files of a new paper")
    command.add_argument("paper", help="its short name, which becomes a package")
    return parser


def reproduce(options) -> int:
    """Plan and run; exit status 1 where any notebook or any check of our own code failed."""
    from lib.lab import report
    from lib.lab.reproduce import plan
    from lib.lab.reproduce import reproduce as run

    jobs = plan(options.profile, options.papers.split(), options.seed, _overrides(options.set))
    if options.dry_run:
        _print_plan(jobs)
        return 0
    _refuse_unwritable()
    _fetch_what_they_need(jobs)
    outcomes = run(jobs, force=options.force)
    done = [outcome.job.paper for outcome in outcomes if outcome.state != "failed"]
    if all(outcome.state == "unchanged" for outcome in outcomes):
        print("Nothing has changed since the last run: nothing to do.")
    if done:
        report.print_verdicts(options.profile, done)
    report.print_outcomes(outcomes)
    if done:
        report.print_findings(options.profile, done)
    if options.profile == "cpu" and any(outcome.state == "ran" for outcome in outcomes):
        report.update_pages()
    broken = report.failed_checks(options.profile, done)
    if broken:
        print(
            f"tenfold: what our own code promises does not hold here, so mend it before you trust its results: "
            f"{'; '.join(broken)}.",
            file=sys.stderr,
        )
    return int(bool(broken) or any(outcome.state == "failed" for outcome in outcomes))


def sweep(options) -> int:
    """Run papers × seeds on a cluster and print the claims over seeds; exit status 1 where any run failed."""
    from lib.lab import report
    from lib.lab import sweep as sweeps

    jobs = sweeps.jobs(options.profile, options.papers.split(), [_seed(seed) for seed in options.seeds.split()])
    _refuse_unwritable()
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


def replicate(options) -> int:
    """Run papers at another seed and print which verdicts held; exit status 1 where any run failed."""
    from lib.lab import replicate as replicates
    from lib.lab import report

    jobs = replicates.jobs(options.profile, options.papers.split(), options.seed, options.instructions)
    _refuse_unwritable()
    _fetch_what_they_need(jobs)
    outcomes = list(replicates.replicate(jobs, options.instructions))
    report.print_replicates(options.profile, [job.paper for job in jobs])
    report.print_outcomes(outcomes)
    if options.profile == "cpu":
        report.update_pages()
    return int(any(outcome.state == "failed" for outcome in outcomes))


def _refuse_unwritable() -> None:
    """Say at once, not after minutes of work, that results or cache cannot be written."""
    from lib.lab import paths

    lib.refuse_unwritable(paths.figures_dir(), "TENFOLD_FIGURES")
    moved = "TENFOLD_CACHE" if os.environ.get("TENFOLD_CACHE") else "TENFOLD_DATA or TENFOLD_CACHE"
    lib.refuse_unwritable(lib.cache_dir(), moved)


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

    from lib import zoo
    from lib.lab import report, requirements

    title = f"plan, profile {jobs[0].profile} (nothing is run)" if jobs else "no papers"
    table = report.table(title, "paper", "notebook", "minutes", "memory", "needs")
    for job in jobs:
        named = [zoo.describe(name) for name in job.models_and_data()]
        needs = "\n".join([*named, *requirements.in_words(job.requires, job.parameters)])
        state = " (unchanged)" if job.up_to_date() else ""
        minutes, memory = job.cost.get("minutes", "?"), job.cost.get("memory_gib", "?")
        table.add_row(job.paper + state, job.notebook.name, f"{minutes}", f"{memory} GiB", needs)
    console = report.console()
    console.print(table)
    for job in jobs:
        _print_stages(job, console)
        values = ", ".join(f"{name}={value!r}" for name, value in job.parameters.items())
        console.print(f"[bold]{job.paper}[/] parameters: {escape(values)}", highlight=False)
    print(f"in all about {sum(job.cost.get('minutes', 0) for job in jobs):g} minutes")


def _print_stages(job, console) -> None:
    """Say which stages of a job would be computed, and why."""
    from rich.markup import escape

    told = job.stages()
    if not told:
        console.print(f"[bold]{job.paper}[/] stages: all computed, since it has not run here yet")
    kept = sum(stage.entries for stage in told if stage.state == "kept")
    if kept:
        console.print(f"[bold]{job.paper}[/] stages: {kept} kept", highlight=False)
    for stage in told:
        if stage.state != "kept":
            times = f" ({stage.entries} times)" if stage.entries > 1 else ""
            console.print(
                f"[bold]{job.paper}[/] stage {escape(stage.stage)}{times}: {stage.state}, since {escape(stage.why)}",
                highlight=False,
            )


def assets(options) -> int:
    """Fetch, check and unpack the assets named, or those of the default runs."""
    from lib import zoo
    from lib.zoo.assets import ASSETS

    names = [name for text in options.names for name in text.split()]
    if unknown := [name for name in names if name not in ASSETS]:
        raise TenfoldError(f"no asset is called {unknown[0]!r}: the short names are {', '.join(ASSETS)}.")
    print("fetched" if zoo.fetch_all(names or None) else "all assets are here")
    return 0


def serve(options) -> int:
    """Hand over to `transformers serve`, with a short-named model's own folder."""
    from importlib.util import find_spec

    import torch

    from lib.zoo import models

    if not (find_spec("fastapi") and find_spec("uvicorn")):
        raise TenfoldError(
            "the server needs fastapi and uvicorn: `make serve` brings them, or `pip install 'transformers[serving]'`."
        )
    print(f"model {options.model!r} at http://127.0.0.1:{options.port}/v1: what `endpoint` parameters take", flush=True)
    command = [os.path.join(os.path.dirname(sys.executable), "transformers"), "serve", options.model]
    command += ["--host", "127.0.0.1", "--port", str(options.port), "--dtype", "bfloat16"]
    with tempfile.TemporaryDirectory() as place:  # the server answers to the name of a folder where it stands
        if known := options.model in models.LANGUAGE_MODELS:
            os.symlink(models.converted(options.model, torch.bfloat16), os.path.join(place, options.model))
        return subprocess.call(command, cwd=place if known else None)


def claims(options) -> int:
    """Print the verdicts; for the default profile also write the generated pages anew."""
    from lib.lab import profiles, report

    profiles.load(options.profile)
    _papers(options)
    report.print_verdicts(options.profile, options.papers.split() or None)
    report.print_findings(options.profile, options.papers.split() or None)
    for changed in report.update_pages() if options.profile == "cpu" else []:
        print(f"{changed}: written anew.")
    return 0


def docs(_options) -> int:
    """Build the site."""
    from lib.lab.site import build

    _refuse_unwritable()
    print(f"The site is built: open {build()}")
    return 0


def doctor(_options) -> int:
    """Print what is here and what is missing; exit status 1 where something is to be done."""
    from lib import zoo
    from lib.lab import doctor as surgery

    rows = surgery.examine(zoo.missing)
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

    _refuse_unwritable()
    golden.record(_papers(options), told=lambda line: print(line, flush=True))
    return 0


def rehearse(options) -> int:
    """Rehearse the gpu profile; exit status 1 where a notebook does not reach its last cell."""
    from lib.lab.rehearsal import rehearse as rehearsed

    failed = 0
    for outcome in rehearsed(_papers(options)):
        failed += bool(outcome.reason)
        print(f"{outcome.paper}: {outcome.reason or 'to its last cell'} ({outcome.minutes:.1f} min)", flush=True)
    return int(failed > 0)


def train(options) -> int:
    """Make shipped weights and their cards."""
    from lib.lab import shipping

    for path in shipping.train(options.paper, seed=options.seed):
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB, with its card")
    return 0


def replies(options) -> int:
    """Record a model's replies and write their card."""
    from lib.lab import shipping

    print(f"{shipping.record_replies(options.paper, model=options.model, url=options.url)} replies, with their card")
    return 0


def mutants(options) -> int:
    """Run the mutants of some rooms; of all rooms also write the page. Exit status 1 where any is not caught."""
    from lib.lab import mutants as changes
    from lib.lab.paths import did_you_mean

    listed = changes.load()
    rooms = options.papers.split()
    for room in rooms:
        if not any(mutant.room == room for mutant in listed):
            raise TenfoldError(f"no mutants of {room!r} are listed: {did_you_mean(room, {m.room for m in listed})}")
    chosen = [mutant for mutant in listed if not rooms or mutant.room in rooms]

    def told(outcome) -> None:
        print(f"{outcome.state:10} {outcome.mutant.room}: {outcome.mutant.what}", flush=True)
        if not outcome.caught:
            print(outcome.detail, flush=True)

    outcomes = changes.run(chosen, told=told)
    if not rooms:
        changes.page().write_text(changes.as_markdown(outcomes), encoding="utf8")
    caught = sum(outcome.caught for outcome in outcomes)
    print(f"{caught} of {len(outcomes)} mutants are caught" + ("" if rooms else ": tests/MUTANTS.md is written."))
    return int(caught < len(outcomes))


def new(options) -> int:
    """Write a new paper's first files, and say what comes next."""
    from lib.lab import template

    print(template.create(options.paper), end="")
    return 0


def bench(options) -> int:
    """Run benchmarks of the papers that have them."""
    from lib.lab import bench as benches
    from lib.lab import profiles
    from lib.lab.reproduce import plan
    from lib.lab.reproduce import reproduce as reproduce_all

    profiles.load(options.profile)
    _refuse_unwritable()
    for paper in _papers(options):
        if benches.has_bench(paper) or options.papers:
            benches.print_rows(benches.run(paper, options.profile))
    (page,) = plan(options.profile, ["benchmarks"], overrides={"profile": options.profile})
    return int(reproduce_all([page], force=True)[0].state == "failed")


if __name__ == "__main__":
    sys.exit(main())
