"""Compiles the joint stage's step for TPUs that are not there. Run by `geminid.plan.compile` in the environment that
holds libtpu: python -m geminid.plan.ahead REQUEST.json OUT_DIR

OUT_DIR receives program.txt, the scheduled HLO, and then compiled.json, what the compiler says of it. A mistake in the
request is one line on stderr and exit code 2.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

MISTAKE = 2


def compile_step(request: dict[str, Any], out: Path) -> None:
    """request: recipe, topology (such as v4:4x4x4), slices, mesh (axis -> size), accumulate, options of the
    compiler."""
    import jax
    from jax.experimental import topologies

    from geminid.config import recipe_from_json
    from geminid.parallel.sharding import make_mesh
    from geminid.train.fused import FusedStep

    begin = time.monotonic()
    recipe = recipe_from_json(request["recipe"])
    name = request["topology"]
    described = {"chip_config_name": "megacore"} if name.startswith(("v4", "v5p")) else {}
    try:
        topology = topologies.get_topology_desc(
            topology_name=name, platform="tpu", num_slices=request["slices"], **described
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the compiler knows no topology '{name}': {str(error).splitlines()[0]}") from error
    mesh = make_mesh(request["mesh"], topology.devices)
    task, batch = _abstract(recipe)
    step = FusedStep(task, mesh, request["accumulate"])
    lowered = step.lower(step.batch_shapes(batch, recipe.joint.shards))
    lowered_at = time.monotonic()
    compiled = lowered.compile(compiler_options=request["options"])
    done = time.monotonic()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None
    (out / "program.txt").write_text(text)
    per_slice = mesh.devices.reshape(request["slices"], -1)[0]
    answer = {
        "num_chips": len(topology.devices),
        "lower_s": lowered_at - begin,
        "compile_s": done - lowered_at,
        "arguments_bytes": memory.argument_size_in_bytes,
        "outputs_bytes": memory.output_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "temporaries_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        "mesh": dict(mesh.shape),
        "accumulate": request["accumulate"],
        "places": [list(device.coords) for device in per_slice],
    }
    (out / "compiled.json").write_text(json.dumps(answer))


def _abstract(recipe: Any) -> tuple[Any, dict[str, Any]]:
    """The task of the joint stage and one logical shard's batch, as shapes."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from geminid.batches.packing import Shape
    from geminid.batches.sharding import shard_shape
    from geminid.tokens.ids import num_ids
    from geminid.train.joint import make_model, sharded_joint_task

    model = nnx.eval_shape(lambda: make_model(recipe, num_ids(recipe)))
    shape = shard_shape(Shape.of(recipe), recipe.joint.shards)
    rows = (shape.rows, shape.length)
    batch = dict.fromkeys(("ids", "sources", "segments", "positions", "places"), (rows, jnp.int32))
    batch |= {
        "weights": (rows, jnp.float32),
        "pictures": ((shape.pictures, shape.picture_size, shape.picture_size, 3), jnp.uint8),
        "mels": ((shape.clips, shape.num_frames, shape.num_mels), jnp.float32),
        "frames": ((shape.clips,), jnp.int32),
        "answers": ((shape.answers,), jnp.int32),
    }
    return sharded_joint_task(recipe, model), {name: jax.ShapeDtypeStruct(*of) for name, of in batch.items()}


def main() -> None:
    request, out = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        compile_step(json.loads(request.read_text()), out)
    except ValueError as error:
        sys.stderr.write(f"geminid: {' '.join(str(error).split())}\n")
        sys.exit(MISTAKE)


if __name__ == "__main__":
    main()
