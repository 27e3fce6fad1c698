"""What every process of a run does, under `vtx train`, torchrun, srun and Ray alike: build, resume, train, exit code.

    0 finished   2 wrong input   3 not finite   4 out of memory   75 asked to leave, saved   1 anything else
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import override, recipes, run_folder
from vtx_scale.specs.run import Run


def run_local(run: Run, folder: Path, fork: bool = False, debug: bool = False) -> int:
    """`vtx train`: become one rank where a launcher says so, else start as many as the system wants."""
    from vtx_scale.launch.build import resolve_data

    folder = folder.resolve()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return work(run, folder, fork=fork, debug=debug, prepare=True)
    run = resolve_data(run, say, folder)
    world = run.system.world or automatic_world()
    if world < 1:
        raise UserError(f"system.world={world}: give the number of processes, 1 or more.")
    held = run_folder.hold(folder)
    try:
        prepared(run, folder, fork)
        if world == 1:
            return work(run, folder, debug=debug)
        from vtx_scale.launch.local import launch

        with tempfile.NamedTemporaryFile("w", suffix=".json", prefix="vtx-request-") as request:
            json.dump({"recipe": override.to_dict(run), "folder": str(folder), "debug": debug,
                       "paths": recipes.STRANGERS}, request)
            request.flush()
            return launch(Path(request.name), folder, world, say)
    finally:
        held.close()


def automatic_world() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prepared(run: Run, folder: Path, fork: bool = False) -> None:
    """Index the data, refuse what does not fit the folder or cannot be evaluated, write run.json. Before any rank starts."""
    from vtx_scale.launch.build import hash_of, open_data, order_of
    from vtx_scale.launch.evaluate import evaluator

    (folder / "control" / "stop").unlink(missing_ok=True)  # a request to the start before this one
    data = open_data(run, True, say)
    assert data is not None
    for evaluation in run.evaluate:
        evaluator(evaluation.name)
    if run.evaluate and open_data(run, False, say) is None:
        say(f"no data.val_shards: {', '.join(e.name for e in run.evaluate)} will be left out")
    fingerprint = order_of(run, data.index).fingerprint([data.index.digest])
    run_folder.prepare(run, folder, fingerprint, hash_of(run, fingerprint), fork)


def work(run: Run, folder: Path, *, fork: bool = False, debug: bool = False, prepare: bool = False,
         tell: Callable[[str], None] = say) -> int:
    """One rank from start to exit code; a sentence to `tell` in place of a traceback unless `debug`."""
    import torch

    from vtx_scale.trainer.control import NotFinite

    try:
        return train(run, folder, fork, prepare)
    except UserError as e:
        code, text = 2, str(e)
    except NotFinite as e:
        code, text = 3, str(e)
    except (torch.cuda.OutOfMemoryError, MemoryError) as e:
        code, text = 4, f"out of memory ({str(e).splitlines()[0] if str(e) else 'host'}): lower system.micro_batch, " \
                        "set system.recompute=true, or use system.strategy=fsdp on more ranks."
    except OSError as e:
        code, text = 1, str(e)
    except Exception as e:
        code, text = 1, f"{type(e).__name__}: {e} (log.txt has the traceback; --debug shows it)"
        keep_traceback(folder)
    if debug:
        traceback.print_exc()
    if tell is not say or first_to_say(code):
        tell(f"vtx: {text}")
    return code


def first_to_say(code: int) -> bool:
    """Whether no other rank has said why the run ends: the first to fail knows best.

    Where ranks did not meet in a file (torchrun), what all of them see alike is rank 0's to say.
    """
    meeting = os.environ.get("VTX_MEET", "").removeprefix("file://")
    if not meeting:
        return int(os.environ.get("RANK", 0)) == 0 or code in (1, 4)
    try:
        Path(meeting).with_name("said").touch(exist_ok=False)
        return True
    except OSError:
        return False


def keep_traceback(folder: Path) -> None:
    try:
        with (folder / "log.txt").open("a") as f:
            f.write(f"rank {os.environ.get('RANK', 0)}\n{traceback.format_exc()}")
    except OSError:
        pass  # the sentence still reaches stderr


def train(run: Run, folder: Path, fork: bool, prepare: bool) -> int:
    import torch.distributed as dist

    from vtx_scale.checkpoints.write import Writer
    from vtx_scale.data_pipeline.loader import Loader, die_with_parent
    from vtx_scale.launch import build
    from vtx_scale.launch.evaluate import each
    from vtx_scale.launch.start import start
    from vtx_scale.objectives.ranks import GroupRanks, Ranks
    from vtx_scale.strategies.apply import apply, strategy_of
    from vtx_scale.trainer.control import Control, Ledger
    from vtx_scale.trainer.init import initialise
    from vtx_scale.trainer.log import Log
    from vtx_scale.trainer.loop import Progress, Trainer
    from vtx_scale.trainer.optim import optimizer_of
    from vtx_scale.trainer.precision import precision_of

    if "VTX_PARENT" in os.environ:
        die_with_parent(int(os.environ["VTX_PARENT"]))
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    control = Control(folder, rank, run.system.skip_limit)
    control.listen()
    device = meet(run, rank, world)
    held = None
    try:
        if prepare:  # a launcher started us: rank 0 does what `vtx train` would have done before
            if rank == 0:
                run = build.resolve_data(run, say, folder)
                held = run_folder.hold(folder)
                prepared(run, folder, fork)
            if world > 1:
                dist.barrier()
            run = replace(build.resolve_data(run, folder=folder), system=run.system)
        precision = precision_of(run.system, device)
        strategy = strategy_of(run.system, world, device, precision.compute)
        ranks = GroupRanks() if dist.is_initialized() and world > 1 else Ranks()
        objective: Any = build.build_objective(run, precision.weights, ranks)
        initial = objective.initial
        apply(objective, strategy, run.system)
        initialise(objective, initial, run.seed)
        optimizer = optimizer_of(objective, run.optim, strategy.shard_group())
        data = build.open_data(run, True)
        assert data is not None
        batches = build.train_batches(run, data, strategy.rank, strategy.world)
        fingerprint = batches.order.fingerprint([data.index.digest])
        progress = Progress()
        resumed = resume(folder, strategy, optimizer, progress, precision, fingerprint, run)
        if not resumed:
            start(run, objective, strategy, say)
        if rank == 0:
            cut(folder, progress.step)
        if world > 1:
            dist.barrier()
        ledger = Ledger(folder)
        log = Log(folder, run.steps, on=rank == 0, device=device,
                  slot_share=slot_share(run, batches, precision, device, world) if rank == 0 else 0.0)
        if resumed:
            log.say(f"resumed at step {progress.step} of {run.steps}")
        loader = Loader(batches, start=progress.step, stop=run.steps, workers=run.system.workers, device=device)
        writer = Writer(folder / "checkpoints", rank, world, common_attempt(device, world), run.checkpoint.keep,
                        patience=run.system.timeout)

        def state() -> dict[str, Any]:
            return {"applied": progress.applied, "samples": progress.samples, "frozen": progress.frozen,
                    "scale": precision.scale, "good": precision.good, "strategy": strategy.name, "world": world,
                    "data": {"version": 1, "position": progress.step * run.global_batch, "fingerprint": fingerprint},
                    "hash": build.hash_of(run, fingerprint), "versions": run_folder.versions()}

        def evaluate_now(names: list[str], step: int) -> None:
            try:
                for name, made in each(run, objective, names, lambda bad: ledger.write(**bad, step=step, where="evaluation")):
                    if not isinstance(made, UserError):
                        log.scores(step, name, made)
                    elif rank == 0:  # an evaluation that cannot be had must not end a training
                        ledger.write(kind="evaluation_failed", reason=str(made), name=name, step=step)
                        log.say(f"step {step}  {name} cannot be computed: {made}")
            finally:
                strategy.rest()

        trainer = Trainer(run, objective, strategy, optimizer, loader, writer, precision, control, ledger, log,
                          state, progress, evaluate_now)
        try:
            if rank == 0 and progress.step == 0:
                show_inputs(run, batches, log)
            if missing := overdue(run, folder, progress.step, strategy):
                evaluate_now(missing, progress.step)
            if progress.step >= run.steps:
                log.say(f"finished already: {progress.step} of {run.steps} steps")
                return 0
            how = trainer.train()
            log.say(f"{how} at step {progress.step}: checkpoint in {folder / 'checkpoints'}")
            return 0 if how == "finished" else 75
        finally:
            loader.close()
            log.close()
    finally:
        if held is not None:
            held.close()
        if dist.is_initialized() and sys.exc_info()[0] is None:
            dist.destroy_process_group()


def meet(run: Run, rank: int, world: int) -> Any:
    """The device of this rank, and the process group where there is more than one or the strategy shards."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    system = run.system
    cuda = system.device == "cuda" or (system.device == "auto" and torch.cuda.is_available())
    if system.device == "cuda" and not torch.cuda.is_available():
        raise UserError("system.device=cuda, but torch sees no GPU: run 'vtx doctor', or leave the device out.")
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = False
    else:
        torch.set_num_threads(system.threads)
    if system.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    if world > 1 or system.strategy in ("fsdp", "hsdp"):
        where, limit = os.environ.get("VTX_MEET"), timedelta(seconds=system.timeout)
        store = None
        if where is None and "MASTER_ADDR" not in os.environ:
            where = f"file://{tempfile.mkdtemp(prefix='vtx-')}/store"
        elif where is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun keeps one store over its restarts, where a new rank may find the address of a dead one
            whole = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, False, limit)
            store = dist.PrefixStore(f"vtx/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", whole)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", init_method=where, store=store, rank=rank,
                                world_size=world, timeout=limit)
    return device


