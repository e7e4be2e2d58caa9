"""Where arrays lie on a mesh of devices: logical names -> mesh axes. The only file that names PartitionSpec.

| mesh axis | splits | communicates |
|---|---|---|
| slice | logical shards of the batch; the state is whole on each slice | sums of gradients |
| fsdp | logical shards of the batch, and the state (Rajbhandari et al. 2020, arXiv 1910.02054) | weights, gradients |
| context | positions of a row, and the state | keys and values, weights, gradients |
| tensor | heads, MLP columns, ids (Shoeybi et al. 2019, arXiv 1909.08053), positions between blocks | activations |

The mesh is the one set around the call (`jax.set_mesh`). When none is set, every function here returns what it was
given, and the program is the one that was written without them.

Keys and values are gathered over `context`, layer by layer (Llama 3, arXiv 2407.21783, section 3.3.2): with multi-query
attention they are one head, and 32,768 positions of it in bfloat16 are 16 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from geminid.parallel.places import in_boxes

AXES = ("slice", "fsdp", "context", "tensor")  # the last are neighbours
SHARDS = ("slice", "fsdp")  # over these go the logical shards of a batch

# of what is computed
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "positions": ("context",),
    "between": ("context", "tensor"),  # positions between blocks (Korthikanti et al. 2022, arXiv 2205.05198)
    "heads": ("tensor",),
    "hidden": ("tensor",),
    "split": ("context",),  # a width, where all positions of a row are needed
    "columns": ("context", "tensor"),  # of the embedding, where ids are looked up
}
# of what is kept: name of a weight of the decoder's layers -> its last two axes
WEIGHTS: dict[str, tuple[str, str]] = {
    "q": ("width", "heads"),
    "k": ("width", "none"),  # a key-value head may be the only one
    "v": ("width", "none"),
    "out": ("heads", "width"),
    "gate": ("width", "hidden"),
    "up": ("width", "hidden"),
    "down": ("hidden", "width"),
}
# a width is not cut by `context` too: in pieces of a few rows the TPU compiler fails (docs/compile.md)
KEPT: dict[str, tuple[str, ...]] = {
    "width": ("fsdp",),
    "heads": ("tensor", "context"),  # what `context` cuts is a piece of what a device of `tensor` uses
    "hidden": ("tensor", "context"),
    "ids": ("context", "tensor"),  # as "columns": from a table in columns to one in ids without a permutation
    "none": (),
}
USED = {"heads": ("tensor",), "hidden": ("tensor",), "ids": ("context", "tensor")}  # the other axes are gathered
SLOTS = (
    ("context", "tensor"),
    ("context",),
    ("tensor",),
)  # over these, where they divide their number: pictures, clips
ANYWHERE = (("fsdp", "context", "tensor"), ("fsdp", "context"), ("context", "tensor"), ("fsdp",), ("context",))
EMBEDDING = ["decoder", "embedding"]
PIECE = 96  # what is not of the decoder's layers is cut into pieces of no fewer: an encoder of 1,536 in sixteen


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all `AXES`; those that `sizes` leaves out have size 1. devices: all there are, unless given.

    The devices of one slice of TPUs stand together on `slice`. Those of `tensor` are a box of neighbours, X fastest
    (`in_boxes`).
    """
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"unknown mesh axis '{unknown[0]}'; known: {', '.join(AXES)}")
    shape = [sizes.get(name, 1) for name in AXES]
    found = list(jax.devices() if devices is None else devices)
    if len(found) != np.prod(shape):
        raise ValueError(f"the mesh {dict(sizes)} has {np.prod(shape)} places; there are {len(found)} devices")
    placed = _in_order(found, sizes.get("tensor", 1))
    return Mesh(np.array(placed).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _in_order(devices: list[Any], neighbours: int) -> list[Any]:
    """By slice, then by place in its torus; as they come where devices have no place."""
    if not all(getattr(device, "coords", None) for device in devices):
        return devices
    sides = np.array([device.coords for device in devices]).max(0) + 1
    ranks = {tuple(at): i for i, at in enumerate(in_boxes(neighbours, sides).tolist())}
    return sorted(devices, key=lambda device: (getattr(device, "slice_index", 0), ranks[tuple(device.coords)]))


def current() -> Any:
    """The mesh that is set around the call, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def constrain(x: Array, *names: str | None) -> Array:
    """x, its first axes laid as `ACTIVATIONS` says; None: not split."""
    if current() is None or not names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(name and ACTIVATIONS[name] for name in names)))


def keys_of(path: Any) -> list[str]:
    return [part.key for part in path if isinstance(getattr(part, "key", None), str)]


def is_stacked_block(path: Any) -> bool:
    """Whether it leads to the stacked arrays of an encoder's blocks (`geminid.model.layers.blocks_of`)."""
    names = [getattr(part, "key", None) for part in path]
    at = names.index("blocks") if "blocks" in names else len(names)
    return isinstance(next(iter(names[at + 1 :]), None), str)


def _count(axes: Sequence[str], sizes: Mapping[str, int]) -> int:
    """Devices along these axes."""
    return int(np.prod([sizes[axis] for axis in axes], dtype=int))


def _divided(size: int, axes: Sequence[str], sizes: Mapping[str, int], what: str) -> tuple[str, ...]:
    count = _count(axes, sizes)
    if size % count:
        raise ValueError(f"{what} is {size}, which {' x '.join(axes)} = {count} devices do not divide; change the mesh")
    return tuple(axes)


def _layer_specs(name: str, shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[PartitionSpec, PartitionSpec]:
    """How a weight of the decoder's layers is kept, and how it is used."""
    if name not in WEIGHTS:
        return PartitionSpec(), PartitionSpec()
    stacked = [None] * (len(shape) - 2)
    ends = list(zip(shape[-2:], WEIGHTS[name], strict=True))
    kept = [_divided(size, KEPT[axis], sizes, f"the {axis} of decoder weight '{name}'") for size, axis in ends]
    return PartitionSpec(*stacked, *kept), PartitionSpec(*stacked, *(USED.get(axis) for _, axis in ends))


def _other_specs(name: str, shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[PartitionSpec, PartitionSpec]:
    """Of any other array: kept in pieces along its longest axis that can be cut, used whole.

    But the embedding is cut by ids, and stays so, where the axes of `ids` divide their number.
    """
    whole = PartitionSpec()
    if len(shape) < 2:
        return whole, whole
    if name == "embedding" and ids_are_cut(shape[0], sizes):
        width = _divided(shape[1], KEPT["width"], sizes, "decoder.width")
        return PartitionSpec(KEPT["ids"], width), PartitionSpec(USED["ids"])
    for axes in ANYWHERE:
        count = _count(axes, sizes)
        for dim in sorted(range(len(shape)), key=lambda i: -shape[i]):
            if shape[dim] % count == 0 and shape[dim] >= count * PIECE:
                return PartitionSpec(*[None] * dim, axes), whole
    return whole, whole


def ends_at_width(name: str) -> bool:
    """Whether the last axis of this weight of the decoder's layers is the model's width."""
    return WEIGHTS.get(name, ("", ""))[1] == "width"


def ids_are_cut(num_ids: int, sizes: Mapping[str, int]) -> bool:
    return num_ids % _count(KEPT["ids"], sizes) == 0


def _specs(path: Any, shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[PartitionSpec, PartitionSpec]:
    keys = keys_of(path)
    if is_stacked_block(path):
        kept, _ = _other_specs(keys[-1], shape[1:], sizes)
        return PartitionSpec(None, *kept), PartitionSpec()
    find = _layer_specs if "layers" in keys else _other_specs
    return find(keys[-1] if keys else "", shape, sizes)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """How parameters and moments are kept, by their paths; state: arrays or their shapes."""

    def of(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _specs(path, leaf.shape, mesh.shape)[0])

    return jax.tree_util.tree_map_with_path(of, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array [M ...] of a batch in M logical shards."""
    return NamedSharding(mesh, PartitionSpec(SHARDS))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x: Array, kept: PartitionSpec, partly: PartitionSpec, used: PartitionSpec) -> Array:
    """x, laid for use in two steps; its gradient is summed as `partly` says and then laid as x is kept.

    Without `partly` between, the partitioner cuts what the gradient is made of as x is kept, along any axis.
    """
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(x, partly), used)


def _gather_forward(x: Array, kept: PartitionSpec, partly: PartitionSpec, used: PartitionSpec) -> tuple[Array, None]:
    return _gather(x, kept, partly, used), None


def _gather_backward(
    kept: PartitionSpec, partly: PartitionSpec, used: PartitionSpec, _: None, gradient: Array
) -> tuple[Array]:
    gradient = jax.lax.with_sharding_constraint(gradient, partly)
    return (jax.lax.with_sharding_constraint(gradient, kept),)


_gather.defvjp(_gather_forward, _gather_backward)


def scattered(x: Array) -> Array:
    """What a block adds, [B T D]: sums over `tensor`, each device those of its positions; its gradient is gathered."""
    if current() is None:
        return x
    pieces, whole = (PartitionSpec(None, ACTIVATIONS[name]) for name in ("between", "positions"))
    return _gather(x, whole, pieces, pieces)


def gathered_layer(weights: Any, dtype: str) -> Any:
    """The weights of one of the decoder's layers, ready for use: matrices in `dtype`, so that less is sent."""
    mesh = current()
    if mesh is None:
        return weights

    def gather(path: Any, x: Array) -> Array:
        if x.ndim < 2:
            return x
        name = keys_of(path)[-1]
        kept, used = _layer_specs(name, x.shape, mesh.shape)
        # all but widths first: then few bytes go over these axes
        partly = [KEPT[axis] if axis == "width" else USED.get(axis) for axis in WEIGHTS.get(name, ())]
        x = x.astype(dtype)
        if not ends_at_width(name):
            return _gather(x, kept, PartitionSpec(*partly), used)
        # its gradient's pieces are columns: the compiler would make the whole sum on each device and cut it
        kept, partly, used = (PartitionSpec(*reversed(tuple(spec))) for spec in (kept, partly, used))
        return _gather(x.T, kept, partly, used).T

    return jax.tree_util.tree_map_with_path(gather, weights)


def layers_as(dtype: str, params: Any) -> Any:
    """Parameters, the matrices of the decoder's layers in `dtype`."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(dtype) if _is_stacked(path) else x, params)


def gathered_others(params: Any) -> Any:
    """All parameters, those outside the decoder's layers and the encoders' blocks ready for use."""
    mesh = current()
    if mesh is None:
        return params
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    others = {i: path for i, (path, _) in enumerate(paths) if not {"layers", "blocks"} & set(keys_of(path))}
    leaves = [x for _, x in paths]
    # all of them before what follows: see `gathered_block`
    ready = jax.lax.optimization_barrier([_gathered(path, leaves[i]) for i, path in others.items()])
    for (i, path), x in zip(others.items(), ready, strict=True):
        leaves[i] = jax.lax.with_sharding_constraint(x, _specs(path, x.shape, mesh.shape)[1])
    return jax.tree.unflatten(tree, leaves)


def of_each_place(params: Any, part: Array) -> tuple[Any, Any]:
    """Parameters and the axes along which `jax.vmap` over the places of slice x fsdp takes them.

    The embedding gets an axis of places: logits are made in chunks, and its gradient would be summed over places after
    each of them, not once. part: anything of the part of the batch that is to come; the embedding is not made ready
    before it, or the compiler would keep it in each of its layouts for all parts.
    """
    mesh = current()
    if mesh is None:
        return params, None
    places = _count(SHARDS, mesh.shape)

    def is_own(path: Any) -> bool:
        return keys_of(path) == EMBEDDING

    def own(x: Array) -> Array:
        used = PartitionSpec(SHARDS, *_other_specs(EMBEDDING[-1], x.shape, mesh.shape)[1])
        x, _ = jax.lax.optimization_barrier((x, jax.lax.stop_gradient(part)))
        return jax.lax.with_sharding_constraint(jnp.broadcast_to(x, (places, *x.shape)), used)

    axes = jax.tree_util.tree_map_with_path(lambda path, _: 0 if is_own(path) else None, params)
    return jax.tree_util.tree_map_with_path(lambda path, x: own(x) if is_own(path) else x, params), axes


def gathered_block(weights: Any, dtype: Any) -> Any:
    """The weights of one block of an encoder, ready for use: matrices in `dtype`, so that less is sent."""
    if current() is None:
        return weights
    gathered = jax.tree_util.tree_map_with_path(
        lambda path, x: _gathered(path, x if x.ndim < 2 else x.astype(dtype)), weights
    )
    # all of them, then the block: the TPU compiler would fuse each gather with a product, for minutes
    return jax.lax.optimization_barrier(gathered)


def _gathered(path: Any, x: Array) -> Array:
    mesh = current()
    if mesh is None:
        return x
    kept, used = _specs(path, x.shape, mesh.shape)
    return _gather(x, kept, used, used)


def where_layers_are_whole(
    f: Callable[[Array], Array], path: Any, x: Array, after: Array | None
) -> tuple[Array, Array | None]:
    """f(x) of a parameter's gradient or moment, and what the next call is to wait for.

    The decoder's stacked matrices [L in out] are laid by layers over `fsdp` for it, when `after` is there. For what
    multiplies a matrix by itself along its longer side, as Muon does: laid as they are kept, it would gather all of
    them. Layers of zeros fill the last devices. Inside a layer the longer side is cut, the last of equal ones.
    """
    mesh = current()
    if mesh is None or not _is_stacked(path):
        return f(x), after
    kept, whole, count = _specs(path, x.shape, mesh.shape)[0], _whole_layers(x), len(x)
    if after is not None:
        x, _ = jax.lax.optimization_barrier((x, after))
    x = jnp.pad(x, ((0, -count % mesh.shape["fsdp"]), (0, 0), (0, 0)))
    x = f(jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(x, kept), whole))
    # Shardy lays all later uses of what enters a chain of constraints as the last of them says: it enters alone
    x = jax.lax.optimization_barrier(x)
    x = jax.lax.with_sharding_constraint(x, whole)  # or what came before would be laid as it is kept
    x = jax.lax.with_sharding_constraint(x, kept)[:count]
    return x, x


def _is_stacked(path: Any) -> bool:
    keys = keys_of(path)
    return "layers" in keys and keys[-1] in WEIGHTS


def _whole_layers(x: Array) -> PartitionSpec:
    ends = (KEPT["hidden"], None) if x.shape[1] > x.shape[2] else (None, KEPT["hidden"])
    return PartitionSpec("fsdp", *ends)


def _slots(count: int, mesh: Any) -> PartitionSpec:
    """Pictures or clips [P ...], shared by as many devices as divide their number."""
    ways = [axes for axes in SLOTS if count % _count(axes, mesh.shape) == 0]
    return PartitionSpec(max(ways, key=lambda axes: _count(axes, mesh.shape), default=None))


def constrain_slots(x: Array) -> Array:
    """Pictures or clips [P ...], laid as `_slots` says."""
    mesh = current()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, _slots(len(x), mesh))


def each_its_slots(f: Callable[..., Any], weights: Any, *arrays: Array) -> Any:
    """f(weights, *arrays), where arrays and what f makes are of pictures or clips, each device its own.

    For convolutions: where a device has those of several rows, the partitioner would give it all of them.
    """
    mesh = current()
    if mesh is None:
        return f(weights, *arrays)
    of = _slots(len(arrays[0]), mesh)
    specs = jax.tree.map(lambda _: PartitionSpec(), weights), *[of for _ in arrays]
    return jax.shard_map(f, in_specs=specs, out_specs=of, check_vma=False)(weights, *arrays)


def constrain_answers(x: Array, num_ids: int) -> Array:
    """What is compared with the embedding, [N D]: whole where each device has ids of its own, else cut."""
    mesh = current()
    if mesh is None:
        return x
    return _whole(x) if ids_are_cut(num_ids, mesh.shape) else constrain(x, "positions")


@jax.custom_vjp
def _whole(x: Array) -> Array:
    return constrain(x, None)


# as it comes from all devices the gradient would be summed whole on each: each keeps its piece of the width
_whole.defvjp(lambda x: (_whole(x), None), lambda _, gradient: (constrain(gradient, None, "split"),))


def size_of(axis: str) -> int:
    """Devices along an axis of the mesh; 1 where none is set."""
    mesh = current()
    return 1 if mesh is None else mesh.shape[axis]


def num_between() -> int:
    """Devices that share a row's positions between blocks."""
    return int(np.prod([size_of(axis) for axis in ACTIVATIONS["between"]]))


# of `on_each`
LAYOUTS = {
    "between": PartitionSpec(None, ACTIVATIONS["between"]),
    "positions": PartitionSpec(None, ACTIVATIONS["positions"]),
    "inside": PartitionSpec(None, ACTIVATIONS["positions"], ACTIVATIONS["hidden"]),
    "pieces": PartitionSpec(ACTIVATIONS["hidden"], None, ACTIVATIONS["positions"]),
    "columns": PartitionSpec(None, ACTIVATIONS["hidden"]),
    "rows": PartitionSpec(ACTIVATIONS["hidden"]),
}


def on_each(f: Callable[..., Any], layouts: Sequence[str], made: Any) -> Callable[..., Any]:
    """f as each device computes it, from its part of each argument and of what f makes, by name in `LAYOUTS`."""
    of = jax.tree.map(LAYOUTS.get, made)
    return jax.shard_map(f, in_specs=tuple(LAYOUTS[name] for name in layouts), out_specs=of, check_vma=False)


def spread_rows(embedding: Array, begin: int) -> Array | None:
    """The embedding's rows from `begin` on, shared by all devices that share ids; None without a mesh.

    The last ids stand on few devices: cut out of all logits, their logits would leave these for each chunk.
    """
    mesh = current()
    if mesh is None or (len(embedding) - begin) % _count(ACTIVATIONS["between"], mesh.shape):
        return None
    return constrain(embedding[begin:], "between")


def split_attention(
    attention: Callable[..., Array], q: Array, k: Array, v: Array, by_query: Any, by_key: Any, *rest: Any
) -> Array:
    """attention(q, k, v, by_query, by_key, *rest), each device its own queries and heads, keys and values gathered.

    q [B T H Dh]; k, v [B S K Dh]; by_query: arrays [B T ...]; by_key: arrays [B S]; rest: scalars. Returns [B T H Dh].
    """
    mesh = current()
    if mesh is None:
        return attention(q, k, v, by_query, by_key, *rest)
    tensor, num_kv = mesh.shape["tensor"], k.shape[2]
    _divided(q.shape[1], ("context",), mesh.shape, "the number of positions of a row")
    _divided(q.shape[2], ("tensor",), mesh.shape, "decoder.num_heads")
    if num_kv % tensor and tensor % num_kv:
        raise ValueError(f"{num_kv} key-value heads cannot be split over {tensor} devices; change the mesh's 'tensor'")
    over, whole = PartitionSpec(None, "context"), PartitionSpec()
    heads, axes = "tensor", ("context",)  # of keys and values; positions of these axes are gathered
    if num_kv % tensor:
        heads, axes = None, ACTIVATIONS["between"] if k.shape[1] % num_between() == 0 else ("context",)

    def local(q: Array, k: Array, v: Array, by_query: Any, by_key: Any, *rest: Any) -> Array:
        if _count(axes, mesh.shape) > 1:
            k, v = jnp.split(jax.lax.all_gather(jnp.concatenate([k, v], -1), axes, axis=1, tiled=True), 2, -1)
        if heads is None and num_kv > 1:  # several devices share each of the heads
            at = jax.lax.axis_index("tensor") // (tensor // num_kv)
            k, v = (jax.lax.dynamic_slice_in_dim(x, at, 1, 2) for x in (k, v))
        return attention(q, k, v, by_query, by_key, *rest)

    specs = (
        PartitionSpec(None, "context", "tensor"), *[PartitionSpec(None, axes, heads)] * 2,
        jax.tree.map(lambda _: over, by_query), jax.tree.map(lambda _: whole, by_key), *[whole for _ in rest],
    )  # fmt: skip
    inside = jax.shard_map(local, in_specs=specs, out_specs=specs[0], check_vma=False)
    return inside(q, k, v, by_query, by_key, *rest)
