"""What a training step of a decoder costs on a mesh of TPUs, by formulas: to choose a mesh before it is compiled.

The scaling book's model (Austin et al. 2025, "How to Scale Your Model", chapters 3 and 5). Weights are kept in pieces
over `fsdp`, `context` and `tensor`, and gathered in bfloat16 over `context` and then over `fsdp`; gradients are summed
the other way (Rajbhandari et al. 2020, arXiv 1910.02054). Both run beside the compute of the layers around: of a
layer's pass the longer of the two counts. Activations go round the ring of `tensor`, into each of a block's two parts
and out of it (Korthikanti et al. 2022, arXiv 2205.05198), beside the products of the same positions
(`geminid.parallel.ring`): what is longer than its product counts. Gradients cross the data-centre network once a step,
after the backward pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from geminid.config import Recipe
from geminid.parallel.places import in_boxes
from geminid.plan.collectives import Ring, across_pods_s, seconds
from geminid.plan.links import Machine
from geminid.plan.schedule import MXU_SHARE
from geminid.plan.torus import Slice

HALF, FULL = 2, 4  # bytes of bfloat16 and of float32
NETWORK_SHARE = 0.5  # of the data-centre network's bandwidth that sums over slices reach
# by policy of rematerialisation: forward passes done again; arrays as wide as the model that a layer keeps on the chip
RECOMPUTED = {"none": 0.0, "dots": 0.0, "attended": 1.0, "full": 1.0, "offload": 1.0}
SAVED = {"none": 16, "dots": 8, "attended": 2, "full": 1, "offload": 0}
ACTIVATION_PASSES = 8  # times that each of a layer's activations goes through main memory, forward; measured on none
ROWS = 16  # of a key's or value's gradient on a device while slices are added: with 4 the compiler divides by zero
STATE_BYTES = 3 * FULL  # of a parameter: itself, its momentum, its gradient; a part of the batch has a gradient too
# by what the compiler says of pro on four meshes, and of ultra:
TABLE_BYTES = 14  # of an id's number in use, with its gradient
LAYER_COPIES = 2.5  # of a layer's activations while it is computed again, gradients among them


@dataclass(frozen=True)
class Stack:
    """The matrices of a decoder. windows: keys that a position of each layer sees on average."""

    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_ids: int
    keys: tuple[float, ...]
    mlp_matrices: int = 3

    @property
    def layer_params(self) -> int:
        attention = self.width * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + self.mlp_matrices * self.width * self.mlp_width

    @property
    def num_params(self) -> int:
        return self.num_layers * self.layer_params + self.num_ids * self.width

    def flops_a_position(self) -> float:
        """Of a training step, forward and backward, nothing done twice; PaLM (Chowdhery et al. 2022, appendix B)."""
        attention = 4 * self.num_heads * self.head_dim * sum(self.keys)
        return 3 * (2 * self.num_params + attention)


def of_recipe(recipe: Recipe, num_ids: int) -> Stack:
    """The decoder of a recipe; a position of a global layer sees half a row, of a local one its window."""
    d, length = recipe.decoder, recipe.joint.row_length
    period = d.local_per_global + 1
    is_local = [d.window is not None and (i + 1) % period != 0 for i in range(d.num_layers)]
    keys = tuple(float(min(d.window or length, length)) if local else length / 2 for local in is_local)
    return Stack(d.num_layers, d.width, d.mlp_width, d.num_heads, d.num_kv_heads, d.head_dim, num_ids, keys)


@dataclass(frozen=True)
class Estimate:
    """Of one step. exposed_s: what collectives add to the compute; accumulate: parts done one after another."""

    mesh: Mapping[str, int]
    accumulate: int
    step_s: float
    compute_s: float
    exposed_s: float
    mfu: float
    hbm_bytes: float


def estimate(
    stack: Stack, positions: int, machine: Machine, remat: str, accumulate: int = 1, has_ring: bool = True
) -> Estimate:
    """positions: of the whole batch. has_ring: or else nothing runs beside what goes over `tensor`."""
    mesh, chip = machine.mesh, machine.chip
    num_chips = len(machine.places) * machine.num_slices
    a_chip = positions / num_chips
    layer_flops = 2 * stack.layer_params * a_chip
    attention = [4 * stack.num_heads * stack.head_dim * keys * a_chip for keys in stack.keys]
    sides = 3 * stack.width + 2 * stack.head_dim * (stack.num_heads + stack.num_kv_heads) + 3 * stack.mlp_width
    memory_s = HALF * ACTIVATION_PASSES / 3 * sides * a_chip / (chip.hbm_bandwidth)
    one = [(layer_flops + each) / (MXU_SHARE * chip.peak_flops) + memory_s for each in attention]
    used = HALF * stack.layer_params / mesh["tensor"]
    gather = seconds("all-gather", used / mesh["fsdp"], _rings(machine, "context"))
    gather += seconds("all-gather", used, _rings(machine, "fsdp"))
    again = RECOMPUTED[remat]
    if has_ring:
        across = _around(stack, a_chip, machine)
        back = (1 + again) * across
    else:
        blocks = HALF * a_chip * mesh["tensor"] * stack.width
        across = 4 * seconds("all-gather", blocks, _rings(machine, "tensor"))
        back = (1 + again / 2) * across
    forward = [max(each, accumulate * gather) + across for each in one]
    backward = [max((2 + again) * each, 2 * accumulate * gather) + back for each in one]
    head_s = 6 * stack.num_ids * stack.width * a_chip / (MXU_SHARE * chip.peak_flops)
    network_s = 0.0
    if machine.num_slices > 1:
        sums = FULL * stack.num_params
        network_s = across_pods_s("all-reduce", sums, machine.num_slices, chip, len(machine.places)) / NETWORK_SHARE
    compute_s = (3 + again) * sum(one) + head_s
    step_s = sum(forward) + sum(backward) + network_s + head_s
    useful = stack.flops_a_position() * a_chip
    kept = stack.num_params / len(machine.places) * (STATE_BYTES + (FULL if accumulate > 1 else 0))
    received = FULL if machine.num_slices > 1 else 0  # its gradient comes from other slices too
    table = stack.num_ids * stack.width / (mesh["context"] * mesh["tensor"]) * (TABLE_BYTES + received)
    saved = HALF * stack.num_layers * stack.width * a_chip / accumulate * SAVED[remat]
    layer = LAYER_COPIES * HALF * sides * a_chip / accumulate
    hbm = kept + table + saved + layer + 4 * used / 3
    return Estimate(
        dict(mesh),
        accumulate,
        step_s,
        compute_s,
        max(0.0, step_s - compute_s),
        useful / (step_s * chip.peak_flops),
        hbm,
    )


def _around(stack: Stack, a_chip: float, machine: Machine) -> float:
    """Seconds of a layer's forward pass that pieces of activations travel longer than the products beside them take."""
    count, chip = machine.mesh["tensor"], machine.chip
    ways = 2 if count > 2 else 1  # of two neighbours each sends both halves over the one link between them
    travel_s = HALF * a_chip * stack.width * (count - 1) / (ways * chip.link_bandwidth)
    heads = stack.num_heads * stack.head_dim
    products = [2 * a_chip * stack.width * columns for columns in (heads, heads, 2 * stack.mlp_width, stack.mlp_width)]
    return sum(max(0.0, travel_s - flops / (MXU_SHARE * chip.peak_flops)) for flops in products)


