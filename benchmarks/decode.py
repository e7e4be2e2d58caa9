"""Tokens a second of Gemma 3 270M on the CPU, beside transformers and llama.cpp: all in one run, taking turns.

    python benchmarks/decode.py --model DIR [--gguf FILE --llama-python PYTHON] [--json]

DIR: what `geminid import` wrote. FILE: the GGUF that it came from; float32 and Q8_0 files are made from it first.
PYTHON: an interpreter that has llama-cpp-python, which may be another one. transformers and torch come with the extra
`peers`. Each contender is a process that waits while the others run. A figure is (ids of all rows) / (seconds to write
NEW + 1 ids - seconds to write one), so prompts are left out; the median over rounds. `ratio_hf` and `ratio_llama_cpp`
are the smallest ratios of ours to theirs over batch sizes, in float32; `ratio_llama_cpp_int8` that of 8 bits to Q8_0.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NEW, PROMPT, ROOM, THREADS, ROUNDS = 48, 16, 128, 2, 5
BATCHES = (1, 8)
Run = Callable[[int], None]  # writes so many ids after each prompt


def prompts(rows: int) -> list[list[int]]:
    """Any ids will do: the sums are the same."""
    return [[2] + [1000 + 37 * row + 11 * i for i in range(PROMPT - 1)] for row in range(rows)]


def ours(model: str, rows: int, bits: int | None) -> Run:
    from geminid.interop.weights import load_model
    from geminid.model.stored import Bits, prepared
    from geminid.serve.engine import Engine, Options

    decoder = load_model(Path(model))
    num_ids = decoder.embedding.shape[0]
    engine = Engine(prepared(decoder, Bits.all(bits), rows), num_ids)
    del decoder
    return lambda new: sum(map(len, engine.answer(prompts(rows), [Options(max_new=new)] * rows))) and None


def transformers(model: str, rows: int) -> Run:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.tensor(prompts(rows))

    def run(new: int) -> None:
        with torch.inference_mode():
            network.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip

    return run


def llama_cpp(file: str, rows: int) -> Run:
    import llama_cpp as llama

    llama.llama_backend_init()
    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = ROOM * rows, ROOM * rows, ROOM * rows, rows
    params.n_threads = params.n_threads_batch = THREADS
    context = llama.llama_init_from_model(model, params)
    greedy = llama.llama_sampler_init_greedy()
    batch = llama.llama_batch_init(ROOM * rows, 0, 1)

    def decode(entries: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(entries)
        for i, (token, position, row, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = row
        assert llama.llama_decode(context, batch) == 0

    def run(new: int) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        read = [(t, p, row, p == PROMPT - 1) for row, ids in enumerate(prompts(rows)) for p, t in enumerate(ids)]
        decode(read)
        places = [i for i, entry in enumerate(read) if entry[3]]
        for step in range(new):
            ids = [llama.llama_sampler_sample(greedy, context, i) for i in places]
            if step < new - 1:
                decode([(token, PROMPT + step, row, True) for row, token in enumerate(ids)])
                places = list(range(rows))

    run.silent = silent  # type: ignore[attr-defined]  # llama.cpp calls it as long as it lives
    return run


def work(kind: str, source: str, rows: int) -> None:
    """The process of one contender: a number of ids in, seconds out."""
    makers = {"hf": transformers, "llama": llama_cpp}
    run = makers[kind](source, rows) if kind in makers else ours(source, rows, int(kind[4:]) if kind[4:] else None)
    run(NEW + 1)
    run(1)
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        run(int(line))
        print(time.perf_counter() - begin, flush=True)


class Contender:
    """A process that writes ids when it is asked to."""

    def __init__(self, python: str, kind: str, source: str, rows: int):
        command = [python, __file__, "--work", kind, source, str(rows)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin and self.process.stdout
        self.asks, self.answers = self.process.stdin, self.process.stdout
        while (line := self.answers.readline()) and line.strip() != "ready":
            pass
        if not line:
            raise ChildProcessError(f"{' '.join(command)} ended with {self.process.wait(30)} before it was ready")

    def seconds(self, new: int) -> float:
        self.asks.write(f"{new}\n")
        self.asks.flush()
        return float(self.answers.readline())

    def end(self) -> None:
        self.asks.close()
        self.process.wait(30)


def gguf_of(source: Path, target: Path, kind: str) -> None:
    """The same GGUF with its matrices in another type, F32 or Q8_0; vectors stay in float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "gemma3")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        part = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=part)
    wanted = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if numbers.ndim == 2 and kind != "F32":
            writer.add_tensor(tensor.name, gguf.quants.quantize(numbers, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(tensor.name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def contenders(options: argparse.Namespace, folder: Path) -> dict[str, tuple[str, str, str]]:
    """name -> interpreter, kind, source."""
    found = {
        "float32": (sys.executable, "ours", options.model),
        "int8": (sys.executable, "ours8", options.model),
        "hf float32": (sys.executable, "hf", options.model),
    }
    if options.gguf:
        for kind in ("F32", "Q8_0"):
            gguf_of(Path(options.gguf), folder / f"{kind}.gguf", kind)
            found[f"llama.cpp {kind}"] = (options.llama_python, "llama", str(folder / f"{kind}.gguf"))
        found["llama.cpp as it is"] = (options.llama_python, "llama", options.gguf)
    return found


def measured(named: dict[str, tuple[str, str, str]], rows: int) -> dict[str, float]:
    """Ids a second of each contender; one that does not start is named on standard error and left out."""
    running: dict[str, Contender] = {}
    for name, how in named.items():
        try:
            running[name] = Contender(*how, rows)
        except ChildProcessError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(ROUNDS):
        for name, contender in running.items():
            seconds[name].append(contender.seconds(NEW + 1) - contender.seconds(1))
    for contender in running.values():
        contender.end()
    return {name: rows * NEW / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--gguf")
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", nargs=3, metavar=("KIND", "SOURCE", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        kind, source, rows = options.work
        work(kind, source, int(rows))
        return
    if not options.model:
        parser.error("--model DIR is needed")
    with tempfile.TemporaryDirectory() as folder:
        named = contenders(options, Path(folder))
        speeds = {rows: measured(named, rows) for rows in BATCHES}

    def ratio(mine: str, theirs: str) -> float | None:
        both = [found for found in speeds.values() if mine in found and theirs in found]
        return min(found[mine] / found[theirs] for found in both) if both else None

    result = {
        "tokens_per_s": {f"batch {rows}": found for rows, found in speeds.items()},
        "ratio_hf": ratio("float32", "hf float32"),
        "ratio_llama_cpp": ratio("float32", "llama.cpp F32"),
        "ratio_llama_cpp_int8": ratio("int8", "llama.cpp Q8_0"),
    }
    if not options.json:
        print("| ids a second |" + "".join(f" batch {rows} |" for rows in BATCHES) + "\n|---|" + "---|" * len(BATCHES))
        for name in named:
            print(f"| {name} |" + "".join(f" {speeds[rows].get(name, math.nan):.1f} |" for rows in BATCHES))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