def common_attempt(device: Any, world: int) -> str:
    """A name of this start of the run, the same on every rank."""
    import torch
    import torch.distributed as dist

    word = torch.randint(1 << 30, (1,), generator=torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little")))
    word = word.to(device)
    if world > 1:
        dist.broadcast(word, 0)
    return f"{word.item():08x}"


def resume(folder: Path, strategy: Any, optimizer: Any, progress: Any, precision: Any, fingerprint: str,
           run: Run) -> bool:
    """Load the newest whole checkpoint, the same on every rank; False where there is none."""
    import torch

    from vtx_scale.checkpoints.format import folder_name, read_manifest
    from vtx_scale.checkpoints.read import Tensors, load, newest
    from vtx_scale.trainer.control import Ledger

    def damaged(line: str) -> None:
        say(line)
        Ledger(folder).write(kind="checkpoint_damaged", reason=line)

    at = folder / "checkpoints"
    step = -1
    if strategy.rank == 0:
        found = newest(at, damaged)
        step = found[1]["step"] if found else -1
    step = int(strategy.sum(torch.tensor([float(step) if strategy.rank == 0 else 0.0], dtype=torch.float64,
                                         device=strategy.device)).item())
    if step < 0:
        return False
    path = at / folder_name(step)
    manifest = read_manifest(path)
    data = manifest["data"]
    forked = bool(run_folder.read(folder).get("forks"))
    if data["fingerprint"] != fingerprint and not forked:
        raise UserError(f"{path} was made from another data set or order (fingerprint {data['fingerprint']}, now "
                        f"{fingerprint}): give data.shards as it was, or train in another folder.")
    if data["position"] != step * run.global_batch and not forked:
        raise UserError(f"{path} is at sample {data['position']}, not at a step of global_batch={run.global_batch}.")
    load(strategy.slices(optimizer), Tensors(path, manifest))
    progress.step, progress.applied, progress.samples = step, manifest["applied"], manifest["samples"]
    progress.frozen = manifest.get("frozen", 0)
    precision.scale, precision.good = manifest["scale"], manifest["good"]
    return True


def overdue(run: Run, folder: Path, step: int, strategy: Any) -> list[str]:
    """Evaluators that were due at `step` but did not come to write their line; the same on every rank."""
    import torch

    from vtx_scale.trainer.loop import due

    names, file = due(run, step), folder / "evaluations.jsonl"
    done = set()
    if strategy.rank == 0 and file.exists():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        done = {r["name"] for r in rows if r["step"] == step}
    flags = torch.tensor([float(strategy.rank == 0 and n not in done) for n in names], device=strategy.device)
    missing = strategy.sum(flags).tolist() if names else []
    return [n for n, m in zip(names, missing, strict=True) if m]


def cut(folder: Path, step: int) -> None:
    """Lines beyond the step that a run resumes at will be written again."""
    from vtx_scale.trainer.control import cut_after

    for name in ("metrics.jsonl", "ledger.jsonl", "evaluations.jsonl"):
        cut_after(folder / name, step)


def slot_share(run: Run, batches: Any, precision: Any, device: Any, world: int) -> float:
    """What one sample a second uses of the peak of all ranks: samples a second times this is the model FLOP utilisation."""
    import torch

    from vtx_scale.data_pipeline.batch import Batch
    from vtx_scale.launch import build
    from vtx_scale.trainer.flops import peak_flops, training_flops

    row = {k: torch.from_numpy(v) for k, v in batches.reader.blank().items()}
    two = torch.arange(2)
    batch = Batch({k: torch.stack([v, v]) for k, v in row.items()}, torch.ones(2, dtype=torch.bool), two, two, two)
    need = training_flops(lambda: build.build_objective(run, torch.float32), batch)
    peak = peak_flops(device, precision.compute or precision.weights)
    return need / (world * peak) if peak else 0.0


def show_inputs(run: Run, batches: Any, log: Any) -> None:
    """A grid of the first batch in TensorBoard, with captions where there are any."""
    from vtx_scale.data_pipeline.batch import Batch

    batch = Batch(**batches[0])
    captions = []
    if "tokens" in batch:
        from vtx_scale.data_pipeline.text import tokenizer

        words = tokenizer(run.data.tokenizer)
        captions = [words.decode(row.tolist()) for row in batch["tokens"][:16]]
    log.pictures(0, batch, captions)


def main(argv: list[str]) -> int:
    """`python -m vtx_scale.launch.worker REQUEST.json`: one rank of `vtx_scale.launch.local`."""
    request = json.loads(Path(argv[0]).read_text())
    recipes.let_import(request["paths"])
    return work(override.from_dict(request["recipe"]), Path(request["folder"]), debug=request["debug"])


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # daemon threads of libraries must not hold up the end
