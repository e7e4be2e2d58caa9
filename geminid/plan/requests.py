"""What one may ask of the planners: the command line's options, in their units. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

Many = UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class BudgetRequest:
    """How large a model, on how many tokens, at what cost. A range is written LOW:HIGH, a single number is exact."""

    flops: Annotated[float | None, arg(help="Training compute in FLOP, such as 5.76e23.")] = None
    quality_of: Annotated[float | None, arg(metavar="N", help="As good as N parameters trained optimally.")] = None
    inference_tokens: Annotated[float, arg(metavar="T", help="Tokens to be served; needs --quality-of.")] = 0.0
    fit: Annotated[
        Path | None, arg(metavar="CSV", help="Fit the law to finished runs: params, tokens|flops, loss.")
    ] = None
    law: Annotated[
        str | None,
        arg(help="hoffmann | hoffmann-rounded | sardana | epoch; hoffmann, and sardana for tokens to be served."),
    ] = None
    trim: Annotated[float, arg(help="Share of runs left out of the fit, fewest tokens a parameter first.")] = 0.02
    replicates: Annotated[int, arg(help="Bootstrap replicates behind errors and intervals.")] = 1000
    seed: Annotated[int, arg(help="Another seed, other replicates.")] = 0
    chip: Annotated[str | None, arg(help="v4 | v5e | v5p | v6e, or the peak in FLOP/s such as 989e12.")] = None
    mfu: Annotated[str | None, arg(metavar="RANGE", help="Model FLOPs utilisation, such as 0.4:0.5.")] = None
    goodput: Annotated[str, arg(metavar="RANGE", help="Share of the time that makes useful steps.")] = "1"
    chips: Annotated[int | None, arg(help="How many chips; gives the days.")] = None
    price: Annotated[str | None, arg(metavar="RANGE", help="Money a chip-hour; without it no money.")] = None
    recipe: Annotated[str | None, arg(help="Whose tokens: text, image codes, soft tokens.")] = None
    data: Annotated[
        Many, arg(metavar="KIND=AMOUNT", help="Data there is: text, pictures_read, pictures_written, audio_s, video_s.")
    ] = ()
    epochs: Annotated[float, arg(help="How often the data may be seen.")] = 1.0
    video_fps: Annotated[float, arg(help="Frames read of each second of video.")] = 1.0
    picture: Annotated[Path | None, arg(metavar="PNG", help="Draw the plan.")] = None


@dataclass(frozen=True)
class TopologyRequest:
    """Which slice of TPUs, how fast its network is, and what failed cubes do to it."""

    chip: Annotated[str, arg(help="v4 | v5e | v5p | v6e.")] = "v4"
    slice: Annotated[str | None, arg(metavar="SHAPE", help="Such as 8x8x16, or 4x4x8_twisted.")] = None
    bytes: Annotated[float | None, arg(help="Time collectives over an array of so many bytes.")] = None
    over: Annotated[
        str, arg(metavar="AXES", help="Axes that the collectives run over, such as XY; all unless given.")
    ] = ""
    availability: Annotated[float | None, arg(help="Of one host: gives the goodput of slices of that size.")] = None
    trials: Annotated[int, arg(help="Monte Carlo trials beside the exact goodput.")] = 4000
    seed: Annotated[int, arg(help="Another seed, other trials.")] = 0
    cubes: Annotated[int | None, arg(help="Cubes in the pod, where it is not the chip's own.")] = None
    cube_availability: Annotated[float | None, arg(help="Of one cube: how many cubes one may count on.")] = None
    confidence: Annotated[float, arg(help="Of that count.")] = 0.95
    job: Annotated[Many, arg(metavar="SHAPE", help="Place this slice on the pod; repeatable.")] = ()
    failed: Annotated[str, arg(metavar="CUBES", help="Numbers of failed cubes, such as 3,17.")] = ""
    replace: Annotated[int | None, arg(metavar="CUBE", help="This cube of the placed job fails: take a spare.")] = None
    drain: Annotated[int | None, arg(metavar="CUBES", help="Rolling maintenance, so many cubes at a time.")] = None
    drain_hours: Annotated[float, arg(help="Hours that the maintenance of a cube takes.")] = 4.0
    rewire_s: Annotated[float, arg(help="Seconds to reconfigure the optical switches.")] = 10.0
    pods: Annotated[int, arg(help="Pods of that slice, joined by the data-centre network.")] = 1
    mesh: Annotated[Many, arg(metavar="AXIS=SIZE", help="Logical mesh to lay on the slice; repeatable.")] = ()
    traffic: Annotated[
        Many, arg(metavar="AXIS:KIND:BYTES", help="A collective of each step, such as data:all-reduce:2e9; repeatable.")
    ] = ()
    top: Annotated[int, arg(help="How many layouts to show, fastest first.")] = 5
    picture: Annotated[Path | None, arg(metavar="PNG", help="Draw the pod, or the goodput.")] = None


@dataclass(frozen=True)
class LadderRequest:
    """Small decoders trained on the soft tokens of a run's encoders, and what they say of the run's own decoder."""

    recipe: Annotated[str, arg(help="Whose run; its encoders, codec and tokenizer must be trained.")] = "demo"
    run_dir: Annotated[Path | None, arg(metavar="DIR", help="Where that run is kept; runs/RECIPE unless given.")] = None
    steps: Annotated[str, arg(metavar="STEPS", help="Each size is measured after these; three numbers or more.")] = (
        "100,133,160,200,266,320"
    )
    held_out_steps: Annotated[int, arg(metavar="STEPS", help="Of the recipe's own decoder, the held-out rung.")] = 480
    replicates: Annotated[int, arg(help="Bootstrap replicates behind errors and intervals.")] = 1000
    picture: Annotated[Path | None, arg(metavar="PNG", help="Draw loss against tokens, a line for each size.")] = None


@dataclass(frozen=True)
class CompileRequest:
    """The real training step, compiled for TPUs that are not there."""

    topology: Annotated[str, arg(metavar="CHIP:SHAPE", help="One slice, such as v4:16x16x16 or v5e:16x16.")] = (
        "v4:16x16x16"
    )
    slices: Annotated[int, arg(help="Slices of that shape, joined by the data-centre network.")] = 1
    mesh: Annotated[
        Many, arg(metavar="AXIS=SIZE", help="fsdp, context, tensor; chosen by the model unless given; repeatable.")
    ] = ()
    accumulate: Annotated[
        int | None, arg(metavar="PARTS", help="Parts of the batch done one after another; chosen unless given.")
    ] = None
    search: Annotated[FlagCreatePairsOff[bool], arg(help="Compile nothing: model every mesh and rank them.")] = False
    top: Annotated[int, arg(help="How many meshes to show, fastest first.")] = 10
    page: Annotated[Path | None, arg(metavar="HTML", help="Draw the schedule as a timeline.")] = None
    keep: Annotated[Path | None, arg(metavar="DIR", help="Keep the program and the compiler's answer there.")] = None
    timeout_s: Annotated[float, arg(help="Give the compiler up after so many seconds.")] = 3600.0