def _rings(machine: Machine, *axes: str) -> tuple[Ring, ...]:
    """The first group of devices that differ in these mesh axes alone, on the torus."""
    ids = np.arange(len(machine.places)).reshape(list(machine.mesh.values()))
    at = tuple(slice(None) if name in axes else 0 for name in machine.mesh)
    return machine.rings(ids[at].reshape(-1))


def row_major(torus: Slice, num_slices: int, mesh: Mapping[str, int]) -> Machine:
    """A mesh laid on a slice as its devices are numbered: X counts fastest, and so does the mesh's last axis."""
    return Machine(torus.chip, mesh, in_boxes(1, torus.shape), torus.shape, torus.wraps, num_slices)


def in_place(torus: Slice, num_slices: int, mesh: Mapping[str, int]) -> Machine:
    """A mesh laid on a slice as `geminid.parallel.sharding.make_mesh` does."""
    return Machine(torus.chip, mesh, in_boxes(mesh["tensor"], torus.shape), torus.shape, torus.wraps, num_slices)


def is_fine(mesh: Mapping[str, int], recipe: Recipe) -> bool:
    """Whether the key's and value's gradients, added over slices, stand in pieces too fine for the TPU compiler."""
    return recipe.decoder.width < ROWS * mesh["fsdp"] * mesh["context"]


def meshes(torus: Slice, num_slices: int, recipe: Recipe) -> Iterator[dict[str, int]]:
    """Every mesh of powers of two that the recipe's rows, heads and positions allow; `fsdp` takes rows."""
    joint, d = recipe.joint, recipe.decoder
    rows = (joint.shards if joint.shards > 1 else joint.stage.batch) // num_slices
    powers = [2**i for i in range(int(math.log2(torus.num_chips)) + 1)]
    for tensor, context in itertools.product(powers, powers):
        fsdp, left = divmod(torus.num_chips, tensor * context)
        if left or d.num_heads % tensor or d.width % fsdp or (d.num_kv_heads % tensor and tensor % d.num_kv_heads):
            continue
        if d.mlp_width % (context * tensor) or d.num_heads * d.head_dim % (context * tensor):
            continue
        if rows % fsdp == 0 and recipe.joint.row_length % (context * tensor) == 0:
            yield {"fsdp": fsdp, "context": context, "tensor": tensor}
