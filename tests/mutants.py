"""Lines of the code broken one at a time, and the tests that must fail then.

`python tests/mutants.py` breaks each line in a copy of the tree and runs the tests that are named
for it: `--only NAME ...` these alone, `--list` shows what there is. A mutant dies where a test
fails by an assertion; one that lives, or that ends its tests by a crash, gives exit code 1.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".git", ".venv", "site", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
PATIENCE = 900  # seconds for the tests of one mutant
# a broken name is found by any test that comes by: such a failure says nothing of a promise
CRASH = re.compile(
    r"\b(SyntaxError|IndentationError|ImportError|ModuleNotFoundError|NameError|UnboundLocalError"
    r"|AttributeError|TypeError)\b"
)
ASSERTED = re.compile(r"\s*(AssertionError|assert\b|Failed: DID NOT RAISE)")


@dataclass(frozen=True)
class Mutant:
    """One change of a file: `old` occurs in it once. `tests` are node ids of which one must fail;
    `promise` says what the change breaks.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    promise: str
    also: tuple[tuple[str, str], ...] = ()  # more of the same change, where it takes two places

    @property
    def edits(self) -> tuple[tuple[str, str], ...]:
        return ((self.old, self.new), *self.also)


@dataclass(frozen=True)
class Outcome:
    """What the tests said: "passed", "skipped", "asserted", "crashed" or "none", of which test."""

    kind: str
    where: str = ""
    message: str = ""


REFUSALS = "tests/surfaces/test_refusals.py"
ZERO = "tests/vtx_scale/test_zero.py"
FAIRSCALE = "tests/vtx_scale/test_fairscale.py"
SKIPS = "tests/promises/test_p2_skips.py"
COUNTS = "tests/promises/test_p4_counts.py"
SAME_RUN = "tests/promises/test_p2_same_run.py"
REMOTE = "tests/data_pipeline/test_remote.py"
ORDER = "tests/promises/test_p1_order.py"
MIX = "tests/promises/test_p1_mix.py"
MIX_DATA = "tests/promises/test_p1_mix_data.py"
AMENDMENTS = "tests/promises/test_p2_amendments.py"
DATA = "tests/promises/test_p1_data.py"
STEP = "tests/promises/test_p2_step.py"
DROPS = "tests/vtx_scale/test_drops.py"
FOREIGN = "tests/parity/test_foreign.py"
EVALUATORS = "tests/vtx_scale/test_evaluators.py"
DALLE = "tests/vtx_scale/test_dalle.py"
TRAINER = "tests/vtx_scale/test_trainer.py"
COMMIT = "tests/promises/test_p3_commit.py"
WATCHERS = "tests/promises/test_p4_watchers.py"
WARM = "tests/surfaces/test_warm.py"
FORKS = "tests/data_pipeline/test_fork_server.py"
SIGNALS = "tests/promises/test_p4_signals.py"
HANGS = "tests/vtx_scale/test_hangs.py"
GOODPUT = "tests/vtx_scale/test_goodput.py"
TORCHRUN = "tests/surfaces/test_torchrun.py"
UNUSABLE = "tests/promises/test_p4_unusable.py"
GUARD = "tests/promises/test_p4_guard.py"
RING = "tests/vtx_scale/test_ring.py"
CACHE = "tests/data_pipeline/test_cache.py"
CACHED = "tests/data_pipeline/test_cached.py"
PLAN = "tests/data_pipeline/test_plan.py"
CONTRACT = "tests/cluster/test_storage_contract.py"
BUCKET = "tests/cluster/test_s3.py"
BUCKET_RUNS = "tests/vtx_scale/test_bucket_runs.py"
SEGMENTS = "vtx_scale/trainer/segments.py"
STORAGE = "tests/data_pipeline/test_storage.py"
CODES = "tests/data_pipeline/test_codes.py"
READER = "tests/surfaces/test_run_reader.py"
TYPED = "tests/surfaces/test_typed.py"
REPORT = "tests/surfaces/test_report.py"
WATCH = "tests/surfaces/test_watch.py"
VIDEO = "tests/data_pipeline/test_video.py"
ENCODE = "tests/surfaces/test_encode.py"
BUILD = "tests/data_pipeline/test_build.py"
REPACK = "tests/data_pipeline/test_repack.py"
PAGE = "tests/data_pipeline/test_page.py"
QUARANTINE = "tests/data_pipeline/test_quarantine.py"
LOOP = "vtx_scale/trainer/loop.py"
OUTPUT = "vtx_scale/trainer/output.py"
LINES = "vtx_scale/trainer/lines.py"
LEAVE = "vtx_scale/trainer/leave.py"
CONTROL = "vtx_scale/trainer/control.py"
RESTORE = "vtx_scale/launch/restore.py"
WRITE = "vtx_scale/checkpoints/write.py"
PLACEMENT = "vtx_scale/checkpoints/placement.py"
IN_MEMORY = "vtx_scale/checkpoints/memory.py"
MEMORY = "tests/vtx_scale/test_memory.py"
SNAPSHOTS = "tests/vtx_scale/test_snapshots.py"
STAGING = "vtx_scale/checkpoints/staging.py"
CUT_LAYERS = "vtx_scale/strategies/cut_layers.py"
TP = "vtx_scale/strategies/tp.py"
CUT = "tests/vtx_scale/test_tp.py"
DRIVER = "tests/cluster/test_driver.py"
LEASE = "tests/vtx_scale/test_lease.py"
POLICY = "tests/cluster/test_policy.py"
KEEPER = "tests/cluster/test_keeper.py"
RAYLETS = "tests/cluster/test_raylets.py"
ATTEMPTS = "tests/cluster/test_attempts.py"
JOBS = "tests/cluster/test_jobs.py"
PLANNER = "tests/vtx_scale/test_planner.py"
RETENTION = "tests/vtx_scale/test_retention.py"
DAMAGE = (
    "tests/promises/test_p3_damage.py::test_a_maker_who_does_not_mean_well_is_refused_in_a_line"
)
MANIFESTS = "tests/cluster/test_manifests.py"

MUTANTS = (
    # --- tools that write sets and look at them
    Mutant(
        "packed_again",
        "data_pipeline/tools/packing.py",
        "if known := self.known(number):",
        "if known := None:",
        (f"{BUILD}::test_a_shard_that_is_gone_is_written_again_and_others_are_not",),
        "What is stored is not written again.",
    ),
    Mutant(
        "packed_unconfirmed",
        "data_pipeline/tools/packing.py",
        "    confirm(out, total.shards)\n",
        "",
        (f"{BUILD}::test_no_set_appears_without_every_shard",),
        "A set appears when every shard is confirmed.",
    ),
    Mutant(
        "packed_over",
        "data_pipeline/tools/packing.py",
        'if known["plan"] != plan:',
        "if False:",
        (f"{BUILD}::test_what_stands_there_is_never_overwritten",),
        "The beginning of one set is not gone on with as another.",
    ),
    Mutant(
        "packed_over_at_once",
        "data_pipeline/tools/packing.py",
        "        check_plan(out, read_json(out, UNFINISHED), plan)  # another command came first",
        "        pass",
        (f"{BUILD}::test_of_two_sets_at_once_one_is_refused",),
        "Two commands that begin at once do not write two sets into one place.",
    ),
    Mutant(
        "half_a_set",
        "data_pipeline/remote.py",
        'if shards.root.head(f"{folder}/{UNFINISHED}".lstrip("/")) is not None:',
        "if False:",
        (f"{BUILD}::test_half_a_set_is_nobodys",),
        "Shards of which not all are there are no set.",
    ),
    Mutant(
        "half_a_set_in_a_bucket",
        "data_pipeline/remote.py",
        "    refuse_unfinished(shards)\n",
        "",
        (f"{REMOTE}::test_half_a_set_in_a_bucket_is_nobodys",),
        "Nor are they in a bucket.",
    ),
    Mutant(
        "url_of_elsewhere",
        "data_pipeline/tools/rows.py",
        'if scheme[1].lower() != "file":',
        "if False:",
        (f"{BUILD}::test_a_table_of_paths_urls_and_captions",),
        "A URL of another machine is named as such.",
    ),
    Mutant(
        "part_begins",
        "data_pipeline/tools/tables.py",
        "begin, number, rows = file.tell(), number + rows, 0",
        "number, rows = number + rows, 0",
        (f"{BUILD}::test_parts_of_a_table_are_its_rows",),
        "A part of a table begins with the row behind the one before.",
    ),
    Mutant(
        "apart_merged",
        "data_pipeline/tools/packing.py",
        "if before[1].keys().isdisjoint(item[1]):",
        "if False:",
        (f"{REPACK}::test_two_that_would_become_one_are_named",),
        "Two samples do not become one when what lay between them goes.",
    ),
    Mutant(
        "shrunk_smaller",
        "data_pipeline/tools/shrink.py",
        "if min(height, width) <= short_side:",
        "if max(height, width) <= short_side:",
        (f"{REPACK}::test_a_short_side",),
        "A picture that is small enough keeps its bytes.",
    ),
    Mutant(
        "shrunk_mask",
        "data_pipeline/tools/shrink.py",
        "Image.Resampling.NEAREST",
        "Image.Resampling.LANCZOS",
        (f"{REPACK}::test_a_mask_is_made_as_small_and_keeps_its_values",),
        "The values of a mask stay.",
    ),
    Mutant(
        "archive_torn",
        "data_pipeline/tools/repack.py",
        'yield Left(name, "compressed", fault)',
        "pass",
        (f"{REPACK}::test_a_torn_archive_gives_what_is_in_it",),
        "An archive that ends early is named.",
    ),
    Mutant(
        "repacked_classes",
        "data_pipeline/tools/packing.py",
        "        out.put(name, body)\n",
        "        pass\n",
        (f"{REPACK}::test_the_names_of_classes_and_of_a_codec_go_with_the_samples",),
        "The names of classes go with the samples.",
    ),
    Mutant(
        "page_raw",
        "data_pipeline/tools/page.py",
        "return html.escape(shown(str(value), letters), quote=True)",
        "return str(value)",
        (f"{PAGE}::test_no_mark_up_of_a_caption_or_key_is_in_the_page",),
        "No mark-up of a caption is in the page.",
    ),
    Mutant(
        "page_policy",
        "data_pipeline/tools/page.py",
        "policy = f\"default-src 'none'; img-src data:; style-src",
        'policy = f"img-src data:; style-src',
        (f"{PAGE}::test_no_mark_up_of_a_caption_or_key_is_in_the_page",),
        "The page's policy allows no script.",
    ),
    Mutant(
        "stats_merged",
        "data_pipeline/tools/stats.py",
        'self.total += row["sum"]',
        'self.total = row["sum"]',
        (f"{PAGE}::test_the_numbers_are_those_of_the_set",),
        "Numbers of shards add up.",
    ),
    Mutant(
        "stats_again",
        "data_pipeline/tools/records.py",
        "if known is None:",
        "if True:",
        (
            f"{PAGE}::test_gone_on_with_after_a_kill",
            f"{QUARANTINE}::test_killed_and_gone_on_with",
        ),
        "What is known is not looked at again.",
    ),
    Mutant(
        "duplicates_first",
        "data_pipeline/tools/stats.py",
        "(ordered[starts] != 0)",
        "(ordered[starts] == ordered[starts])",
        (f"{PAGE}::test_the_numbers_are_those_of_the_set",),
        "Samples without a picture are no duplicates.",
    ),
    Mutant(
        "quarantine_forgotten",
        "data_pipeline/opening.py",
        '    kept_in(index, [(Folder(path.parent), "") for path in places])\n',
        "",
        (f"{QUARANTINE}::test_an_index_that_is_made_again_knows_it",),
        "An index that is made again keeps its quarantine.",
    ),
    Mutant(
        "quarantine_one_name",
        "data_pipeline/remote.py",
        'folder = root.head(f"{prefix}{LIST}") is not None',
        "folder = False",
        (f"{QUARANTINE}::test_in_a_bucket_it_costs_no_request_at_start",),
        "Both names of a bucket's index know of a quarantine.",
    ),
    Mutant(
        "repacked_without",
        "data_pipeline/tools/repack.py",
        "if e.reason in PASSING:",
        "if False:",
        (f"{REPACK}::test_what_cannot_be_read_now_ends_it_and_is_not_left_out",),
        "What a disk cannot read now is not left out of a set for good.",
    ),
    Mutant(
        "encoded_without",
        "data_pipeline/tools/encode.py",
        'in (*PASSING, "worker_died"):',
        'in ("read_error", "worker_died"):',
        (f"{CODES}::test_what_cannot_be_read_now_is_not_left_out",),
        "Nor is it left out of codes.",
    ),
    Mutant(
        "quarantine_passing",
        "data_pipeline/tools/quarantine.py",
        "if reason not in PASSING:",
        "if True:",
        (f"{QUARANTINE}::test_what_cannot_be_read_now_is_named_and_not_kept",),
        "What a disk cannot read now is not put into quarantine.",
    ),
    Mutant(
        "quarantine_all",
        "data_pipeline/tools/quarantine.py",
        "if new and len({*named, *index.bad}) == index.n:",
        "if False:",
        (f"{QUARANTINE}::test_a_recipe_that_reads_something_else_puts_nothing_there",),
        "A recipe that fits no sample puts none into quarantine.",
    ),
    Mutant(
        "quarantine_replaced",
        "data_pipeline/tools/quarantine.py",
        "    named = quarantine.stored(index, root, prefix)\n",
        "    named: quarantine.Named = {}\n",
        (f"{QUARANTINE}::test_two_recipes_add_up_and_repack_deletes",),
        "A second recipe adds to a quarantine.",
    ),
    # --- shards in a bucket
    Mutant(
        "bucket-chunk-unchecked",
        "vtx_scale/data_pipeline/chunks.py",
        "if self.index.only_bad(k) or zlib.crc32(body) == int(self.index.chunk_crc[k]):",
        "if True:",
        (f"{REMOTE}::test_no_byte_is_used_of_a_chunk_with_another_checksum",),
        "No byte of a fetched chunk is used before its CRC was seen.",
    ),
    Mutant(
        "bucket-any-object",
        "vtx_scale/data_pipeline/chunks.py",
        "int(offset), length, tag)",
        "int(offset), length)",
        (f"{REMOTE}::test_shards_that_were_written_anew_are_found",),
        "A chunk is read of the very object that was indexed.",
    ),
    Mutant(
        "bucket-stale-index",
        "vtx_scale/data_pipeline/remote.py",
        "if remote_tag(head, name).tobytes() != index.shard_tag[shard].tobytes():",
        "if False:",
        (f"{REMOTE}::test_shards_that_were_written_anew_are_found",),
        "A set whose first or last shard was written anew is refused.",
    ),
    Mutant(
        "bucket-chunk-asked-again",
        "vtx_scale/data_pipeline/chunks.py",
        "copy = self._copies[k] = Copy(self.fetch(k))",
        "copy = Copy(self.fetch(k))",
        (f"{REMOTE}::test_samples_are_those_of_a_folder_by_one_request_a_chunk",),
        "A chunk is one request, its members none.",
    ),
    Mutant(
        "bucket-gone-in-silence",
        "vtx_scale/data_pipeline/chunks.py",
        "if len(self._failed) >= UNREACHED:",
        "if False:",
        (f"{REMOTE}::test_a_server_that_is_gone_ends_the_run_and_masks_few",),
        "A server that is gone ends the run and does not mask the set.",
    ),
    Mutant(
        "index-unsealed",
        "vtx_scale/data_pipeline/index.py",
        "!= sum_of(t):",
        "!= sum_of(t) and False:",
        (f"{REMOTE}::test_shards_that_were_written_anew_are_found",),
        "An index of which a byte changed is never trusted.",
    ),
    # --- strategies of DeepSpeed and fairscale
    Mutant(
        "zero-an-average",
        "vtx_scale/strategies/zero.py",
        "self.engine.backward(loss * self.all.world)",
        "self.engine.backward(loss)",
        (f"{ZERO}::test_private_names_of_stages_1_and_2[zero1]",),
        "Gradients are sums over the ranks, not DeepSpeed's means.",
    ),
    Mutant(
        "zero-unpublished",
        "vtx_scale/strategies/zero12.py",
        "self.zero.update_lp_params()",
        "pass",
        (f"{ZERO}::test_limits_bite[zero2]",),
        "What the optimizer and the limits did to the masters is what the forward pass reads.",
    ),
    Mutant(
        "zero-unsettled",
        "vtx_scale/strategies/zero12.py",
        "def settled(self) -> None:\n        self.publish()",
        "def settled(self) -> None:\n        pass",
        (f"{ZERO}::test_private_names_of_stages_1_and_2[zero1]",),
        "Values that were written through slices are those of the forward pass.",
    ),
    Mutant(
        "zero-the-last-micro-batch-alone",
        "vtx_scale/strategies/zero12.py",
        "summed = k in self.zero._offload_accumulated_param_ids",
        "summed = False",
        (f"{ZERO}::test_a_parameter_without_a_gradient[zero2-optimizer]",),
        "Offloaded, a parameter keeps what earlier micro-batches gave it.",
    ),
    Mutant(
        "zero-a-gradient-left",
        "vtx_scale/strategies/zero3.py",
        "self.zero.grad_partitions_flat_buffer.zero_()",
        "pass",
        (f"{ZERO}::test_a_parameter_without_a_gradient[zero3-none]",),
        "A parameter without a gradient does not move by that of a step before.",
    ),
    Mutant(
        "zero-an-engine-left",
        "launch/worker.py",
        "    parts.strategy.close()",
        "    pass",
        (f"{ZERO}::test_no_engine_outlives_its_attempt[zero2-optimizer]",),
        "A run that goes back in its process lets go of what it had.",
    ),
    Mutant(
        "zero-a-cache-left",
        "vtx_scale/strategies/deepspeed_package.py",
        "f.cache_clear()",
        "pass",
        (f"{ZERO}::test_no_engine_outlives_its_attempt[zero3-none]",),
        "What DeepSpeed keeps of an engine that is no more is let go.",
    ),
    Mutant(
        "a-world-not-asked",
        "launch/prepare.py",
        "    checks.check_strategy(run, world)\n",
        "",
        (f"{REFUSALS}::test_ranks_that_a_launcher_has_started_are_a_world_too",),
        "What a strategy cannot train on so many ranks is refused before run.json is written.",
    ),
    Mutant(
        "zero-padding-for-values",
        "vtx_scale/strategies/zero3.py",
        "here.detach()[: hi - lo]",
        "here.detach()",
        (f"{ZERO}::test_private_names_of_stage_3",),
        "What fills an interval up is no part of a leaf.",
    ),
    Mutant(
        "zero-a-whole-model",
        "vtx_scale/strategies/zero3.py",
        "        into = init(",
        "        objective.held = [torch.ones(p.shape) for p in objective.parameters()]\n"
        "        into = init(",
        (f"{ZERO}::test_no_rank_ever_holds_all_of_it",),
        "No rank holds all parameters while they are cut.",
    ),
    Mutant(
        "zero-teachers-that-rest",
        "vtx_scale/strategies/zero3.py",
        "move_followers(self.objective, step, lambda",
        "move_followers(self.objective, 10**6, lambda",
        (f"{ZERO}::test_the_run_of_one_process[dino_vit_s16-zero3-3]",),
        "Followers move where they lie cut.",
    ),
    Mutant(
        "owners-unheard",
        "vtx_scale/strategies/fairscale.py",
        "self.owners._broadcast_params()",
        "pass",
        (f"{FAIRSCALE}::test_each_parameter_has_one_owner",),
        "What an owner has moved goes to all ranks.",
    ),
    Mutant(
        "owners-without-late-gradients",
        "vtx_scale/strategies/fairscale.py",
        "self.sharded.reduce()",
        "pass",
        (f"{FAIRSCALE}::test_a_parameter_without_a_gradient",),
        "What earlier micro-batches gave reaches the owner, though the last one gave none.",
    ),
    # --- steps that count and steps that do not
    Mutant(
        "follower-on-a-skip",
        LOOP,
        "self.control.skip(step)",
        "self.strategy.follow(step - 1); self.control.skip(step)",
        (f"{SKIPS}::test_a_skipped_step_moves_nothing",),
        "A step that is not finite leaves the follower where it was.",
    ),
    Mutant(
        "applied-from-the-step",
        RESTORE,
        'manifest["applied"],',
        "step,",
        (f"{SKIPS}::test_a_run_that_leaves_behind_a_skip_goes_on_as_if_it_had_stayed",),
        "Adam's correction counts the steps that were applied, also after a resume.",
    ),
    Mutant(
        "skips-in-a-row-add-up",
        LOOP,
        "self.control.skipped = 0",
        "pass",
        (f"{SKIPS}::test_skips_in_a_row_alone_end_a_run",),
        "A step that counts sets the count of skips in a row back.",
    ),
    Mutant(
        "bad-limit-never-forgets",
        "vtx_scale/trainer/control.py",
        "self.recent.pop(0)",
        "break",
        (f"{COUNTS}::test_bad_samples_are_forgotten_behind_the_window",),
        "The limit of bad samples looks at the last 10,000 slots.",
    ),
    Mutant(
        "failures-add-up",
        "vtx_scale/launch/rounds.py",
        "self.failures = 1 if now != self.last else self.failures + 1",
        "self.failures = self.failures + 1",
        (f"{COUNTS}::test_progress_sets_a_launchers_failures_back",),
        "A launcher gives up after starts in a row that saved nothing.",
    ),
    Mutant(
        "samples-not-restored",
        RESTORE,
        'manifest["samples"],',
        "0,",
        (f"{SKIPS}::test_a_run_that_leaves_behind_a_skip_goes_on_as_if_it_had_stayed",),
        "A run goes on counting the samples that it saw.",
    ),
    Mutant(
        "correction-not-restored",
        LOOP,
        "set_applied(self.optimizer, p.applied,",
        "set_applied(self.optimizer, 0,",
        (f"{SKIPS}::test_a_run_that_leaves_behind_a_skip_goes_on_as_if_it_had_stayed",),
        "Adam's correction goes on where it was.",
    ),
    Mutant(
        "scale-not-restored",
        RESTORE,
        'manifest["scale"]',
        "precision.scale",
        (f"{SKIPS}::test_a_run_that_leaves_behind_a_skip_goes_on_as_if_it_had_stayed",),
        "A float16 run goes on with the scale that it had.",
    ),
    Mutant(
        "good-steps-not-restored",
        RESTORE,
        'manifest["good"]',
        "precision.good_steps",
        (f"{SKIPS}::test_a_run_that_leaves_behind_a_skip_goes_on_as_if_it_had_stayed",),
        "A float16 run goes on counting towards the next larger scale.",
    ),
    Mutant(
        "decay-a-step-ahead",
        LOOP,
        "set_rates(self.optimizer, run.optim, rate, p.step, run.steps)",
        "set_rates(self.optimizer, run.optim, rate, p.step + 1, run.steps)",
        (f"{SKIPS}::test_a_step_is_taken_at_its_own_rate_and_decay",),
        "Weight decay moves on its schedule.",
    ),
    # --- contrastive losses over ranks
    Mutant(
        "ring-of-masked-columns",
        "vtx_scale/distributed/ranks.py",
        "logits.masked_fill_(~there[c], -INF)",
        "pass",
        (f"{RING}::test_a_ring_is_the_gathered_form_and_the_definition[2-True]",),
        "A masked slot is nobody's negative, also where features go round.",
    ),
    Mutant(
        "ring-leaves-columns-out",
        "vtx_scale/distributed/ranks.py",
        "return (slice(a, min(a + chunk, n)) for a in range(0, n, chunk))",
        "return (slice(a, a + chunk) for a in range(0, n, chunk + 1))",
        (f"{RING}::test_a_ring_is_the_gathered_form_and_the_definition[1-False]",),
        "Every column is compared once, whatever the size of a chunk.",
    ),
    # --- memory
    Mutant(
        "recompute-keeps-all",
        "vtx_scale/strategies/apply.py",
        "kept = operator in PRODUCTS",
        "kept = True",
        ("tests/vtx_scale/test_recompute.py::test_gradients_are_the_same_and_memory_lies_between",),
        "Selective recomputation keeps products alone.",
    ),
    # --- the guard and its decisions
    Mutant(
        "spikes-in-the-median",
        "vtx_scale/trainer/guard.py",
        "self.beyond(norm, [n.norm for n in sound])",
        "self.beyond(norm, [n.norm for n in self.numbers])",
        (f"{GUARD}::test_a_spike_is_beyond_the_median_of_sound_steps",),
        "A spike does not make the next one look sound.",
    ),
    Mutant(
        "spike-by-a-rank-of-its-own",
        LOOP,
        "self.guard.judge(step, loss, norm)",
        "self.guard.judge(step, mine.item(), norm)",
        (f"{GUARD}::test_a_spike_on_one_rank_is_skipped_on_all[2-ddp-True]",),
        "All ranks skip by the same number.",
    ),
    Mutant(
        "window-not-restored",
        "vtx_scale/launch/worker.py",
        'parts.guard.load(manifest.get("guard", []))',
        "pass",
        (f"{GUARD}::test_a_resume_has_the_same_verdicts[13]",),
        "A resume judges as if the run had stayed.",
    ),
    Mutant(
        "abandoned-checkpoints-stay",
        "vtx_scale/launch/decisions.py",
        "remove(checkpoints, step)",
        "pass",
        (f"{GUARD}::test_ended_within_a_roll_back_it_goes_on[decision-15]",),
        "What a decision went back behind is never gone on from.",
    ),
    Mutant(
        "guard-in-every-hash",
        "vtx_scale/launch/override.py",
        "if run.guard != Guard():",
        "if True:",
        (f"{GUARD}::test_a_guard_counts_in_the_hash_and_its_default_does_not",),
        "A new field changes no old hash.",
    ),
    # --- snapshots in memory
    Mutant(
        "memory-both-on-one-machine",
        PLACEMENT,
        "if x is not None and nodes[x[0]] != nodes[rank]]",
        "if x is not None]",
        (f"{MEMORY}::test_with_any_machine_gone_every_part_is_there",),
        "What a machine takes along is there once more.",
    ),
    Mutant(
        "memory-sent-for-nothing",
        PLACEMENT,
        "away[0] if away else",
        "away[0] if False else",
        (f"{MEMORY}::test_nothing_is_sent_that_ranks_of_another_machine_hold",),
        "What another machine has already is not sent.",
    ),
    Mutant(
        "memory-of-a-part",
        PLACEMENT,
        "if there.issuperset(range(report.parts)):",
        "if True:",
        (f"{MEMORY}::test_the_newest_of_which_all_is_somewhere",),
        "A snapshot of which a part is gone is passed over.",
    ),
    Mutant(
        "memory-older-than-the-disk",
        PLACEMENT,
        "if report.manifest and report.step > after:",
        "if report.manifest:",
        (f"{SNAPSHOTS}::test_the_disk_is_as_new",),
        "Memory is taken where it is newer.",
    ),
    Mutant(
        "memory-kept-once-after-a-loss",
        PLACEMENT,
        "if len(there) == 1 < len(order):",
        "if False:",
        (f"{SNAPSHOTS}::test_one_machines_memory_is_gone_and_then_the_others",),
        "Behind a recovery a second machine may go too.",
    ),
    Mutant(
        "memory-unverified",
        "vtx_scale/launch/recover.py",
        'if sha256_file(folder / name) != files[name]["sha256"]:',
        "if False:",
        (f"{SNAPSHOTS}::test_of_a_damaged_file_the_other_copy_is_taken[data-00000]",),
        "Every byte is verified before it is used.",
    ),
    Mutant(
        "memory-behind-a-decision",
        "vtx_scale/launch/recover.py",
        "return same and known and not abandoned(manifest, decisions)",
        "return same and known",
        (
            f"{SNAPSHOTS}::test_what_is_not_of_this_run_as_it_is_now_is_not_taken",
            f"{MEMORY}::test_a_roll_back_takes_no_snapshot_from_beyond",
        ),
        "What a decision abandoned is not taken from memory either.",
    ),
    Mutant(
        "memory-of-another-recipe",
        "vtx_scale/launch/recover.py",
        'and manifest.get("hash") == digest',
        "and True",
        (f"{SNAPSHOTS}::test_what_is_not_of_this_run_as_it_is_now_is_not_taken",),
        "A snapshot of another recipe is not taken.",
    ),
    Mutant(
        "memory-of-the-start-before-goes-first",
        IN_MEMORY,
        "self.committed = max(steps(Folder(folder)), default=-1)",
        "self.committed = -1",
        (f"{MEMORY}::test_a_kill_while_a_snapshot_is_written_costs_no_more",),
        "The snapshot before stays until the next one is there.",
    ),
    Mutant(
        "memory-of-copies-that-differ",
        IN_MEMORY,
        'fault = next((f for _, f, _ in rows if f), "") or apart(rows)',
        'fault = next((f for _, f, _ in rows if f), "")',
        (f"{SNAPSHOTS}::test_copies_that_differ_become_no_snapshot",),
        "Ranks that hold the same write the same.",
    ),
    Mutant(
        "memory-without-room",
        IN_MEMORY,
        "if need[snapshots.nodes[rank]] > room:",
        "if False:",
        (f"{SNAPSHOTS}::test_where_the_memory_does_not_hold_them_all_ranks_know",),
        "Snapshots are off where the memory does not hold them.",
    ),
    Mutant(
        "memory-not-compared",
        "vtx_scale/trainer/loop.py",
        "            if self.saved != step:\n                self.compare_copies()",
        "            pass",
        (f"{MEMORY}::test_copies_that_differ_become_no_snapshot",),
        "Copies that differ become no snapshot.",
    ),
    Mutant(
        "memory-late",
        "vtx_scale/trainer/loop.py",
        "                self.snapshots.wait()",
        "                pass",
        (f"{MEMORY}::test_a_kill_while_a_snapshot_is_written_costs_no_more",),
        "A fault never costs more steps than checkpoint.memory says.",
    ),
    Mutant(
        "memory-stays",
        "vtx_scale/launch/memory.py",
        """'read _; rm -rf "$1"'""",
        "'read _'",
        (f"{SNAPSHOTS}::test_the_folder_goes_with_its_launcher",),
        "What is in memory goes with the launcher, also by SIGKILL.",
    ),
    Mutant(
        "memory-is-no-progress",
        "launch/local.py",
        "now = max(stored, node.kept())",
        "now = stored",
        (f"{MEMORY}::test_the_launcher_goes_on_from_memory_and_leaves_none",),
        "Faults that each cost a few steps do not end a run.",
    ),
    Mutant(
        "memory-too-often",
        "vtx_scale/trainer/cadence.py",
        "[self.stall + written * self.beside,",
        "[self.stall,",
        (f"{MEMORY}::test_auto_is_as_often_as_costs_one_hundredth",),
        "What is written beside the steps on their own processors counts.",
    ),
    # --- the cluster
    Mutant(
        "largest-world-anywhere",
        "vtx_scale/cluster/policy.py",
        "    return max((w for w in admitted(low, min(high, slots), unit)), default=0)",
        "    return max((w for w in admitted(low, min(high, slots), 1)), default=0)",
        (f"{POLICY}::test_the_admitted_world_is_the_largest_that_fits",),
        "Only worlds that the strategy can run on are admitted.",
    ),
    Mutant(
        "groups-over-machines",
        "vtx_scale/cluster/policy.py",
        "    for unit in (axis, 1):",
        "    for unit in (1, 1):",
        (f"{POLICY}::test_every_rank_has_a_slot_and_groups_stay_on_a_machine_where_they_can",),
        "Ranks that share heads lie on one machine where there is room for that.",
    ),
    Mutant(
        "the-first-end-is-blamed",
        "vtx_scale/launch/rounds.py",
        "if self.first is None or blame(first[1]) < blame(self.first[1]):",
        "if self.first is None:",
        (f"{POLICY}::test_a_lost_rank_is_named_before_those_that_it_took_along",),
        "A lost rank is named, and not those that it took along.",
    ),
    Mutant(
        "keeps-for-nobody",
        "vtx_scale/cluster/keeper.py",
        "        while time.monotonic() - self.heard < self.ttl:",
        "        while time.monotonic() - self.heard < 1000 * self.ttl:",
        (f"{KEEPER}::test_ranks_that_nobody_asks_after_end_with_their_keeper",),
        "Ranks after which nobody asks are ended by their machine.",
    ),
    Mutant(
        "ranks-of-a-thread-that-ends",
        "vtx_scale/cluster/keeper.py",
        "        self.hand.submit(self.ranks.begin, *about).result()",
        "        self.ranks.begin(*about)",
        (f"{KEEPER}::test_ranks_die_with_their_keeper",),
        "A rank lives as long as the process that keeps it, not as the thread that was called.",
    ),
    Mutant(
        "an-epoch-for-ever",
        "vtx_scale/launch/driver.py",
        "        if ended.lost:\n            # what",
        "        if not ended.lost:\n            # what",
        (f"{RAYLETS}::test_a_machine_that_falls_silent_is_lost_and_its_ranks_save_nothing_more",),
        "What a machine still saves that nobody can reach does not count.",
    ),
    Mutant(
        "drains-without-a-save",
        "vtx_scale/launch/driver.py",
        "        if leaving:",
        "        if not held:",
        (f"{RAYLETS}::test_a_run_shrinks_grows_and_leaves_a_machine_that_is_taken_away",),
        "A machine that is taken away is left before, with a save.",
    ),
    Mutant(
        "grows-never",
        "vtx_scale/launch/driver.py",
        "        if world <= self.ranks or not",
        "        if world >= self.ranks or not",
        (f"{RAYLETS}::test_a_run_shrinks_grows_and_leaves_a_machine_that_is_taken_away",),
        "A run grows where machines come back.",
    ),
    Mutant(
        "memory-goes-with-more-ranks",
        "vtx_scale/launch/driver.py",
        "machine.slots if self.memory else ranks",
        "ranks",
        (f"{DRIVER}::test_what_a_machine_has_in_memory_outlives_other_ranks_on_it[True]",),
        "What a machine has in memory outlives a round with more ranks on it.",
    ),
    Mutant(
        "memory-goes-with-fewer-ranks",
        "vtx_scale/cluster/ray_nodes.py",
        "ranks <= held.room and",
        "ranks == held.room and",
        (f"{DRIVER}::test_what_a_machine_has_in_memory_outlives_other_ranks_on_it[False]",),
        "What a machine has in memory outlives a round with fewer ranks on it.",
    ),
    Mutant(
        "lets-go-before-the-next-round-trains",
        "vtx_scale/launch/driver.py",
        "if len(phases) == self.ranks and not any(",
        "if phases or not any(",
        (f"{DRIVER}::test_a_machine_outside_the_plan_stays_until_the_next_round_trains",),
        "A machine without ranks is let go when the next round trains.",
    ),
    Mutant(
        "leaves-its-files",
        "vtx_scale/cluster/ray_nodes.py",
        '            self.everywhere([held], "close", limit=CLOSE)\n',
        "            pass\n",
        (f"{DRIVER}::test_an_actor_that_goes_removes_what_it_has_on_its_machine",),
        "An actor that goes leaves no file on its machine.",
    ),
    Mutant(
        "tries-a-broken-machine-at-once",
        "vtx_scale/launch/driver.py",
        "held.lost)\n            self.cluster.put_aside(held)\n",
        "held.lost)\n            self.cluster.drop(held)\n",
        (f"{DRIVER}::test_a_machine_that_cannot_prepare_is_left_alone_for_a_while",),
        "A machine that cannot prepare is left alone for a while.",
    ),
    Mutant(
        "preparation-counts-as-waiting",
        "vtx_scale/launch/driver.py",
        "            if not plan:\n                waited",
        "            if True:\n                waited",
        (f"{DRIVER}::test_preparation_is_no_wait_for_machines",),
        "Patience is for machines that are not there.",
    ),
    Mutant(
        "lost-machines-count-never",
        "vtx_scale/launch/driver.py",
        "(again or not ended.lost)",
        "not ended.lost",
        (f"{DRIVER}::test_a_machine_that_ends_every_round_is_given_up",),
        "A machine that ends every round does not do so for ever.",
    ),
    Mutant(
        "one-error-ends-the-questions",
        "vtx_scale/cluster/ray_nodes.py",
        "with contextlib.suppress(Exception):  # of Ray's: who",
        "if True:  # of Ray's: who",
        (f"{DRIVER}::test_the_machines_are_asked_on_after_an_error_of_rays",),
        "Machines are asked on after an error of Ray's.",
    ),
    Mutant(
        "last-lines-have-no-time",
        "vtx_scale/launch/rounds.py",
        "if self.bucket and any(",
        "if False and any(",
        (f"{POLICY}::test_ranks_that_decided_have_time_to_send_their_last_lines",),
        "Ranks have time to send their last lines to a bucket.",
    ),
    # --- checkpoints, logs, the lease
    Mutant(
        "committed-before-its-data",
        WRITE,
        "self.storage.put_file(data, path)",
        "late = path.read_bytes()",
        (f"{COMMIT}::test_a_checkpoint_is_there_when_it_is_whole[1]",),
        "A save is committed when all of it is there.",
        also=(("self.committed = step\n", "self.storage.put(data, late)\n"),),
    ),
    Mutant(
        "written-and-not-read-back",
        "vtx_scale/checkpoints/tensor_file.py",
        "compare(file, pieces)",
        "pass",
        (f"{COMMIT}::test_a_bit_that_turns_on_the_way_to_the_disk_is_found",),
        "What lies on the disk is what was handed over.",
    ),
    Mutant(
        "copy-unchecked",
        WRITE,
        "if checksum(tensor) != work.sums[entry]:",
        "if False:",
        (f"{COMMIT}::test_a_bit_that_turns_in_the_copy_is_found",),
        "What is written is what was copied inside the step.",
    ),
    Mutant(
        "a-stuck-writer-is-waited-for",
        WRITE,
        "if self._error is None and self.busy and now > self._began + self._limit:",
        "if False:",
        (f"{COMMIT}::test_a_writer_that_is_stuck_is_replaced_and_commits_nothing",),
        "A save that hangs costs that save alone.",
    ),
    Mutant(
        "a-dropped-save-commits",
        WRITE,
        "if work.stop.is_set():  # also while it waited for the lease",
        "if False:",
        (
            f"{COMMIT}::test_a_writer_that_is_stuck_is_replaced_and_commits_nothing",
            f"{COMMIT}::test_a_dropped_save_that_wakes_late_costs_no_checkpoint[held]",
        ),
        "A save that was given up commits nothing.",
    ),
    Mutant(
        "a-stuck-save-is-swept",
        WRITE,
        "sweep(self.storage, but=self.stuck)",
        "sweep(self.storage)",
        (f"{COMMIT}::test_a_dropped_save_that_wakes_late_costs_no_checkpoint[put_if_absent]",),
        "What has a manifest has its files.",
    ),
    Mutant(
        "a-dropped-save-removes",
        WRITE,
        " or work.stop.is_set():\n                return\n            self.committed",
        ":\n                return\n            self.committed",
        (f"{COMMIT}::test_a_dropped_save_that_wakes_late_costs_no_checkpoint[put_if_absent]",),
        "A save that was given up counts for nothing, and removes nothing.",
    ),
    Mutant(
        "room-counts-as-a-save",
        WRITE,
        "with contextlib.suppress(OSError):  # it costs room, and not the save",
        "with contextlib.nullcontext():",
        (f"{COMMIT}::test_what_cannot_be_removed_costs_no_save",),
        "A save that was committed is none that failed.",
    ),
    Mutant(
        "table-of-another-start",
        WRITE,
        'if table["attempt"] == self.attempt else None',
        'if table["attempt"] else None',
        (f"{COMMIT}::test_another_starts_table_is_not_taken",),
        "A save is of one start of the run.",
    ),
    Mutant(
        "leftovers-stay",
        WRITE,
        "        storage.delete(name)\n\n\ndef names_of",
        "        pass\n\n\ndef names_of",
        (f"{COMMIT}::test_what_is_no_checkpoint_is_cleared_by_the_next_start",),
        "What a killed save left is cleared.",
    ),
    Mutant(
        "goes-on-without-its-lease",
        WRITE,
        "self.lost, self._error = True, self._taken",
        "pass",
        (f"{LEASE}::test_a_run_whose_lease_was_taken_ends[1]",),
        "A run whose lease was taken ends, also where no save is due.",
    ),
    Mutant(
        "advances-into-anothers",
        "vtx_scale/checkpoints/lease.py",
        "            if said(self.storage, self.epoch + 1) == self._next:\n",
        "            if True:\n",
        (f"{LEASE}::test_a_holder_may_go_on_under_a_newer_epoch[memory]",),
        "Nobody gets a newer epoch that another has.",
    ),
    Mutant(
        "loses-the-run-to-itself",
        "vtx_scale/checkpoints/lease.py",
        "            self._settle()\n            check(",
        "            check(",
        (
            f"{LEASE}::test_a_newer_epoch_that_is_found_stored_later_is_renewed_and_given_back"
            "[memory]",
        ),
        "A newer epoch whose answer was lost is its holder's.",
    ),
    Mutant(
        "commits-without-its-lease",
        WRITE,
        "        while True:\n            self.held()",
        "        while True:",
        (f"{LEASE}::test_who_lost_it_commits_nothing",),
        "Who lost the lease commits nothing.",
    ),
    Mutant(
        "overwrites-a-newer-epoch",
        WRITE,
        "if (epoch := epoch_of(self.storage, step)) > self.epoch:",
        "if (epoch := epoch_of(self.storage, step)) > 99:",
        (f"{LEASE}::test_who_lost_it_commits_nothing",),
        "What another job saved since is not overwritten.",
    ),
    Mutant(
        "takes-over-a-living-holder",
        "vtx_scale/checkpoints/lease.py",
        'elif seen != (epoch, body) and state == "held":',
        "elif False:",
        (f"{LEASE}::test_one_holds_it_and_the_next_is_refused_while_it_is_renewed",),
        "A lease that is renewed is its holder's.",
    ),
    Mutant(
        "waits-twice-for-a-silent-holder",
        "vtx_scale/checkpoints/lease.py",
        "if seen == silent:",
        "if False:",
        (f"{LEASE}::test_a_silence_that_was_seen_is_not_waited_for_once_more[memory]",),
        "A silence that somebody has seen is not waited for once more.",
    ),
    Mutant(
        "takes-over-who-was-silent-once",
        "vtx_scale/checkpoints/lease.py",
        "if seen == silent:",
        "if silent is not None:",
        (f"{LEASE}::test_a_silence_that_was_seen_is_not_waited_for_once_more[memory]",),
        "A lease that has changed since it was silent has a holder.",
    ),
    Mutant(
        "waits-for-a-dead-holder-of-this-host",
        "launch/run_folder.py",
        'return alone and same and here["machine"] != "unknown"',
        "return False",
        (f"{LEASE}::test_a_holder_of_this_host_that_was_killed_is_taken_over_at_once",),
        "A holder of this host that is gone is taken over at once.",
    ),
    Mutant(
        "a-rank-that-cannot-read-is-alone",
        "launch/evaluate.py",
        "if fault is not None and ranks.world == 1:",
        "if fault is not None:",
        (f"{EVALUATORS}::test_what_one_rank_cannot_read_ends_an_evaluation_on_all",),
        "What one rank cannot read ends an evaluation on all ranks before the same batch.",
    ),
    Mutant(
        "no-such-bucket-is-no-input",
        OUTPUT,
        "return 2 if isinstance(e, NoBucket | NoKeys) else 1",
        "return 1",
        ("tests/cluster/test_s3_runs.py::test_a_bucket_that_cannot_be_meant_is_wrong_input",),
        "A bucket that is not there, or without keys, is wrong input where nothing has begun.",
    ),
    Mutant(
        "segments-overwritten",
        SEGMENTS,
        "if self.root.put_if_absent(name, body) or (",
        "if self.root.put(name, body) is None or (",
        (f"{BUCKET_RUNS}::test_another_process_may_write_in_the_same_place",),
        "No segment takes the place of another process's.",
    ),
    Mutant(
        "segments-lost-in-an-outage",
        SEGMENTS,
        "                if not reason and not lost:\n",
        "                if True:\n",
        (
            f"{BUCKET_RUNS}::"
            "test_a_bucket_that_is_away_holds_nobody_up_and_what_waited_is_there_later",
        ),
        "What a bucket did not take is sent again.",
    ),
    Mutant(
        "segments-twice-after-an-outage",
        SEGMENTS,
        "self._holds(name, body)):",
        "False):",
        (f"{BUCKET_RUNS}::test_what_was_stored_without_an_answer_is_there_once",),
        "Lines that a bucket stored without an answer stand in it once.",
    ),
    Mutant(
        "segments-sent-with-what-came-since",
        SEGMENTS,
        "place.pieces[: place.tried or None]",
        "place.pieces[:]",
        (f"{BUCKET_RUNS}::test_what_was_stored_without_an_answer_is_there_once",),
        "Lines that a bucket stored without an answer stand in it once.",
    ),
    Mutant(
        "evaluations-twice-after-an-outage",
        SEGMENTS,
        "if again and body in there[self.behind :]:",
        "if False:",
        (f"{BUCKET_RUNS}::test_what_was_stored_without_an_answer_is_there_once",),
        "An evaluation that a bucket stored without an answer stands in it once.",
    ),
    Mutant(
        "segments-of-who-lost-the-lease",
        SEGMENTS,
        "if (why := lost())",
        "if (why := lost() and '')",
        (f"{BUCKET_RUNS}::test_who_lost_the_lease_adds_no_lines",),
        "A job that was suspended past its lease adds nothing behind the lines of the next.",
    ),
    Mutant(
        "segments-without-bound",
        SEGMENTS,
        "if place.size + len(piece) > ROOM:",
        "if False:",
        (f"{BUCKET_RUNS}::test_what_has_no_room_is_dropped_and_counted",),
        "What waits for a bucket is bounded, and what is dropped is counted.",
    ),
    Mutant(
        "segments-not-cut",
        LINES,
        "if writer not in ended and cut(part, step, field):",
        "if writer not in ended:",
        (f"{BUCKET_RUNS}::test_what_is_cut_at_a_resume_is_what_is_cut_of_a_file",),
        "Redone lines are cut from segments.",
    ),
    Mutant(
        "segments-of-the-last-save-lost",
        WRITE,
        "        self.before()\n",
        "",
        (
            "tests/cluster/test_s3_runs.py::"
            "test_a_run_that_is_killed_between_any_two_writes_has_the_same_curve",
        ),
        "The lines up to a checkpoint are there when it is.",
    ),
    Mutant(
        "waits-for-the-lease",
        WRITE,
        "self._asking.join(ANSWER)",
        "self._asking.join()",
        (f"{BUCKET_RUNS}::test_a_step_does_not_wait_for_a_storage_that_is_silent",),
        "A storage that does not answer holds no step up.",
    ),
    Mutant(
        "takes-a-lease-of-another-container",
        "launch/run_folder.py",
        "same = all(body.get(key) == value for key, value in here.items())",
        'same = body.get("machine") == here["machine"]',
        (
            f"{BUCKET_RUNS}::"
            "test_a_lease_in_a_bucket_is_taken_over_at_once_where_its_lock_says_so"
            "[another container]",
        ),
        "A lock that another container does not see says nothing of its holder.",
    ),
    Mutant(
        "stop-asked-at-every-step",
        CONTROL,
        "time.sleep(self.every)",
        "time.sleep(0)",
        (f"{BUCKET_RUNS}::test_a_stop_object_is_looked_for_now_and_then",),
        "A stop object is asked for every few seconds.",
    ),
    Mutant(
        "staged-files-left",
        "data_pipeline/objects.py",
        'with part_of(at / f"vtx-{PurePosixPath(name).name}") as (folder, _):',
        "for folder in [at / name]:\n            folder.mkdir(parents=True)",
        (f"{BUCKET_RUNS}::test_staged_files_wait_in_scratch_and_those_of_the_dead_are_removed",),
        "What a killed save has staged is removed.",
    ),
    Mutant(
        "a-wrong-tokenizer-is-kept",
        "launch/outside.py",
        "            copy.unlink(missing_ok=True)\n",
        "            pass\n",
        (f"{BUCKET_RUNS}::test_a_tokenizer_is_read_from_a_copy_that_is_what_it_was",),
        "A copy that is another tokenizer is fetched anew.",
    ),
    Mutant(
        "boxes-that-overlap",
        "vtx_scale/checkpoints/read.py",
        "if not apart(boxes):",
        "if False:",
        (f"{DAMAGE}[box twice, and a hole]",),
        "Every value of a tensor is stored once.",
    ),
    Mutant(
        "data-that-no-digest-covers",
        "vtx_scale/checkpoints/read.py",
        'if data_of(name) not in manifest["files"]:',
        "if False:",
        (f"{DAMAGE}[table without its data]",),
        "No byte is loaded that the manifest does not cover.",
    ),
    Mutant(
        "s3-conditions",
        "cluster/storage/s3.py",
        'IfNoneMatch="*")',
        ")",
        (f"{CONTRACT}::test_of_64_who_put_at_once_one_wins",),
        "Of all who put an object where there is none, one wins.",
    ),
    Mutant(
        "cache-limit",
        "data_pipeline/cache.py",
        "- self.share) + need > 0:\n",
        "- self.share) + need > 1e99:\n",
        (f"{CACHE}::test_what_is_needed_last_makes_room",),
        "A cache never takes more than its limit.",
    ),
    Mutant(
        "cache-counted-late",
        "data_pipeline/cache.py",
        "            at = table.put(self.number, k, length)\n",
        "            at = table.put(self.number, k, 1)\n",
        (f"{CACHE}::test_the_book_is_what_lies_there",),
        "What is written is counted before, whole.",
    ),
    Mutant(
        "cache-nowhere",
        "data_pipeline/cache.py",
        "            if keep:\n",
        "            if True:\n",
        (f"{CACHE}::test_killed_at_any_moment", f"{CACHE}::test_what_the_disk_lost_is_dropped"),
        "What is counted nowhere is removed.",
    ),
    Mutant(
        "cache-absent",
        "data_pipeline/cache.py",
        "            if not self._path(*chunk).exists():",
        "            if False:",
        (f"{CACHE}::test_the_book_is_what_lies_there",),
        "What is counted and absent is released.",
    ),
    Mutant(
        "cache-sweeps-each-time",
        "data_pipeline/cache.py",
        ".st_mtime) > SWEPT",
        ".st_mtime) > -1",
        (f"{CACHE}::test_a_full_cache_of_usual_size_takes_chunks_quickly",),
        "A full cache of 200 GB takes a chunk in milliseconds.",
    ),
    Mutant(
        "cache-lost-for-ever",
        "data_pipeline/cache.py",
        "            if not alive(part := part_of(path)):  #",
        "            if (part := part_of(path)) and path.exists():  #",
        (f"{CACHE}::test_what_is_absent_makes_room_without_a_sweep",),
        "What is counted and absent makes room.",
    ),
    Mutant(
        "cache-first",
        "data_pipeline/cache.py",
        "order = np.argsort(-when, kind=",
        "order = np.argsort(when, kind=",
        (f"{CACHE}::test_what_is_needed_last_makes_room",),
        "What is needed last goes first.",
    ),
    Mutant(
        "cache-sooner",
        "data_pipeline/cache.py",
        "order = order[(when[order] > before) | (when[order] == np.inf)]",
        "order = order[when[order] > -np.inf]",
        (f"{CACHE}::test_what_is_needed_last_makes_room",),
        "Nothing that is needed sooner goes for what is needed later.",
    ),
    Mutant(
        "cache-mark",
        "data_pipeline/cache.py",
        "                if os.listdir(self.folder) and not self._ours():",
        "                if False:",
        (f"{CACHE}::test_a_strangers_files_are_left_alone",),
        "A folder of somebody else's files is never taken for a cache.",
    ),
    Mutant(
        "cache-renamed",
        "data_pipeline/cache.py",
        "if alive(part) or path.exists():",
        "if path.exists() or alive(part):",
        (f"{CACHE}::test_a_chunk_that_is_finished_while_another_looks_is_his_too",),
        "A chunk that another process finishes is not fetched again.",
    ),
    Mutant(
        "cache-others",
        "data_pipeline/cache.py",
        "when[~mine] = np.where(read, -np.inf, np.inf)",
        "when[~mine] = np.inf",
        (f"{CACHE}::test_two_data_sets_share_a_folder",),
        "What another run reads is left to it.",
    ),
    Mutant(
        "cache-judged-under-the-lock",
        "data_pipeline/cache.py",
        "        when = uses(chunks).astype(np.float64)\n",
        "        with self._book():\n            when = uses(chunks).astype(np.float64)\n",
        (f"{CACHE}::test_nobody_waits_while_it_is_found_out_what_is_needed",),
        "The lock of a node is not held while a plan is computed.",
    ),
    Mutant(
        "cache-in-use-elsewhere",
        "data_pipeline/cache.py",
        "        when[np.isin(chunks, self.users.in_use())] = -np.inf\n",
        "",
        (f"{CACHE}::test_what_another_run_has_in_use_stays",),
        "What a run of another order has in use is left to it.",
    ),
    Mutant(
        "cache-orders-apart",
        "data_pipeline/users.py",
        "if (u.number, u.order) == mine]",
        "if u.number == self.number]",
        (f"{CACHED}::test_two_runs_of_other_orders_share_a_cache",),
        "A run is not planned for the steps of another one.",
    ),
    Mutant(
        "cache-passes-what-is-written",
        "data_pipeline/cache.py",
        "                need -= freed\n",
        "            need -= freed\n",
        (f"{CACHE}::test_what_is_being_written_is_passed",),
        "What cannot go yet leaves its turn to the next.",
    ),
    Mutant(
        "cache-judged-once",
        "data_pipeline/cache.py",
        "return None if known else CROWDED",
        "return None",
        (f"{CACHE}::test_what_came_meanwhile_is_judged_too",),
        "What came while others were judged makes room too.",
    ),
    Mutant(
        "cache-full-disk",
        "data_pipeline/cache.py",
        "                self._ceiling = self.used() - counted\n",
        "                pass\n",
        (f"{CACHE}::test_a_full_disk_and_a_read_only_one",),
        "On a full disk what is needed later makes room.",
    ),
    Mutant(
        "cache-share",
        "data_pipeline/cache.py",
        "self._make_room(table, own, uses, before, own=True)",
        "self._make_room(table, own, uses, before)",
        (f"{CACHE}::test_a_share_is_never_exceeded",),
        "A source of a mix makes room in its own share.",
    ),
    Mutant(
        "cache-lower",
        "data_pipeline/cache.py",
        "when = never if self.number in self.users.sets() else dead",
        "when = never",
        (f"{CACHE}::test_a_lower_limit_holds_from_the_start",),
        "A limit that was lowered holds from the start.",
    ),
    Mutant(
        "warm-whole",
        "data_pipeline/tools/warm.py",
        "        if not cache.path(k).exists():\n",
        "        if False:\n",
        (f"{CACHED}::test_what_is_warm_is_fetched_no_more",),
        "The steps that are said to be warm are.",
    ),
    Mutant(
        "cache-crc",
        "data_pipeline/cached.py",
        "            self.node.cache.drop(k, file)\n",
        "            file.close()\n",
        (f"{CACHED}::test_bytes_that_the_disk_changed_are_fetched_again",),
        "A file of the cache that the disk changed is fetched again.",
    ),
    Mutant(
        "cache-new-file-unchecked",
        "data_pipeline/cached.py",
        "self._checked.get(k) == name or",
        "k in self._checked or",
        (f"{CACHED}::test_a_file_that_was_fetched_again_is_checked_again",),
        "A file that was fetched again is checked like the first.",
    ),
    Mutant(
        "cache-checked-each-time",
        "data_pipeline/cached.py",
        "self._checked.get(k) == name or",
        "",
        (f"{CACHED}::test_a_file_that_was_fetched_again_is_checked_again",),
        "A file is checked once, however often it is opened.",
    ),
    Mutant(
        "cache-torn-at-once",
        "data_pipeline/cached.py",
        "        for attempt in range(FETCHES):\n",
        "        for attempt in range(1):\n",
        (f"{CACHED}::test_a_local_chunk_is_read_again_before_it_is_masked",),
        "A chunk of a local shard is read four times before its samples are masked.",
    ),
    Mutant(
        "cache-one-prefetcher",
        "data_pipeline/prefetch.py",
        "                self._closed.wait(0.2)\n",
        "                self._closed.wait(1e9)\n",
        (f"{CACHED}::test_another_takes_over_when_the_prefetcher_dies",),
        "Another process fetches ahead when the one that did is gone.",
    ),
    Mutant(
        "cache-single-samples",
        "data_pipeline/cached.py",
        "        if size != length:\n",
        "        if True:\n",
        (f"{CACHED}::test_where_it_lies_and_how_it_is_read_changes_nothing",),
        "Where there is no room for chunks a sample is one request of its own bytes.",
    ),
    Mutant(
        "plan-lanes-end",
        "data_pipeline/plan.py",
        "        return spans(begins), spans(~begins)\n",
        "        return spans(begins), spans(begins)\n",
        (f"{PLAN}::test_the_plan_knows_when_a_chunk_is_needed",),
        "A chunk that lies in two lanes is needed in both.",
    ),
    Mutant(
        "plan-in-use",
        "data_pipeline/plan.py",
        "if end // n > begin // n else {begin // n}",
        "if False else {begin // n}",
        (f"{PLAN}::test_what_is_in_use_holds_what_each_batch_needs",),
        "What a run has in use is known across the end of an epoch.",
    ),
    Mutant(
        "plan-only-bad",
        "data_pipeline/plan.py",
        "for k in found if not self.index.only_bad(k)]",
        "for k in found]",
        (f"{CACHED}::test_a_long_chunk_of_a_bad_sample_holds_up_nobody",),
        "A bad sample of its own chunk is not fetched ahead.",
    ),
    Mutant(
        "plan-epochs",
        "data_pipeline/plan.py",
        "for at, least in ((epoch, inside), (epoch + 1, 0)):",
        "for at, least in ((epoch, inside),):",
        (f"{PLAN}::test_the_plan_knows_when_a_chunk_is_needed",),
        "What the next epoch needs is known in this one.",
    ),
    Mutant(
        "s3-lost-answer",
        "cluster/storage/s3.py",
        "return reply.tries > 1 and self._ours(name, mark)",
        "return False",
        (f"{BUCKET}::test_who_stored_an_object_knows_it",),
        "Who stored an object knows it, though the answer was lost.",
    ),
    Mutant(
        "s3-lost-answer-of-another",
        "cluster/storage/s3.py",
        'return answer is not None and answer["Metadata"].get(MARK) == mark',
        "return answer is not None",
        (f"{BUCKET}::test_who_stored_an_object_knows_it",),
        "Two who put the same content are told apart.",
    ),
    Mutant(
        "s3-lost-replace",
        "cluster/storage/s3.py",
        'if answer["Metadata"].get(MARK) == mark:',
        "if False:",
        (f"{BUCKET}::test_who_stored_an_object_knows_it",),
        "Who replaced an object knows it, though the answer was lost.",
    ),
    Mutant(
        "s3-bare-tags",
        "cluster/storage/s3.py",
        "for said in (f'\"{tag}\"', tag):",
        "for said in (f'\"{tag}\"',):",
        (f"{BUCKET}::test_a_server_that_wants_its_tags_bare",),
        "A server that wants its tags bare is asked so.",
    ),
    Mutant(
        "s3-short",
        "cluster/storage/s3.py",
        "                raise Short\n",
        "                pass\n",
        (f"{BUCKET}::test_a_read_that_fails_once_is_made_once_more",),
        "A read never gives fewer bytes in silence.",
    ),
    Mutant(
        "s3-retries-all",
        "cluster/storage/faults.py",
        "again = status >= 500",
        "again = status >= 400",
        (f"{BUCKET}::test_what_no_retry_mends_is_asked_once",),
        "What no retry mends is asked once.",
    ),
    Mutant(
        "s3-halves",
        "cluster/storage/s3.py",
        "                _tokens.halve()\n",
        "                pass\n",
        (f"{BUCKET}::test_a_read_that_fails_once_is_made_once_more",),
        "A server that is asked too much is asked half as often.",
    ),
    Mutant(
        "s3-logs",
        "cluster/storage/s3.py",
        "    logging.getLogger(noisy).setLevel(logging.INFO)",
        "    logging.getLogger(noisy).setLevel(logging.DEBUG)",
        (f"{BUCKET}::test_keys_are_in_no_text",),
        "No key stands in a log.",
    ),
    Mutant(
        "s3-abort",
        "cluster/storage/s3.py",
        "self._client().abort_multipart_upload(**upload)",
        "pass",
        (f"{BUCKET}::test_a_file_that_cannot_be_sent_leaves_nothing",),
        "A file that could not be sent leaves no parts behind.",
    ),
    Mutant(
        "s3-order",
        "cluster/storage/s3.py",
        "yield from sorted(n",
        "yield from list(n",
        (f"{CONTRACT}::test_names_come_in_the_order_of_their_bytes",),
        "Names come in the order of their bytes, whatever a server's is.",
    ),
    Mutant(
        "s3-fork",
        "cluster/storage/s3.py",
        "pace.Bucket(), threading.Lock(), object()",
        "pace.Bucket(), threading.Lock(), _process",
        (f"{BUCKET}::test_a_fork_makes_its_own_client",),
        "A client is of one process.",
    ),
    Mutant(
        "pace-once",
        "cluster/storage/pace.py",
        "                return\n            self._count",
        "                pass\n            self._count",
        (f"{BUCKET}::test_a_server_that_is_asked_too_much_is_asked_half_as_often",),
        "As many refusals at once as there are threads count as one.",
    ),
    Mutant(
        "folder-lock",
        "data_pipeline/storage.py",
        "        with locked(path):\n",
        "        if True:\n",
        (f"{CONTRACT}::test_a_counter_loses_no_step",),
        "A counter that many replace loses no step.",
    ),
    Mutant(
        "folder-digest",
        "data_pipeline/storage.py",
        "        if self.size > DIGESTED or",
        "        if self.size > -1 or",
        (f"{STORAGE}::test_a_tag_is_of_the_content",),
        "A file that was changed has another tag, whatever its time and size.",
    ),
    Mutant(
        "folder-range-tag",
        "data_pipeline/storage.py",
        "if tag is not None and file.tag != tag:",
        "if False:",
        (f"{CONTRACT}::test_a_tag_holds_a_reader_to_what_it_has_seen",),
        "Who names a tag reads no other object.",
    ),
    Mutant(
        "lock-inode",
        "data_pipeline/publish.py",
        "if flocked(fd) and os.path.samestat(os.fstat(fd), os.stat(lock)):",
        "if flocked(fd):",
        (f"{STORAGE}::test_a_lock_is_the_one_that_others_find",),
        "A lock that was removed holds nobody off.",
    ),
    Mutant(
        "lock-listed",
        "data_pipeline/storage.py",
        "(PART.match(x) or LOCK.match(x))",
        "PART.match(x)",
        (f"{STORAGE}::test_a_lock_is_no_object_and_goes",),
        "A lock is no object.",
    ),
    Mutant(
        "through-a-link",
        "data_pipeline/storage.py",
        "os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_NONBLOCK",
        (f"{DAMAGE}[link for data]",),
        "A checkpoint's files are read nowhere else.",
    ),
    Mutant(
        "a-manifest-in-other-letters",
        "vtx_scale/checkpoints/format.py",
        "sound = sound and canonical(value) == sealed",
        "pass",
        ("tests/promises/test_p3_damage.py::test_a_manifest_is_its_bytes",),
        "A manifest is what its writer sealed, to the byte.",
    ),
    Mutant(
        "the-best-is-removed-in-an-outage",
        LINES,
        """    body = b"".join(body_of(part) for part in parts)
""",
        """    try:
        body = b"".join(body_of(part) for part in parts)
    except OSError:
        return []
""",
        (
            f"{BUCKET_RUNS}::test_no_checkpoint_is_removed_where_the_best_cannot_be_known",
            f"{BUCKET_RUNS}::test_what_cannot_be_read_is_no_step_to_amend_behind",
        ),
        "One failed read costs no checkpoint that stays.",
    ),
    Mutant(
        "the-worst-stays",
        "launch/retention.py",
        "(sign * scores[step], step)",
        "(scores[step], step)",
        (f"{RETENTION}::test_the_best_stays_whichever_way_is_better",),
        "The best checkpoint stays, whichever way its number is better.",
    ),
    Mutant(
        "no-checkpoint-before-the-window",
        "launch/retention.py",
        " | set(now and [max(now)])",
        "",
        (f"{RETENTION}::test_a_checkpoint_before_the_guards_window_stays[500]",),
        "A guard has a checkpoint to go back to, however seldom a run saves.",
    ),
    Mutant(
        "auto-saves-nothing-to-keep",
        "vtx_scale/trainer/loop.py",
        " or to_keep(run, step)",
        "",
        (f"{RETENTION}::test_a_run_under_auto_keeps_them",),
        "What is to be kept is saved.",
    ),
    Mutant(
        "prune-counts-what-was-abandoned",
        "launch/checkpoints.py",
        "decisions.sweep(folder, decided.read(folder))",
        "pass",
        (f"{RETENTION}::test_prune_removes_what_was_abandoned_and_not_what_it_goes_back_to",),
        "What was abandoned takes no place of a checkpoint.",
    ),
    Mutant(
        "prunes-a-living-run",
        "launch/checkpoints.py",
        "with run_folder.acquire_lease(folder):",
        "if True:",
        (
            f"{RETENTION}::test_prune_removes_what_the_rules_let_go"
            "_and_is_refused_while_a_job_writes",
        ),
        "Checkpoints are removed by the lease's holder alone.",
    ),
    Mutant(
        "each-rank-its-own-interval",
        "vtx_scale/trainer/cadence.py",
        "stall, step, write = self.share(mine)\n        wanted",
        "stall, step, write = mine\n        wanted",
        (f"{RETENTION}::test_all_ranks_choose_what_the_first_measured",),
        "All ranks save at the same step.",
    ),
    Mutant(
        "manifest-removed-last",
        WRITE,
        "    storage.delete(manifest_name(step))",
        "    pass",
        (f"{COMMIT}::test_a_checkpoint_is_there_when_it_is_whole[1]",),
        "A checkpoint that is removed is none before its first file goes.",
    ),
    Mutant(
        "ledger-not-cut",
        LINES,
        '"ledger.jsonl", "evaluations.jsonl")',
        '"evaluations.jsonl")',
        (
            f"{COUNTS}::test_what_will_be_written_again_is_cut",
            f"{SKIPS}::test_a_run_that_leaves_behind_a_skip_goes_on_as_if_it_had_stayed",
        ),
        "Ledger lines of steps that are taken again stand in it once.",
    ),
    Mutant(
        "no-lease-under-torchrun",
        "vtx_scale/launch/worker.py",
        "lease = taken.enter_context(run_folder.acquire_lease(folder))",
        "lease = None",
        (f"{COUNTS}::test_two_writers_are_refused_under_torchrun_too",),
        "A folder has one writer, whoever started it.",
    ),
    Mutant(
        "starts-of-one-name",
        "launch/torchrun.py",
        "mine = secrets.token_hex(8)",
        "mine = str(rank)",
        (f"{TORCHRUN}::test_ranks_of_one_start_agree_on_a_name_whatever_earlier_ones_left",),
        "A start under torchrun has a name that no start before had.",
    ),
    Mutant(
        "a-greeting-of-an-earlier-start",
        "launch/torchrun.py",
        'if store.check([f"vtx/here/{mine}/{other}"]):',
        "if word:",
        (f"{TORCHRUN}::test_ranks_of_one_start_agree_on_a_name_whatever_earlier_ones_left",),
        "A rank is answered that lives, and not only one that greeted in an earlier start.",
    ),
    Mutant(
        "an-agent-waits",
        "launch/torchrun.py",
        "    for number in (signal.SIGTERM, signal.SIGKILL):",
        "    for number in ():",
        (f"{TORCHRUN}::test_an_agent_that_waits_for_one_that_is_gone_is_ended",),
        "An agent of torchrun that waits for a machine that is gone is ended.",
    ),
    Mutant(
        "a-finished-rank-is-missed",
        "launch/torchrun.py",
        'if code == "0":',
        'if code == "finished":',
        (f"{TORCHRUN}::test_an_agent_whose_ranks_have_finished_is_left_alone",),
        "An agent of torchrun whose ranks have finished may wait.",
    ),
    Mutant(
        "a-run-behind-an-option",
        "launch/cli.py",
        "args.names, rest = [*args.names, *keys], ",
        "args.names, rest = [*args.names], ",
        ("tests/surfaces/test_commands.py::test_a_run_may_be_named_behind_an_option",),
        "A run is found wherever it stands on the line.",
    ),
    Mutant(
        "a-killed-rank-is-silent",
        "launch/several.py",
        "if killed := [rank for rank in failed if codes[rank] < 0]:",
        "if killed := []:",
        ("tests/surfaces/test_several.py::test_one_reason_and_never_none",),
        "A rank that a signal ended is named.",
    ),
    Mutant(
        "a-refusal-is-said-twice",
        "launch/several.py",
        "if first and codes.get(0) not in DECIDED:",
        "if first:",
        ("tests/surfaces/test_several.py::test_one_reason_and_never_none",),
        "What all ranks know is said once.",
    ),
    Mutant(
        "a-number-of-best-is-refused-late",
        "launch/prepare.py",
        "stays(run, folder)  # it knows whether its evaluator has such a number",
        "pass",
        (f"{RETENTION}::test_a_number_that_no_evaluator_has_is_refused_before_the_start",),
        "What cannot be is refused before a rank starts.",
    ),
    Mutant(
        "a-refusal-keeps-the-lease",
        "vtx_scale/launch/worker.py",
        "lease = taken.enter_context(run_folder.acquire_lease(folder))",
        "lease = run_folder.acquire_lease(folder)",
        (f"{COUNTS}::test_a_rank_that_is_refused_gives_the_lease_back",),
        "Who may not begin holds nothing.",
    ),
    # --- factors of gradients
    Mutant(
        "average-from-three-ranks-on",
        "vtx_scale/strategies/ddp.py",
        "work.wait()",
        "work.wait(); flat.div_(self.all.world if self.all.world > 2 else 1)",
        (f"{SAME_RUN}::test_weights_under_sgd_are_those_of_one_process[3-ddp-keys1]",),
        "Gradients are sums over ranks: no factor of the world.",
    ),
    Mutant(
        "average-seen-under-adam",
        "vtx_scale/strategies/ddp.py",
        "work.wait()",
        "work.wait(); flat.div_(self.all.world if self.all.world > 2 else 1)",
        (f"{SAME_RUN}::test_losses_and_samples_are_those_of_one_process[3-ddp]",),
        "Gradients are sums over ranks: no factor of the world.",
    ),
    Mutant(
        "norm-once-a-replica",
        "vtx_scale/strategies/base.py",
        "if everywhere or leaf.copy == 0:",
        "if True:",
        (f"{SAME_RUN}::test_losses_and_samples_are_those_of_one_process[4-hsdp]",),
        "A gradient's norm counts each parameter once, however many ranks hold it.",
    ),
    Mutant(
        "scale-left-in-the-gradients",
        LOOP,
        "clip, whole = optim.clip, 1 / self.precision.scale",
        "clip, whole = optim.clip, 1.0",
        (f"{TRAINER}::test_half_precision_follows_the_curve[1-single-fp16]",),
        "float16's scale is taken out of the gradients before a step.",
    ),
    Mutant(
        "half-precision-that-drifts",
        LOOP,
        "part = part / max(total, 1.0)",
        "part = part / max(total, 1.0) "
        "* (0.9 if self.precision.compute and self.progress.step > 0 else 1.0)",
        (f"{TRAINER}::test_half_precision_follows_the_curve[1-single-bf16]",),
        "A run in half precision has the curve of float32, beyond its first step too.",
    ),
    # --- random numbers of a place
    Mutant(
        "dropout-without-its-block",
        "vtx_scale/blocks/slots.py",
        'slots.uniform(".".join(purpose), *shape)',
        "slots.uniform(purpose[-1], *shape)",
        (f"{DROPS}::test_no_two_blocks_drop_alike",),
        "Each block drops numbers of its own.",
    ),
    Mutant(
        "drop-path-without-its-block",
        "vtx_scale/blocks/slots.py",
        'slots.uniform(".".join(purpose)) >= rate',
        "slots.uniform(purpose[-1]) >= rate",
        (f"{DROPS}::test_no_two_blocks_drop_alike",),
        "Each block leaves out paths of its own.",
    ),
    Mutant(
        "blocks-of-one-name",
        "vtx_scale/backbones/vit.py",
        'name=f"blocks.{i}"',
        'name="blocks"',
        (f"{DROPS}::test_no_two_blocks_drop_alike",),
        "Each block drops by a name of its own.",
    ),
    Mutant(
        "both-paths-alike",
        "vtx_scale/blocks/attention.py",
        'self.name, "path2"',
        'self.name, "path1"',
        (f"{DROPS}::test_no_two_blocks_drop_alike",),
        "The two paths of a block are left out apart from one another.",
    ),
    Mutant(
        "captioner-both-directions-alike",
        "vtx_scale/backbones/captioner.py",
        '"back" if back else "forward", "embedding"',
        '"forward", "embedding"',
        (f"{DROPS}::test_no_two_places_of_an_objective_draw_the_same",),
        "Both directions of a captioner drop numbers of their own.",
    ),
    # --- what evaluators, probes and exports say
    Mutant(
        "retrieval-finds-masked-slots",
        "vtx_scale/evaluators/retrieval.py",
        "keep = torch.cat(valid) if valid",
        "keep = torch.ones_like(torch.cat(valid)) if valid",
        (f"{EVALUATORS}::test_retrieval_is_that_of_the_valid_pairs_by_brute_force",),
        "A masked slot is neither asked for nor found.",
    ),
    Mutant(
        "retrieval-of-equal-captions",
        "vtx_scale/evaluators/retrieval.py",
        "caption_N[near] == caption_N[:, None]",
        "near == torch.arange(len(near))[:, None]",
        (f"{EVALUATORS}::test_retrieval_is_that_of_the_valid_pairs_by_brute_force",),
        "A caption that stands twice counts as found with either.",
    ),
    Mutant(
        "accuracy-of-masked-slots",
        "vtx_scale/evaluators/accuracy.py",
        "labelled = batch.valid & (label",
        "labelled = (label",
        (f"{EVALUATORS}::test_a_masked_slot_weighs_nothing[accuracy]",),
        "A masked slot weighs nothing in an evaluation.",
    ),
    Mutant(
        "zero-shot-of-masked-slots",
        "vtx_scale/evaluators/zero_shot.py",
        "labelled = batch.valid & (label",
        "labelled = (label",
        (f"{EVALUATORS}::test_a_masked_slot_weighs_nothing[zero_shot]",),
        "A masked slot weighs nothing in an evaluation.",
    ),
    Mutant(
        "captions-of-masked-slots",
        "vtx_scale/evaluators/captions.py",
        "keep = batch.valid",
        "keep = torch.ones_like(batch.valid)",
        (f"{EVALUATORS}::test_a_masked_slot_weighs_nothing[captions]",),
        "A masked slot weighs nothing in an evaluation.",
    ),
    Mutant(
        "loss-of-masked-slots",
        "vtx_scale/evaluators/loss.py",
        "nats[batch.valid].sum()",
        "nats.sum()",
        (f"{EVALUATORS}::test_a_masked_slot_weighs_nothing[loss]",),
        "A masked slot weighs nothing in an evaluation.",
    ),
    Mutant(
        "reconstruction-of-masked-slots",
        "vtx_scale/evaluators/reconstruction.py",
        "keep = batch.valid",
        "keep = torch.ones_like(batch.valid)",
        (f"{EVALUATORS}::test_a_masked_slot_weighs_nothing[reconstruction]",),
        "A masked slot weighs nothing in an evaluation.",
    ),
    Mutant(
        "dalle-probe-shares-exchanged",
        "vtx_scale/objectives/dalle.py",
        "return self.spec.text_share * text_B + (1 - self.spec.text_share) * code_B",
        "return (1 - self.spec.text_share) * text_B + self.spec.text_share * code_B",
        (f"{DALLE}::test_the_loss_of_a_sample_is_what_training_adds_up",),
        "DALL-E's probe says the loss as training weighs it.",
    ),
    Mutant(
        "open-clip-statistics-exchanged",
        "vtx_scale/interop/clip.py",
        """        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic" if""",
        """        "mean": STD,
        "std": MEAN,
        "interpolation": "bicubic" if""",
        ("tests/parity/test_clip.py::test_pixels_are_said_to_be_the_librarys[open_clip]",),
        "open_clip prepares pixels as the run did.",
    ),
    Mutant(
        "siglip-is-cut-by-timm",
        "vtx_scale/interop/vit.py",
        '"crop_mode": "squash" if squash else "center"',
        '"crop_mode": "center"',
        ("tests/parity/test_strangers.py::test_the_same_features[siglip-timm]",),
        "timm looks at pictures as the run did: SigLIP's are squashed.",
    ),
    Mutant(
        "exported-captions-filled-otherwise",
        "vtx_scale/interop/tokens.py",
        "    fill = words.end if form.canonical else 0\n",
        "    fill = words.end\n",
        ("tests/parity/test_exported_tokenizer.py::test_by_tokenizers_alone[bytes]",),
        "An exported tokenizer gives the ids that the run reads.",
    ),
    Mutant(
        "exported-specials-can-be-spelled",
        "vtx_scale/interop/tokens.py",
        '"split_special_tokens": True',
        '"split_special_tokens": False',
        ("tests/parity/test_exported_tokenizer.py::test_the_ids_are_ours[bytes-clip]",),
        "A caption that spells the end token does not end itself, in an export neither.",
    ),
    Mutant(
        "a-program-holds-a-pickle",
        "vtx_scale/interop/programs.py",
        "    program.example_inputs = None",
        "    program.example_inputs = ((rows,), {})",
        ("tests/parity/test_programs.py::test_torch_export[clip_vit_b32]",),
        "No pickle is in a program.",
    ),
    Mutant(
        "a-program-holds-both-towers",
        "vtx_scale/interop/programs.py",
        "    return pruned(program)",
        "    return program",
        ("tests/parity/test_programs.py::test_its_page_and_what_it_does_not_use",),
        "A program has the tensors that it uses alone.",
    ),
    Mutant(
        "pushed-in-public",
        "launch/hub.py",
        "private=True",
        "private=False",
        ("tests/parity/test_push.py::test_every_file_arrives",),
        "A repository that an export makes is private.",
    ),
    Mutant(
        "pushed-by-nobody",
        "launch/export.py",
        "        check_hub(args.push)",
        "        pass",
        ("tests/parity/test_push.py::test_nobody_logged_in_is_refused_first",),
        "Who is not logged in is told before anything is written.",
    ),
    Mutant(
        "timm-classes-are-numbers",
        "vtx_scale/interop/beside.py",
        "body.update(label_names=list(names))",
        "body.update(label_names=[str(k) for k in range(len(names))])",
        ("tests/parity/test_strangers.py::test_classes_have_their_names[timm]",),
        "Classes keep their names in an export.",
    ),
    Mutant(
        "timm-statistics-exchanged",
        "vtx_scale/interop/clip.py",
        """                "mean": MEAN,
                "std": STD,""",
        """                "mean": STD,
                "std": MEAN,""",
        ("tests/parity/test_clip.py::test_pixels_are_said_to_be_the_librarys[timm]",),
        "timm prepares pixels as the run did.",
    ),
    Mutant(
        "resnet-statistics-exchanged",
        "vtx_scale/interop/resnet.py",
        """                "mean": mean,
                "std": std,""",
        """                "mean": std,
                "std": mean,""",
        ("tests/parity/test_resnet.py::test_pixels_are_said_to_be_the_librarys",),
        "timm prepares pixels as the run did.",
    ),
    Mutant(
        "vit-statistics-exchanged",
        "vtx_scale/interop/vit.py",
        "to, out, pixels.mean, pixels.std, pixels.centre",
        "to, out, pixels.std, pixels.mean, pixels.centre",
        ("tests/parity/test_vit.py::test_of_any_objective",),
        "timm and transformers prepare pixels as the run did.",
    ),
    Mutant(
        "index-names-files-elsewhere",
        "vtx_scale/interop/files.py",
        'Path(name).is_absolute() or ".." in Path(name).parts',
        "not name",
        ("tests/vtx_scale/test_weight_files.py::test_an_index_names_no_file_elsewhere",),
        "Weights are read from the folder that was named, and from no other.",
    ),
    Mutant(
        "foreign-config-not-compared",
        "vtx_scale/specs/foreign/compare.py",
        "if not hasattr(owner, last) or (have := getattr(owner, last)) == want:",
        "if hasattr(owner, last) and (have := getattr(owner, last)) != 0:",
        (f"{FOREIGN}::test_what_a_config_decides_is_set",),
        "What a config beside foreign weights decides is set in the recipe's stead.",
    ),
    Mutant(
        "foreign-config-not-refused",
        "vtx_scale/specs/foreign/compare.py",
        "    for clause in found.refused:",
        "    for clause in found.refused[:0]:",
        (
            f"{FOREIGN}::test_what_cannot_be_is_refused",
            f"{FOREIGN}::test_a_blur_pool_and_a_grid_of_equal_count_show_in_the_config_alone",
        ),
        "Foreign weights that compute otherwise are refused, field by field.",
    ),
    Mutant(
        "foreign-end-of-text-anywhere",
        "vtx_scale/specs/foreign/transformers.py",
        "    if end in (2, last):",
        "    if end >= 0:",
        (f"{FOREIGN}::test_what_cannot_be_is_refused",),
        "A CLIP whose texts end at another id than the largest is refused.",
    ),
    Mutant(
        "foreign-assumptions-in-silence",
        "vtx_scale/specs/foreign/compare.py",
        "    if beside.body is None:\n        told.append(",
        "    if beside.body is None:\n        str(",
        (f"{FOREIGN}::test_what_is_assumed_without_a_config_is_said",),
        "Without a config one line says what was assumed.",
    ),
    Mutant(
        "foreign-prefix-kept",
        "vtx_scale/interop/files.py",
        "    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}",
        "    return {name.removesuffix(prefix): tensor for name, tensor in state.items()}",
        (f"{FOREIGN}::test_prefixes_of_wrappers_are_named_and_left_out",),
        "Prefixes of wrappers are left out.",
    ),
    Mutant(
        "timm-heads-mistaken",
        "vtx_scale/specs/foreign/timm_names.py",
        '    "xsmall": 4,',
        '    "xsmall": 6,',
        ("tests/parity/test_foreign_fields.py::test_timms_architectures_are_what_their_names_say",),
        "timm's names of architectures mean here what they mean there.",
    ),
    Mutant(
        "group-norm-taken-for-batch-norm",
        "vtx_scale/interop/resnet.py",
        '        if ours and f"{norm}.running_mean" not in state:',
        '        if ours and f"{norm}.weight" not in state:',
        (f"{FOREIGN}::test_a_plain_resnet_is_taken_and_a_group_norm_shows_without_a_config",),
        "A ResNet of other norms is refused, with a config and without.",
    ),
    # --- P1: the same samples
    Mutant(
        "slots-in-no-order",
        "vtx_scale/data_pipeline/order.py",
        'return at[np.argsort(self.reversed[(at % self.n) % self.lanes], kind="stable")]',
        "return at[np.argsort(self.reversed[(at % self.n) % self.lanes])]",
        (f"{ORDER}::test_a_global_batch_is_the_same_for_every_world",),
        "Slots of a batch stand by lane and then by position.",
    ),
    Mutant(
        "sources-in-one-order",
        "vtx_scale/data_pipeline/order.py",
        "WINDOW + 256 * self.source",
        "WINDOW",
        (f"{ORDER}::test_sources_have_orders_of_their_own",),
        "Each source has an order of its own.",
    ),
    Mutant(
        "crops-of-the-first-epoch",
        "vtx_scale/data_pipeline/loader.py",
        "view, sample, epoch, n)",
        "view, sample, 0, n)",
        (f"{ORDER}::test_numbers_of_a_sample",),
        "A sample is cropped anew in each epoch.",
    ),
    Mutant(
        "batches-begin-at-0",
        "vtx_scale/data_pipeline/order.py",
        "return to_ranks(self.slots(step, batch, offset), rank, world)",
        "return to_ranks(self.slots(step, batch), rank, world)",
        (f"{DATA}::test_another_batch_size_goes_on_at_the_same_sample",),
        "Another batch size goes on at the same sample.",
    ),
    Mutant(
        "segments-draw-alike",
        "vtx_scale/data_pipeline/mix.py",
        "draws(seed, MIX, number, segment, 0, TOTAL)",
        "draws(seed, MIX, number, 0, 0, TOTAL)",
        (f"{MIX}::test_golden_block",),
        "A mix is the one that is written down, to the byte.",
    ),
    Mutant(
        "mix-by-chance-alone",
        "vtx_scale/data_pipeline/mix.py",
        "((k << np.uint64(32)) + words[at : at + count]) << np.uint64(15)",
        "words[at : at + count] << np.uint64(31)",
        (f"{MIX}::test_a_source_has_its_share_everywhere",),
        "A source of a mix is never far from its share.",
    ),
    Mutant(
        "sources-numbered-in-a-byte",
        "vtx_scale/data_pipeline/mix.py",
        "np.arange(len(weights), dtype=np.min_scalar_type(len(weights) - 1))",
        "np.arange(len(weights)).astype(np.uint8)",
        (f"{MIX}::test_many_sources_are_told_apart",),
        "Each of many sources is read.",
    ),
    Mutant(
        "a-change-starts-sources-anew",
        "vtx_scale/data_pipeline/mix.py",
        "self._before[segment][i] + b * weights[i]",
        "b * weights[i]",
        (f"{MIX}::test_a_source_has_its_share_everywhere",),
        "Where weights change, each source goes on behind what was read of it.",
    ),
    Mutant(
        "mix-slots-by-position",
        "vtx_scale/data_pipeline/mix.py",
        "np.lexsort((at, source, self.orders[0].reversed[lane]))",
        "np.argsort(at)",
        (f"{MIX}::test_neighbouring_slots_keep_to_their_chunks",),
        "Ranks read their own chunks of a mix, and next to no others.",
    ),
    Mutant(
        "a-weight-of-nothing",
        "vtx_scale/data_pipeline/weights.py",
        "if count < 1:",
        "if count < 0:",
        (f"{MIX}::test_ties_go_to_the_first_and_a_weight_of_nothing_is_refused",),
        "A source that would never come is refused.",
    ),
    Mutant(
        "sources-share-their-crops",
        "vtx_scale/data_pipeline/loader.py",
        "draw = uniforms(self.seed, source, own, epoch)",
        "draw = uniforms(self.seed, 0, own, epoch)",
        (f"{MIX_DATA}::test_pixels_of_a_source_are_its_own",),
        "Each source of a mix draws numbers of its own.",
    ),
    Mutant(
        "ids-without-their-source",
        "vtx_scale/data_pipeline/sources.py",
        "if self.names:",
        "if not self.names:",
        (f"{MIX_DATA}::test_a_bad_sample_is_named_by_its_source",),
        "A sample of a mix is named with its source.",
    ),
    Mutant(
        "a-state-of-other-weights",
        "vtx_scale/data_pipeline/state.py",
        "if known != mine:",
        "if not mine:",
        (f"{MIX_DATA}::test_weights_may_change_behind_a_state_and_not_before_it",),
        "The state of a mix goes on with the weights that it was made with.",
    ),
    Mutant(
        "weights-out-of-the-hash",
        "vtx_scale/launch/override.py",
        "if len(sources) > 1:",
        "if len(sources) > 2:",
        (f"{AMENDMENTS}::test_weights_count_in_the_hash_and_names_do_not",),
        "What a mix weighs is learned, and counts in the hash.",
    ),
    Mutant(
        "a-source-hides-behind-others",
        "vtx_scale/trainer/sources.py",
        "limit.add(int(masked[i]), int(valid[i]), last)",
        "limit.add(0, 0, last)",
        (f"{AMENDMENTS}::test_a_source_with_too_many_bad_samples_is_named",),
        "Each source of a mix has a limit of bad samples of its own.",
    ),
    Mutant(
        "segments-forgotten-at-a-resume",
        "vtx_scale/launch/worker.py",
        "segments_of(known),",
        "[],",
        (f"{AMENDMENTS}::test_interrupted_and_amended_on_the_way_it_is_the_undisturbed_run",),
        "A resumed mix keeps the weights that it had before.",
    ),
    Mutant(
        "amended-rates-are-not-taken",
        LOOP,
        "run, p = self.now(), self.progress",
        "run, p = self.run, self.progress",
        (f"{AMENDMENTS}::test_rates_and_weights_are_those_of_the_decisions",),
        "An amendment holds from its step on.",
    ),
    Mutant(
        "a-finished-step-is-amended",
        "vtx_scale/launch/amend.py",
        "if step <= max(saved, done, 0):",
        "if step <= max(saved, 0):",
        (f"{AMENDMENTS}::test_a_step_that_was_computed_or_does_not_come_is_refused",),
        "What was computed cannot be amended.",
    ),
    Mutant(
        "what-did-not-know-stays",
        "vtx_scale/launch/decided.py",
        'return any(manifest["step"] > d.behind for',
        'return any(manifest["step"] > d.step for',
        (f"{AMENDMENTS}::test_what_a_living_run_computed_without_knowing_is_computed_again",),
        "A step that did not know of an amendment is computed again.",
    ),
    Mutant(
        "what-an-amendment-goes-back-to-is-removed",
        "vtx_scale/launch/worker.py",
        "[d.name for d in parts.decisions])",
        "None)",
        (f"{AMENDMENTS}::test_a_run_keeps_what_an_amendment_goes_back_to",),
        "A run that is amended while it trains keeps a checkpoint from before.",
    ),
    Mutant(
        "the-newest-before-a-decision-goes",
        "launch/retention.py",
        "found |= before_decisions(there, new)",
        "before_decisions(there, new)",
        (f"{RETENTION}::test_what_a_decision_goes_back_to_stays",),
        "A checkpoint from before each decision that a run does not follow stays.",
    ),
    Mutant(
        "a-fork-that-is-undone",
        "launch/run_folder.py",
        "check_fork(old, run, decided.read(folder), newest)",
        "pass",
        (f"{AMENDMENTS}::test_a_fork_that_an_amendment_would_undo_is_refused",),
        "A fork's value holds, or is refused.",
    ),
    Mutant(
        "position-from-the-step",
        "vtx_scale/data_pipeline/loader.py",
        "self.step, self.batches.offset = divmod(position, self.batches.global_batch)",
        "self.step = position // self.batches.global_batch",
        (f"{DATA}::test_another_batch_size_goes_on_at_the_same_sample",),
        "The state of the data is a position.",
    ),
    Mutant(
        "reads-from-the-beginning",
        "vtx_scale/data_pipeline/loader.py",
        "sampler=range(self.step, self.stop)",
        "sampler=range(0, self.stop)",
        (f"{DATA}::test_the_state_names_the_next_batch_at_every_step",),
        "A resumed run reads the next sample.",
    ),
    Mutant(
        "last-sample-not-evaluated",
        "vtx_scale/data_pipeline/loader.py",
        "np.where(at < self.n, at, -1)",
        "np.where(at < self.n - 1, at, -1)",
        ("tests/data_pipeline/test_loader.py::test_an_evaluation_sees_each_sample_once",),
        "An evaluation sees each sample once.",
    ),
    Mutant(
        "chunks-unchecked",
        "vtx_scale/data_pipeline/read.py",
        "zlib.crc32(body) == int(self.index.chunk_crc[k])",
        "True",
        (f"{DATA}::test_a_damaged_chunk_masks_its_samples_and_no_other",),
        "Bytes that changed since the index was made are no sample.",
    ),
    # --- what is decoded of a picture
    Mutant(
        "scaled-below-the-output",
        "data_pipeline/crops.py",
        "if by <= most",
        "if by <= 2 * most",
        ("tests/data_pipeline/test_crops.py::test_scaled_pixels_are_near_exact_ones",),
        "A scaled crop is never smaller than what comes of it.",
    ),
    Mutant(
        "scaled-without-limits",
        "data_pipeline/crops.py",
        "    except BadSample:\n        return None",
        "    except BadSample:\n        pass",
        ("tests/data_pipeline/test_crops.py::test_limits_are_those_of_the_whole",),
        "What is refused as a whole is refused as a part.",
    ),
    Mutant(
        "scaled-evaluations",
        "vtx_scale/objectives/image_reader.py",
        'self.data.decode if self.train else "exact"',
        "self.data.decode",
        ("tests/data_pipeline/test_crops.py::test_each_recipe_trains_by_it_or_refuses_it",),
        "Evaluations see exact pixels.",
    ),
    Mutant(
        "policy-unnumbered",
        "launch/override.py",
        'body["data"]["decode"] = DECODE[run.data.decode]',
        "pass",
        ("tests/data_pipeline/test_crops.py::test_the_policy_counts_in_the_hash",),
        "Other pixels are another hash.",
    ),
    Mutant(
        "policy-in-vain",
        "launch/checks.py",
        'elif changed(data, "decode"):',
        "elif False:",
        ("tests/data_pipeline/test_crops.py::test_a_reader_that_does_not_say_so_refuses_it",),
        "A reader that does not say that it heeds data.decode refuses it.",
    ),
    Mutant(
        "cut-without-margin",
        "data_pipeline/restarts.py",
        "max(0, begin - by) // size, -(-min(limit, end + by) // size)",
        "max(0, begin) // size, -(-min(limit, end) // size)",
        ("tests/data_pipeline/test_restarts.py::test_cut_pixels_are_those_of_the_whole",),
        "The pixels of a cut are those of the whole.",
    ),
    Mutant(
        "cut-too-narrow",
        "data_pipeline/restarts.py",
        "NARROW = 5 ",
        "NARROW = 0 ",
        ("tests/data_pipeline/test_restarts.py::test_the_last_few_pixels",),
        "The pixels of a cut are those of the whole, also of two pixels of a colour.",
    ),
    Mutant(
        "cut-unchecked",
        "data_pipeline/restarts.py",
        "checksum(body, at) != body[at : at + 4]",
        "False",
        ("tests/data_pipeline/test_restarts.py::test_a_table_of_other_bytes_is_none",),
        "Damage outside a crop is seen.",
    ),
    # --- P2: the same run
    Mutant(
        "leave-where-all-ask",
        LOOP,
        "return loss_value, leave > 0,",
        "return loss_value, leave >= self.strategy.all.world,",
        (f"{STEP}::test_all_leave_where_one_is_asked_to",),
        "A request to leave that one rank hears is every rank's.",
    ),
    Mutant(
        "clip-makes-longer",
        LOOP,
        "clip / norm if clip is not None and norm > clip else 1.0",
        "clip / norm if clip is not None else 1.0",
        (f"{STEP}::test_a_step_goes_as_far_as_its_norm_and_no_farther_than_the_limit",),
        "A gradient below the limit is left as it is.",
    ),
    Mutant(
        "clip-each-by-the-whole",
        LOOP,
        "whole * min(1.0, clip / max(n, 1e-12))",
        "whole * min(1.0, clip / max(norm, 1e-12))",
        (f"{STEP}::test_each_tensor_is_held_to_the_limit_by_its_own_norm",),
        "`clip_each` holds each tensor by its own norm.",
    ),
    Mutant(
        "limits-not-held",
        LOOP,
        "self.strategy.clamp()",
        "pass",
        (f"{STEP}::test_limits_hold_after_each_step",),
        "Parameters with limits are within them after a step.",
    ),
    Mutant(
        "forward-a-step-ahead",
        LOOP,
        "self.strategy.forward(micro, self.progress.step)",
        "self.strategy.forward(micro, self.progress.step + 1)",
        (f"{STEP}::test_all_that_a_step_calls_is_told_its_number",),
        "What hangs on a step's number is told that number.",
    ),
    Mutant(
        "prepare-a-step-ahead",
        LOOP,
        "self.objective.prepare(batch, p.step)",
        "self.objective.prepare(batch, p.step + 1)",
        (f"{STEP}::test_all_that_a_step_calls_is_told_its_number",),
        "What hangs on a step's number is told that number.",
    ),
    Mutant(
        "follow-a-step-ahead",
        LOOP,
        "self.strategy.follow(step)",
        "self.strategy.follow(step + 1)",
        (f"{STEP}::test_all_that_a_step_calls_is_told_its_number",),
        "What hangs on a step's number is told that number.",
    ),
    Mutant(
        "buffers-a-step-ahead",
        LOOP,
        "self.objective.update_buffers(step)",
        "self.objective.update_buffers(step + 1)",
        (f"{STEP}::test_all_that_a_step_calls_is_told_its_number",),
        "What hangs on a step's number is told that number.",
    ),
    Mutant(
        "rate-a-step-ahead",
        LOOP,
        "run.schedule(p.step, run.steps)",
        "run.schedule(p.step + 1, run.steps)",
        (f"{SKIPS}::test_a_step_is_taken_at_its_own_rate_and_decay",),
        "The rate moves on its schedule.",
    ),
    Mutant(
        "frozen-steps-not-restored",
        RESTORE,
        'manifest.get("frozen", 0)',
        "0",
        ("tests/vtx_scale/test_dino.py::test_five_starts_leave_no_trace",),
        "What was frozen has a correction that counts its own steps, also after a resume.",
    ),
    Mutant(
        "sums-early-under-ddp",
        "vtx_scale/strategies/ddp.py",
        "self.live = last and self.all.world > 1",
        "self.live = self.all.world > 1",
        (f"{SAME_RUN}::test_weights_under_sgd_are_those_of_one_process[2-ddp-keys0]",),
        "Gradients of micro-batches are summed over ranks once.",
    ),
    Mutant(
        "fsdp-halves",
        "vtx_scale/strategies/fsdp.py",
        "part.set_gradient_divide_factor(1.0)",
        "part.set_gradient_divide_factor(2.0)",
        (f"{SAME_RUN}::test_weights_under_sgd_are_those_of_one_process[3-fsdp-keys2]",),
        "Gradients are sums over ranks: no factor of the world.",
    ),
    Mutant(
        "gathered-gradients-averaged",
        "vtx_scale/distributed/ranks.py",
        "        return out, None",
        "        return out / world, None",
        ("tests/vtx_scale/test_clip_loss.py::test_loss_and_gradients_equal_brute_force",),
        "A gradient that comes back from all ranks is their sum.",
    ),
    Mutant(
        "initial-values-of-a-block",
        "vtx_scale/trainer/init.py",
        'f"{seed}/{name}/{k}"',
        'f"{seed}/{name}/{k - lo // BLOCK}"',
        (f"{TRAINER}::test_initial_values_do_not_hang_on_the_sharding",),
        "Initial values do not hang on how a tensor is cut.",
    ),
    # --- tensor parallelism
    Mutant(
        "qkv-cut-as-one-matrix",
        "vtx_scale/blocks/attention.py",
        "Colwise(parts=3, heads=heads)",
        "Colwise(heads=heads)",
        (f"{CUT}::test_a_cut_block_is_the_whole_one[causal]",),
        "A rank has its part of q, of k and of v, not the first rows of the three.",
    ),
    Mutant(
        "gradient-of-a-share",
        CUT_LAYERS,
        "dist.all_reduce(grad, group=ctx.group)",
        "pass",
        (f"{CUT}::test_a_cut_block_is_the_whole_one[causal]",),
        "What comes before a block that is cut has the gradient of all its heads.",
    ),
    Mutant(
        "a-bias-of-every-rank",
        CUT_LAYERS,
        "F.linear(x, layer.weight), group)",
        "F.linear(x, layer.weight, layer.bias), group)",
        (f"{CUT}::test_a_cut_block_is_the_whole_one[causal]",),
        "A bias behind a sum over ranks is added once.",
    ),
    Mutant(
        "every-share-drops-alike",
        "vtx_scale/blocks/slots.py",
        "drawn.narrow(dim, axis.rank * here, here)",
        "drawn.narrow(dim, 0, here)",
        (f"{CUT}::test_a_cut_block_is_the_whole_one[plain]",),
        "What is dropped of hidden units does not hang on the rank that has them.",
    ),
    Mutant(
        "weights-dropped-of-the-first-heads",
        "vtx_scale/backbones/captioner.py",
        '"weights", axis=self.axis, dim=-3',
        '"weights"',
        (f"{CUT}::test_a_cut_block_is_the_whole_one[captions]",),
        "What is dropped of an attention's weights does not hang on the rank that has the head.",
    ),
    Mutant(
        "heads-of-one-rank-looked-at",
        "vtx_scale/blocks/attention.py",
        "self.attn.axis.gather_plain(share.softmax(-1).transpose(0, 1))",
        "(share.softmax(-1).transpose(0, 1))",
        (f"{CUT}::test_heads_are_looked_at_and_remembered",),
        "How a block attends is told of all heads, whichever rank has them.",
    ),
    Mutant(
        "copies-on-an-axis-are-parts",
        TP,
        "copies=axis.world, copy=axis.rank",
        "copies=1, copy=0",
        (f"{CUT}::test_slices_cover_every_tensor_once[2-tp-dalle_12b-adamw]",),
        "What an axis does not cut is stored and counted once.",
    ),
    Mutant(
        "rows-of-the-first-box",
        "vtx_scale/distributed/sharding.py",
        "        at += b - a\n",
        "",
        (f"{CUT}::test_slices_cover_every_tensor_once[4-fsdp-dalle_12b-adafactor]",),
        "A shard of what an axis left of q, k and v lies where it came from.",
    ),
    Mutant(
        "copies-left-to-drift",
        TP,
        "            self.align()",
        "            pass",
        (f"{CUT}::test_copies_cannot_drift_apart[2-keys0]",),
        "Copies on an axis have one gradient, whatever their ranks computed.",
    ),
    Mutant(
        "a-bad-sample-of-every-rank",
        LOOP,
        "if not self.strategy.speaks:",
        "if False:",
        (f"{CUT}::test_a_bad_sample_is_counted_once",),
        "A sample that all ranks of an axis meet stands in the ledger once.",
    ),
    Mutant(
        "every-rank-of-an-axis-counts",
        TP,
        "self.speaks = self.axis.rank == 0",
        "self.speaks = True",
        (f"{CUT}::test_a_run_on_an_axis_is_the_run_of_one_process[2-tp-clip_vit_b32-keys4]",),
        "Samples that all ranks of an axis see are counted once.",
    ),
    Mutant(
        "columns-added-up-by-nobody",
        TP,
        "((part.dim, axis.group),) if axis.group is not None else ()",
        "()",
        (f"{CUT}::test_a_run_on_an_axis_is_the_run_of_one_process[2-tp-vit_g14_jft3b-keys6]",),
        "Adafactor's means over a dimension that an axis cuts are means over all of it.",
    ),
    # --- P3: one checkpoint
    Mutant(
        "stored-by-every-replica",
        STAGING,
        "owner(s) != (s.replica if copy is None else copy)",
        "False",
        (f"{COMMIT}::test_what_several_ranks_wrote_comes_back",),
        "What several ranks hold is stored once.",
    ),
    Mutant(
        "not-staged",
        STAGING,
        "return room.copy_(tensor)",
        "return tensor",
        (f"{COMMIT}::test_a_save_takes_what_there_was_when_it_was_asked_for",),
        "A save holds the step at which it was asked for.",
    ),
    Mutant(
        "keeps-one-less",
        WRITE,
        "[: -keep if keep > 0 else None]",
        "[: -keep + 1 or None]",
        (f"{COMMIT}::test_the_oldest_are_removed",),
        "As many checkpoints stay as were asked for.",
    ),
    Mutant(
        "digests-unread",
        "vtx_scale/checkpoints/read.py",
        'if digest_of(file.file) != entry["sha256"]:',
        "if False:",
        (
            "tests/promises/test_p3_one_checkpoint.py"
            "::test_a_damaged_file_is_found_and_the_older_checkpoint_taken"
            "[flip-data-00000.e0.safetensors]",
        ),
        "Every byte is verified when it is read.",
    ),
    Mutant(
        "manifest-unchecked",
        "vtx_scale/checkpoints/format.py",
        'sound = value["sum"] == hashlib.sha256(canonical(body)).hexdigest()',
        "sound = True",
        (
            "tests/promises/test_p3_one_checkpoint.py"
            "::test_a_damaged_file_is_found_and_the_older_checkpoint_taken[flip-manifest.json]",
        ),
        "A manifest is what its writer sealed.",
    ),
    Mutant(
        "left-over-tensors",
        "vtx_scale/checkpoints/read.py",
        "    if extra:",
        "    if False:",
        (f"{COMMIT}::test_a_checkpoint_of_another_model_is_refused",),
        "A checkpoint of another model is refused.",
    ),
    Mutant(
        "other-data",
        RESTORE,
        'if data["fingerprint"] != fingerprint and not forked:',
        "if False:",
        (f"{COMMIT}::test_a_checkpoint_of_other_data_is_refused_wherever_it_lies",),
        "A checkpoint of other data is refused.",
    ),
    Mutant(
        "replica-by-the-wrong-axis",
        "vtx_scale/strategies/fsdp.py",
        "copies, copy = self.all.world // ways, self.all.rank // ways",
        "copies, copy = self.all.world // ways, self.all.rank % (self.all.world // ways)",
        ("tests/promises/test_p3_one_checkpoint.py::test_each_value_is_stored_once",),
        "What hsdp's replicas hold is stored once, by one of them.",
    ),
    # --- P4: nothing lost in silence
    Mutant(
        "padding-counted-as-bad",
        LOOP,
        "(~batch.valid & (batch.ids >= 0)).sum()",
        "(~batch.valid).sum()",
        (f"{STEP}::test_padding_is_no_bad_sample",),
        "Padding is no bad sample.",
    ),
    Mutant(
        "save-fails-for-ever",
        LOOP,
        "        self.writer.error = None",
        "        pass",
        (f"{STEP}::test_a_part_that_one_rank_cannot_write_costs_that_save_alone",),
        "A save that failed is said once.",
    ),
    Mutant(
        "evaluation-not-made-up",
        "vtx_scale/launch/restore.py",
        "return [name for name, flag in zip(names, missing, strict=True) if flag]",
        "return []",
        (f"{COUNTS}::test_an_evaluation_that_was_due_is_made_up_for",),
        "An evaluation that was due is made up for.",
    ),
    Mutant(
        "samples-of-all-slots",
        LOOP,
        "p.samples += int(valid)",
        "p.samples += self.run.global_batch",
        ("tests/promises/test_p4_nothing_in_silence.py::test_bad_samples_are_masked_and_named",),
        "Samples are those that were seen.",
    ),
    Mutant(
        "notes-unsaid",
        LOOP,
        "for reason, count in batch.notes.items():",
        "for reason, count in ():",
        ("tests/promises/test_p4_nothing_in_silence.py::test_bad_samples_are_masked_and_named",),
        "What is let pass is counted.",
    ),
    # --- P5: open at both ends
    Mutant(
        "ratio-cut-too-short",
        "vtx_scale/interop/clip.py",
        "else (mlp + 0.5) / width",
        "else mlp / width",
        ("tests/parity/test_clip.py::test_mlp_ratio_comes_back",),
        "Other libraries build the network that was exported.",
    ),
    Mutant(
        "positions-from-a-corner",
        "vtx_scale/blocks/position.py",
        "(new + 0.1) / old, positions.device",
        "new / old, positions.device",
        ("tests/vtx_scale/test_slots.py::test_positions_at_another_resolution",),
        "Positions come in at another resolution as their authors resample them.",
    ),
    # --- what only informs
    Mutant(
        "a-full-log-ends-the-run",
        OUTPUT,
        "            self.failed(name, why(e), counted=isinstance(e, Counted))\n",
        "            raise\n",
        (f"{WATCHERS}::test_stderr[gone]",),
        "What only informs never ends a training.",
    ),
    Mutant(
        "a-pipe-is-waited-for",
        OUTPUT,
        "os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC",
        "os.O_APPEND | os.O_CREAT | os.O_CLOEXEC",
        (f"{WATCHERS}::test_a_pipe_that_nobody_reads",),
        "What only informs never holds a training up.",
    ),
    Mutant(
        "drops-uncounted",
        OUTPUT,
        "            self.note(name, lost, state.reason)\n",
        "",
        (f"{WATCHERS}::test_an_ear_that_comes_back_hears_once",),
        "What could not be written is counted in the ledger.",
    ),
    Mutant(
        "a-torn-line-grows",
        OUTPUT,
        'b"\\n" * is_torn(fd) + line',
        "line",
        (f"{WATCHERS}::test_a_torn_line_stays_alone",),
        "A line that a full disk has cut swallows no other.",
    ),
    Mutant(
        "torn-lines-thrown-away",
        LINES,
        "            torn.append(",
        "            ().count(",
        (f"{WATCHERS}::test_what_is_no_json_is_kept_aside",),
        "What cannot be parsed is kept aside.",
    ),
    Mutant(
        "nan-in-json",
        OUTPUT,
        "return value if math.isfinite(value) else None",
        "return value",
        (f"{WATCHERS}::test_lines_are_strict_json",),
        "Metrics and ledger are strict JSON.",
        also=(("allow_nan=False", "allow_nan=True"),),
    ),
    Mutant(
        "a-part-of-a-list-is-lost",
        OUTPUT,
        "values[:middle], values[middle:]",
        "values[:middle], values[middle:-1] or values[middle:]",
        (f"{WATCHERS}::test_long_entries_go_to_several_lines",),
        "A long list of samples stands in the ledger whole.",
    ),
    Mutant(
        "events-not-cut",
        "vtx_scale/trainer/events.py",
        "if at > step:",
        "if False:",
        (f"{WATCHERS}::test_events_are_cut_where_they_are_torn",),
        "TensorBoard has each step once after a resume.",
    ),
    Mutant(
        "an-open-board-not-warned",
        "vtx_scale/trainer/events.py",
        "step=self.begins, session_log",
        "step=self.begins + 1000, session_log",
        (f"{WATCHERS}::test_tensorboard_has_each_step_once",),
        "A TensorBoard that is open drops what a resumed run redoes.",
    ),
    # --- jobs of a cluster
    Mutant(
        "silent_is_lost",
        "launch/attempts.py",
        '    if word == "silent":\n',
        '    if word == "silent" and ray != "RUNNING":\n',
        (f"{ATTEMPTS}::test_the_lease_decides_who_is_alive_and_ray_where_nobody_has_it",),
        "A head that has come back is not believed against the lease.",
    ),
    Mutant(
        "held_is_alive",
        "launch/attempts.py",
        '    if word == "held":\n',
        '    if word == "held" and end is None:\n',
        (f"{ATTEMPTS}::test_the_lease_decides_who_is_alive_and_ray_where_nobody_has_it",),
        "Nothing is started beside the holder of a lease.",
    ),
    Mutant(
        "attempt_once",
        "launch/attempts.py",
        '    return jobs_of(folder).put_if_absent(f"{attempt.number:08d}.json", body)',
        '    jobs_of(folder).put(f"{attempt.number:08d}.json", body)\n    return True',
        (f"{ATTEMPTS}::test_one_attempt_has_a_number",),
        "Of two that submit at once one is the next attempt.",
    ),
    Mutant(
        "supervisor_ends",
        "launch/attempts.py",
        "or barren >= BARREN:",
        "or barren > 99:",
        (f"{ATTEMPTS}::test_a_supervisor_starts_nothing_beside_what_is_alive",),
        "A run that gets nowhere is not started for ever.",
    ),
    Mutant(
        "stopped_stays",
        "launch/attempts.py",
        "    if stop or (end is not None",
        "    if (end is not None",
        (f"{ATTEMPTS}::test_a_supervisor_starts_nothing_beside_what_is_alive",),
        "What a user has stopped is not started again.",
    ),
    Mutant(
        "strangers_go_along",
        "launch/packing.py",
        "        for name, path in modules_in(Path(folder)):",
        "        for name, path in list(modules_in(Path(folder)))[:1]:",
        (f"{ATTEMPTS}::test_a_package_holds_what_a_job_imports_and_nothing_else",),
        "A stranger's recipe goes along with its neighbours.",
    ),
    Mutant(
        "toy_of_each_machine",
        "launch/inputs.py",
        "    if toy is None or not toy[2]:\n",
        "    if toy is None or toy[2]:\n",
        (f"{ATTEMPTS}::test_toy_shards_are_those_of_each_machine",),
        "Toy data is made on each machine.",
    ),
    Mutant(
        "inputs_of_each_cache",
        "launch/inputs.py",
        '    return name if found else ""',
        '    return ""',
        (f"{ATTEMPTS}::test_files_of_this_machine_go_along_and_are_there_on_a_node",),
        "A rank reads an input from its own machine's cache.",
    ),
    Mutant(
        "inputs_have_a_limit",
        "launch/inputs.py",
        "    if size > MOST:",
        "    if size > MOST * 99:",
        (f"{ATTEMPTS}::test_what_is_too_large_to_go_along_is_refused_by_name",),
        "What is too large to go along is refused.",
    ),
    Mutant(
        "password_in_address",
        "launch/address.py",
        '    if "@" in parts.netloc:',
        '    if "@@" in parts.netloc:',
        (f"{ATTEMPTS}::test_refusals",),
        "A password in an address is kept nowhere.",
    ),
    Mutant(
        "token_is_the_owners",
        "cluster/token.py",
        "os.O_EXCL, 0o600)",
        "os.O_EXCL, 0o644)",
        (f"{ATTEMPTS}::test_a_token_is_the_users_where_they_have_one",),
        "A token can be read by its owner alone.",
    ),
    Mutant(
        "silent_address",
        "cluster/jobs.py",
        "        reach(self.address)\n",
        "",
        (f"{JOBS}::test_a_wrong_address_is_answered_in_seconds",),
        "An address that is silent is answered in seconds.",
    ),
    Mutant(
        "last_line_of_a_tail",
        "launch/tail.py",
        "            part.offset += len(whole) + 1\n",
        "            part.offset += len(whole)\n",
        (f"{ATTEMPTS}::test_a_tail_gives_each_line_once",),
        "A log is shown line by line, each line once.",
    ),
    Mutant(
        "end_says_why",
        "launch/job.py",
        '        end = End(code, given_up(folder, attempt.time) if code == 1 else "")\n',
        "        end = End(code)\n",
        (f"{ATTEMPTS}::test_a_job_says_how_it_ended",),
        "A job that gave up says why in its run folder.",
    ),
    Mutant(
        "token_others_read",
        "cluster/token.py",
        "if found and path == own_file() and mode & 0o077:",
        "if found and path == own_file() and mode & 0o007:",
        (f"{ATTEMPTS}::test_a_token_is_the_users_where_they_have_one",),
        "A token that others can read is refused.",
    ),
    # --- requests to leave
    Mutant(
        "usr1-not-heard",
        "vtx_scale/data_pipeline/signals.py",
        "asks = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)",
        "asks = (signal.SIGTERM, signal.SIGINT)",
        (f"{SIGNALS}::test_the_list_of_signals",),
        "A scheduler's warning is a request to leave.",
    ),
    Mutant(
        "waits-for-data",
        LOOP,
        "            with self.control.at_once():\n                return self.loader.next()",
        "            if True:\n                return self.loader.next()",
        (f"{SIGNALS}::test_asked_to_leave[SIGUSR1-1-data]",),
        "A request to leave is followed while waiting for data.",
    ),
    Mutant(
        "waits-for-indexing",
        "vtx_scale/launch/train.py",
        'PHASES.within("start.load"), requests.at_once():\n            run = resolve_data',
        'PHASES.within("start.load"):\n            run = resolve_data',
        (f"{SIGNALS}::test_asked_to_leave[SIGHUP-1-indexing]",),
        "A request to leave is followed while indexing.",
    ),
    Mutant(
        "waits-for-the-first-step",
        LOOP,
        "anew = p.step == self.first and",
        "anew = False and",
        (f"{SIGNALS}::test_the_first_step_is_left_at_once",),
        "A request to leave is followed while compiling.",
    ),
    Mutant(
        "a-second-request-waits",
        LEAVE,
        "                    self.repeated(number)\n",
        "                    pass\n",
        (f"{SIGNALS}::test_a_second_request_ends_at_once[1-15-1]",),
        "A second request ends the run at once.",
    ),
    Mutant(
        "two-signals-of-one-request",
        LEAVE,
        "SAME_REQUEST = 0.3",
        "SAME_REQUEST = 0.0",
        (f"{SIGNALS}::test_what_comes_together_is_one_request",),
        "Signals that come together are one request.",
    ),
    Mutant(
        "patience-for-ever",
        LEAVE,
        "time.monotonic() - self._first > self.patience",
        "False",
        (f"{SIGNALS}::test_patience_ends",),
        "A process that is not free in time ends with what is committed.",
    ),
    # --- ranks that are forked
    Mutant(
        "forked-ranks-draw-alike",
        "launch/fork_ranks.py",
        'sys.modules["numpy"].random.seed()',
        "pass",
        (f"{WARM}::test_a_rank_is_as_one_that_is_a_new_python",),
        "What processes draw by chance is not what a forked rank shares with another.",
    ),
    Mutant(
        "a-forked-rank-has-waited-for-nothing",
        "launch/fork_ranks.py",
        "            PHASES.reset(asked)\n",
        "",
        (f"{WARM}::test_a_rank_is_as_one_that_is_a_new_python",),
        "Every second has a cause, also one in which a rank waited for an import.",
    ),
    Mutant(
        "a-forked-rank-misses-signals",
        "launch/fork_ranks.py",
        "        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKS)\n        code",
        "        code",
        (f"{WARM}::test_a_rank_is_as_one_that_is_a_new_python",),
        "A rank can be asked to leave, however it was started.",
    ),
    Mutant(
        "ranks-outlive-their-server",
        "launch/fork_ranks.py",
        "        die_with_parent(parent)\n",
        "",
        (
            f"{WARM}::test_a_rank_is_as_one_that_is_a_new_python",
            f"{WARM}::test_nobody_outlives_the_launcher",
        ),
        "Every rank dies with its parent.",
    ),
    Mutant(
        "forked-beside-threads",
        "launch/fork_ranks.py",
        'if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:',
        "if False:",
        (f"{WARM}::test_what_may_not_be_forked",),
        "Nothing is forked from a process that has threads.",
    ),
    Mutant(
        "forked-beside-a-device",
        "launch/fork_ranks.py",
        "if torch is not None and torch.cuda.is_initialized():",
        "if False:",
        (f"{WARM}::test_what_may_not_be_forked",),
        "Nothing is forked from a process that has a device.",
    ),
    Mutant(
        "a-dead-server-ends-the-run",
        "launch/node.py",
        "if self.warm is None or not self.warm.alive:",
        "if self.warm is None:",
        (f"{WARM}::test_a_server_that_dies_takes_its_ranks_along_and_another_is_started",),
        "A run outlives the server that its ranks are forked from.",
    ),
    Mutant(
        "asked-while-it-imports",
        "launch/warm.py",
        "elif number in ENDS:",
        "elif False:",
        (f"{WARM}::test_asked_before_it_is_ready",),
        "A request to leave does not wait for an import.",
    ),
    Mutant(
        "a-lock-in-the-fork-server",
        "data_pipeline/fork_server.py",
        "                    os.close(fd)",
        "                    pass",
        (f"{FORKS}::test_workers_are_forked_from_this_process_and_end_with_it",),
        "A lock that a process gives back is held by none of its children.",
    ),
    Mutant(
        "another-pythons-fork-server",
        "data_pipeline/fork_server.py",
        " and [*inspect.signature(main).parameters] == TAKES",
        "",
        (f"{FORKS}::test_where_it_is_otherwise_multiprocessing_starts_its_own",),
        "What is private to multiprocessing is used where it is known.",
    ),
    Mutant(
        "a-lease-is-not-renewed-after-a-fork",
        "vtx_scale/checkpoints/lease.py",
        "            self._start(self._thread)",
        "            pass",
        ("tests/vtx_scale/test_lease.py::test_it_is_renewed_again_after_a_rest",),
        "A lease is renewed for as long as it is held.",
    ),
    Mutant(
        "nobody-listens-after-a-fork",
        "vtx_scale/trainer/leave.py",
        "        finally:\n            self._start_watch()",
        "        finally:\n            pass",
        (f"{FORKS}::test_whoever_listens_for_requests_rests_for_a_fork",),
        "A request that comes while a process is forked is heard.",
    ),
    # --- runs of nothing
    Mutant(
        "a-run-of-nothing-finishes",
        CONTROL,
        "if not used and enough:",
        "if False:",
        (f"{UNUSABLE}::test_it_ends_early",),
        "A run in which nothing can be used does not finish.",
    ),
    Mutant(
        "empty-steps-count",
        LOOP,
        "        if not valid:\n",
        "        if not valid:\n            self.control.skip(step)\n",
        (f"{UNUSABLE}::test_steps_without_a_sample_are_skipped",),
        "Steps without a valid sample do not count towards system.skip_limit.",
    ),
    Mutant(
        "a-zero-for-no-loss",
        LOOP,
        "loss_value if valid else math.nan",
        "loss_value",
        (f"{UNUSABLE}::test_steps_without_a_sample_are_skipped",),
        "A step without a sample has no loss.",
    ),
    Mutant(
        "planner-rows-by-floor",
        "vtx_scale/planner/shapes.py",
        "each = -(-count // ways)",
        "each = max(1, count // ways)",
        (f"{PLANNER}::test_rows_are_those_of_torch",),
        "The planner deals rows as torch does.",
    ),
    Mutant(
        "planner-two-moments-of-a-matrix",
        "vtx_scale/planner/memory.py",
        "cut, ways, index, tp) * (each // 2)",
        "cut, ways, index, tp) * 0",
        (f"{PLANNER}::test_states_are_those_of_the_real_strategy",),
        "The planner knows the state of each optimizer.",
    ),
    Mutant(
        "planner-gathers-the-root-twice",
        "vtx_scale/planner/traffic.py",
        "micros * len(learnt.keys() - {ROOT})",
        "micros * len(learnt.keys())",
        (f"{PLANNER}::test_messages_are_those_of_the_real_strategy",),
        "The planner counts the messages that a strategy sends.",
    ),
    Mutant(
        "planner-never-forgets-a-tensor",
        "vtx_scale/planner/activations.py",
        "self.now -= self.refs.pop(key)[1]",
        "self.refs.pop(key)",
        (f"{PLANNER}::test_what_is_gone_is_not_alive",),
        "Activations are those that are alive.",
    ),
    Mutant(
        "planner-prints-what-is-refused",
        "vtx_scale/planner/plan.py",
        'found = [f"system.{fault}" for fault in system.faults()]',
        "found = []",
        (f"{PLANNER}::test_what_is_planned_is_not_refused_in_training",),
        "The planner proposes what a run takes.",
    ),
    Mutant(
        "planner-gradients-stay-on-the-gpu",
        "vtx_scale/planner/memory.py",
        'share = share / layout.ways if layout.offload == "none" else 0',
        "share = share / layout.ways",
        (f"{PLANNER}::test_what_lies_on_the_host_is_planned",),
        "What is offloaded is not counted on the GPU.",
    ),
    Mutant(
        "planner-whole-tensors-in-equal-parts",
        "vtx_scale/planner/memory.py",
        "here = [p for p, owner in zip(trained, owned, strict=True) if owner == index]",
        "here = list(trained[index::ways])",
        (f"{PLANNER}::test_states_are_those_of_the_real_strategy",),
        "The planner knows the state of each optimizer.",
    ),
    Mutant(
        "no-room-is-no-reason",
        "launch/room.py",
        "or need <= room",
        "or need <= 100 * room",
        (f"{PLANNER}::test_a_run_that_cannot_lie_in_the_memory_is_refused",),
        "A run that cannot lie in the memory is refused before anything is allocated.",
    ),
    # --- codes in place of pictures
    Mutant(
        "codes-unpickled",
        "data_pipeline/codes.py",
        '    if dtype.kind != "u" or dtype.itemsize not in (2, 4):',
        "    if dtype.hasobject:\n        np.load(io.BytesIO(body), allow_pickle=True)\n"
        '    if dtype.kind != "u" or dtype.itemsize not in (2, 4):',
        (f"{CODES}::test_pickled_arrays_are_refused_and_their_canary_unwritten",),
        "An array of objects is never unpickled.",
    ),
    Mutant(
        "codes-beyond-the-codec",
        "data_pipeline/codes.py",
        "if (most := int(codes.max())) >= vocab:",
        "if (most := int(codes.max())) > vocab:",
        (f"{CODES}::test_what_is_no_array_of_codes_is_a_bad_sample",),
        "A code that the codec has not is a bad sample.",
    ),
    Mutant(
        "encode-in-place",
        "data_pipeline/tools/encode.py",
        "        write_tar(path, samples)\n        out.put_file(name, path)",
        "        write_tar(out.root / name, samples)\n        out.put_file(name, out.root / name)",
        (f"{CODES}::test_killed_anywhere_and_run_again_gives_the_same_bytes",),
        "A shard of codes is whole or absent wherever its writer is killed.",
    ),
    Mutant(
        "encode-across-shards",
        "data_pipeline/tools/encode.py",
        "        self.steps = np.concatenate([[0], np.cumsum(-(-counts // size))])",
        "        self.steps = np.concatenate([[0], np.cumsum(np.maximum(1, counts // size))])",
        (f"{CODES}::test_encoded_shards",),
        "Every sample of a shard is encoded.",
    ),
    Mutant(
        "encode-finished-at-once",
        "data_pipeline/tools/encode.py",
        'out.put(f"{folder}/{FILE}".lstrip("/"), coding.body())',
        'out.put(f"{folder}/{FILE}".lstrip("/"), replace(coding, shards=1).body())',
        (f"{CODES}::test_killed_anywhere_and_run_again_gives_the_same_bytes",),
        "A set whose encoding ended early is refused.",
    ),
    Mutant(
        "codes-of-any-codec",
        "launch/codec.py",
        "        if coding.digest != digest:",
        "        if coding.digest != digest and known:",
        (f"{ENCODE}::test_codes_of_another_codec_or_crop_are_refused",),
        "Codes are read with the codec that they come from.",
    ),
    Mutant(
        "codes-of-any-crop",
        "launch/codec.py",
        "train is not None and train.crop != (wanted := crop_of(run.data))",
        "train is not None and train.crop == (wanted := crop_of(run.data))",
        (f"{ENCODE}::test_codes_of_another_codec_or_crop_are_refused",),
        "The crops of codes are those of the recipe.",
    ),
    Mutant(
        "codes-mixed-with-pictures",
        "launch/datasets.py",
        "if (first and alike(first)) != (other and alike(other)):",
        "if first and other and alike(first) != alike(other):",
        (f"{ENCODE}::test_sources_of_one_kind",),
        "A mix of pictures and codes is refused.",
    ),
    # --- clips
    Mutant(
        "clip-from-the-start",
        "data_pipeline/video.py",
        "        if before and before[-1]:",
        "        if not before:",
        (f"{VIDEO}::test_decoding_begins_at_the_key_frame",),
        "A clip is decoded from the key frame before it.",
    ),
    Mutant(
        "clip-without-what-is-before",
        "data_pipeline/video.py",
        "        found = self._from(0, set(wanted), use)",
        "        found = self._from(before[-1] if before else 0, set(wanted), use)",
        (f"{VIDEO}::test_frames_are_those_of_decoding_from_the_start[x264-refresh]",),
        "Where a key frame is not enough, a clip is decoded from the start.",
    ),
    Mutant(
        "clip-one-late",
        "data_pipeline/video.py",
        "first = int(u * (len(video) - span + 1))",
        "first = min(len(video) - span, 1 + int(u * (len(video) - span + 1)))",
        (f"{VIDEO}::test_frames_are_those_of_decoding_from_the_start[x264-mp4]",),
        "A clip begins where the sample's number says.",
    ),
    Mutant(
        "video-cut",
        "data_pipeline/video.py",
        "    if ends_early(body, kind):",
        "    if False:",
        (f"{VIDEO}::test_broken_videos_are_bad_samples",),
        "A video whose file ends early is masked.",
    ),
    Mutant(
        "video-of-any-size",
        "data_pipeline/video.py",
        '{"err_detect": "explode", "max_pixels": str(room)}',
        '{"err_detect": "explode"}',
        (f"{VIDEO}::test_frames_of_another_size_on_the_way_are_refused_unallocated",),
        "Frames larger than the header says are not allocated.",
    ),
    Mutant(
        "warning-of-the-batch-shell-alone",
        "cluster/manifests/slurm.py",
        'f"USR1@{job.grace}"',
        'f"B:USR1@{job.grace}"',
        (f"{MANIFESTS}::test_slurm_warns_every_task_and_not_the_batch_shell",),
        "Under Slurm every rank hears of the end and saves.",
    ),
    Mutant(
        "a-lost-rank-takes-the-others",
        "cluster/manifests/slurm.py",
        "--kill-on-bad-exit=0",
        "--kill-on-bad-exit=1",
        (f"{MANIFESTS}::test_slurm_warns_every_task_and_not_the_batch_shell",),
        "No rank is killed while it saves.",
    ),
    Mutant(
        "driver-on-the-head",
        "cluster/manifests/kuberay.py",
        '"entrypointNumCpus": 1',
        '"entrypointNumCpus": 0',
        (f"{MANIFESTS}::test_the_head_does_no_work_and_the_driver_is_not_on_it",),
        "A head that dies does not take the driver along.",
    ),
    Mutant(
        "unknown-fields-pass",
        "cluster/manifests/fields.py",
        'raise ValueError(f"{at}: no field {name}")',
        "continue",
        (f"{MANIFESTS}::test_the_table_refuses_what_it_does_not_know[misspelt]",),
        "A misspelt field of a manifest is refused.",
    ),
    Mutant(
        "tracker-hears-the-warning",
        "data_pipeline/fork_server.py",
        "    with blocked():\n        multiprocessing.resource_tracker.ensure_running()",
        "    if True:\n        multiprocessing.resource_tracker.ensure_running()",
        (
            "tests/data_pipeline/test_preload.py"
            "::test_tracker_and_fork_server_outlive_a_schedulers_warning",
        ),
        "A scheduler's warning does not end what cleans up behind the loaders.",
    ),
    # --- vtx watch and vtx report
    Mutant(
        "a-cut-file-read-on",
        "launch/tail.py",
        "if out[:known] != part.last:",
        "if False:",
        (f"{READER}::test_a_tail_of_a_file_has_its_whole_lines",),
        "A run that was cut at a resume is read again from its beginning.",
    ),
    Mutant(
        "torn-lines-shown",
        "launch/tail.py",
        'whole, newline, _ = body.rpartition(b"\\n")',
        'whole, newline, _ = body.rstrip(b"\\n"), body[-1:], b""',
        (f"{READER}::test_a_tail_of_a_file_has_its_whole_lines",),
        "A line is shown when it is whole.",
    ),
    Mutant(
        "segments-read-again",
        "launch/tail.py",
        "for name in self._names() if name not in self.parts]",
        "for name in self._names()]",
        (f"{READER}::test_only_what_is_new_is_read_and_nothing_is_written",),
        "Of a bucket only what is new is read.",
    ),
    Mutant(
        "old-steps-stay",
        "launch/columns.py",
        "if self.steps and step <= self.steps[-1]:",
        "if self.steps and step == self.steps[-1]:",
        (f"{READER}::test_a_row_takes_back_its_step_and_beyond",),
        "A step that is computed again stands in a curve once.",
    ),
    Mutant(
        "spikes-lost",
        "launch/columns.py",
        "min(part), sum(part) / len(part), max(part)",
        "min(part), sum(part) / len(part), sum(part) / len(part)",
        (f"{READER}::test_buckets_keep_lowest_and_highest",),
        "A curve of few points keeps the lowest and the highest value.",
    ),
    Mutant(
        "a-beat-of-any-age",
        "launch/run_reader.py",
        "self.changed = now if self.beat is not None else None",
        "self.changed = now",
        (f"{READER}::test_whether_it_lives_is_seen_by_this_clock_alone",),
        "That a run lives is said when its beat was seen to change.",
    ),
    Mutant(
        "mark-up-in-a-report",
        "launch/curves.py",
        "return html.escape(str(value), quote=True)",
        "return str(value)",
        (f"{REPORT}::test_nothing_that_a_run_says_becomes_mark_up",),
        "What a run says is text in its report.",
    ),
    Mutant(
        "keys-shown",
        "launch/redact.py",
        "cut = redact(text[: 4 * letters])[:letters]",
        "cut = text[:letters]",
        (f"{REPORT}::test_no_key_is_in_a_page_or_a_terminal",),
        "No key is in a report or a terminal.",
    ),
    Mutant(
        "terminal-obeys-a-log",
        "launch/redact.py",
        'c if c.isprintable() else "\\N{REPLACEMENT CHARACTER}"',
        "c",
        (f"{WATCH}::test_a_block_in_a_pipe",),
        "What a run says does not steer the terminal that shows it.",
    ),
    Mutant(
        "half-a-look-drawn",
        "launch/run_reader.py",
        "saved = steps(checkpoints_of(self.folder))",
        "self._add_lines()\n        saved = steps(checkpoints_of(self.folder))",
        (f"{READER}::test_a_look_that_fails_changes_nothing",),
        "What is drawn of a run is one look at it.",
    ),
    Mutant(
        "steps-lost-unnamed",
        "launch/summary.py",
        "reached.append(event[1])",
        "reached.append(event[0])",
        (f"{READER}::test_steps_that_the_events_name",),
        "A fault is shown with the steps that it cost.",
    ),
    Mutant(
        "silent-about-a-bucket",
        "launch/watch.py",
        "self.reason = why(e)",
        'self.reason = ""',
        (f"{WATCH}::test_a_bucket_that_does_not_answer",),
        "A bucket that does not answer is said, and asked again.",
    ),
    Mutant(
        "a-listing-is-believed-at-once",
        "vtx_scale/checkpoints/read.py",
        "if (listed and not missing) or",
        "if not missing or",
        ("tests/vtx_scale/test_living_run.py::test_a_listing_that_misses_both_is_made_once_more",),
        "A living run has always a checkpoint for its readers.",
    ),
    Mutant(
        "sockets-of-servers-stay",
        "data_pipeline/fork_server.py",
        "    if folder:\n        shutil.rmtree",
        "    if not folder:\n        shutil.rmtree",
        ("tests/surfaces/test_warm.py::test_a_run_leaves_nothing_in_the_temporary_folder[auto]",),
        "A run leaves nothing in the temporary folder.",
    ),
    Mutant(
        "a-watcher-never-sleeps",
        "vtx_scale/launch/beats.py",
        "            self.awake = now\n",
        "            pass\n",
        (
            "tests/vtx_scale/test_hangs.py"
            "::test_a_watcher_that_was_stopped_itself_gives_the_ranks_their_time_again",
        ),
        "A run that was suspended as a whole goes on.",
    ),
    Mutant(
        "a-refused-attempt-goes-on",
        "launch/attempts.py",
        "        if end is None or end.code != 2:\n            break",
        "        if True:\n            break",
        (f"{ATTEMPTS}::test_what_was_refused_is_nothing_to_go_on_with",),
        "A mistaken submission does not become the run.",
    ),
    Mutant(
        "an-earlier-end-is-this-ones",
        "vtx_scale/trainer/goodput.py",
        "start - 1.0 <= m[0] and m[2] == last.attempt]",
        "start - 1.0 <= m[0]]",
        (f"{GOODPUT}::test_the_end_of_an_attempt_says_nothing_of_the_one_right_behind_it",),
        "Of two hangs one behind the other both are detection.",
    ),
    Mutant(
        "an-inner-phase-counts-twice",
        "vtx_scale/distributed/phases.py",
        "            self._turned = self._since = now\n",
        "            self._since = now\n",
        ("tests/vtx_scale/test_phases.py::test_an_inner_phase_takes_its_time_from_the_outer",),
        "Every second of a process belongs to one phase.",
    ),
    Mutant(
        "a-process-begins-at-its-imports",
        "vtx_scale/distributed/phases.py",
        "    return now - max(age, 0.0) if age < OLDEST else now",
        "    return now",
        ("tests/vtx_scale/test_phases.py::test_the_time_before_the_first_line_counts_as_import",),
        "The start of a process counts from its beginning.",
    ),
    Mutant(
        "whoever-waits-is-stuck",
        "vtx_scale/launch/hangs.py",
        "    others = [b for b in beats if not b.inside or b.still]",
        "    others = list(beats)",
        (f"{HANGS}::test_the_stuck_one_is_named",),
        "The stuck rank is the one that is in no collective.",
    ),
    Mutant(
        "slow-data-are-a-hang",
        "vtx_scale/launch/hangs.py",
        "    if others and not guilty:\n        return None\n",
        "    guilty = guilty or others\n",
        (f"{HANGS}::test_the_stuck_one_is_named",),
        "A rank that waits for its data is not stuck.",
    ),
    Mutant(
        "torchs-collectives-are-no-progress",
        "vtx_scale/distributed/phases.py",
        "            if count > self._count and self.counter is not None:\n",
        "            if False:\n",
        (f"{HANGS}::test_ranks_that_come_on_are_never_found_to_hang",),
        "Ranks whose counts differ and that come on do not hang.",
    ),
    Mutant(
        "first-steps-have-the-limit-of-any",
        "vtx_scale/launch/hangs.py",
        'if beat.phase == "step" and not beat.usual else beat.phase',
        "if False else beat.phase",
        (f"{HANGS}::test_the_stuck_one_is_named",),
        "A step may take long before it is known what is usual.",
    ),
    Mutant(
        "evaluations-have-the-limit-of-a-step",
        "vtx_scale/launch/hangs.py",
        '"evaluate": 10.0',
        '"evaluate": 1.0',
        (f"{HANGS}::test_the_stuck_one_is_named",),
        "An evaluation may take longer than a step.",
    ),
    Mutant(
        "a-stopped-process-is-as-any",
        "vtx_scale/launch/beats.py",
        '        return state == "T"\n',
        "        return False\n",
        (f"{HANGS}::test_a_process_shows_where_it_stands",),
        "A process that is stopped is known by the system's word.",
    ),
    Mutant(
        "overlaps-count-twice",
        "vtx_scale/trainer/goodput.py",
        "            stop = min(line.stop, end)\n",
        "            stop = line.stop\n",
        (f"{GOODPUT}::test_an_overlap_belongs_to_the_newer_attempt",),
        "What two attempts wrote of one time belongs to the newer.",
    ),
    Mutant(
        "redone-steps-count",
        "vtx_scale/trainer/goodput.py",
        "            share = lost if cause in REDONE else 0.0",
        "            share = 0.0",
        (f"{GOODPUT}::test_steps_that_were_done_again_are_lost",),
        "Steps that are done again are lost time.",
    ),
    Mutant(
        "a-stop-is-a-fault",
        "vtx_scale/trainer/goodput.py",
        "ASKED = (0, 75, 130)",
        "ASKED = (0,)",
        (f"{GOODPUT}::test_what_is_between_two_attempts",),
        "The time after an end that was asked for is no downtime.",
    ),
    Mutant(
        "one-slow-window-is-enough",
        "vtx_scale/trainer/stragglers.py",
        "RUNNING = 3",
        "RUNNING = 1",
        ("tests/vtx_scale/test_stragglers.py::test_it_is_named_once_with_its_ratio",),
        "A straggler is slow in three windows running.",
    ),
    Mutant(
        "lost-tasks-stay-lost",
        "cluster/ray_tasks.py",
        "                    task = give(unit)\n                continue",
        "                    task = give(unit)\n                return None",
        ("tests/cluster/test_data_tasks.py::test_a_process_killed_in_the_middle_of_a_task",),
        "What a killed process was to write on a cluster is written by another.",
    ),
    Mutant(
        "news-of-ray-among-results",
        "cluster/ray_tasks.py",
        "        ours = threading.current_thread() is self.thread",
        "        ours = True",
        ("tests/cluster/test_data_tasks.py::test_a_process_killed_in_the_middle_of_a_task",),
        "Standard output has results alone.",
    ),
    Mutant(
        "numbers-from-0-in-each-shard",
        "data_pipeline/tools/verify.py",
        "        firsts = accumulate(counts, initial=0)",
        "        firsts = repeat(0)",
        ("tests/data_pipeline/test_pool.py::test_verify_says_the_same[reader]",),
        "A reader judges a sample with the sample's own numbers, wherever that is done.",
    ),
    Mutant(
        "layout-of-the-last-shard-alone",
        "data_pipeline/layout.py",
        "            setattr(self, name, getattr(self, name) + getattr(later, name))",
        "            setattr(self, name, getattr(later, name))",
        ("tests/data_pipeline/test_pool.py::test_verify_says_the_same[members]",),
        "What is said of a set counts all of its shards.",
    ),
    Mutant(
        "attempt-not-named",
        "cluster/manifests/kuberay.py",
        '"vtx_attempt": str(cluster.attempt)',
        '"vtx_attempt": "1"',
        (f"{MANIFESTS}::test_the_recipe_goes_into_the_run_folder_and_a_second_one_is_the_next",),
        "A RayJob that is no longer the newest attempt at its run says so and leaves.",
    ),
    Mutant(
        "synonym-not-looked-up",
        "launch/nearest.py",
        'template = KEYS.get(name) or KEYS.get(last, "")',
        'template = ""',
        (f"{TYPED}::test_a_wrong_line_is_led_home",),
        "A key of another trainer's is led home.",
    ),
    Mutant(
        "recipe-taken-for-a-value",
        "launch/typed.py",
        'return word.lower() in ("true", "false") if flag else not is_recipe(word)',
        "return not is_recipe(word)",
        (f"{TYPED}::test_an_option_without_a_value_leaves_the_next_word_alone",),
        "A flag of another trainer's does not swallow the word behind it.",
    ),
    Mutant(
        "dashes-blame-the-neighbour",
        "launch/cli.py",
        "        typed.check(line)\n",
        "        pass\n",
        (f"{TYPED}::test_a_wrong_line_is_led_home",),
        "An option that is none is answered itself, not the word beside it.",
    ),
    Mutant(
        "cells-are-markup",
        "launch/tables.py",
        "markup=False, emoji=False",
        "emoji=False",
        (f"{TYPED}::test_what_stands_in_a_table_is_no_markup",),
        "Captions and [extras] are printed as they are.",
    ),
)


def changed(body: str, mutant: Mutant) -> str:
    """The text of the file with the change. Raises LookupError where an old text is not there
    exactly once.
    """
    for old, new in mutant.edits:
        if (count := body.count(old)) != 1:
            raise LookupError(f"{mutant.name}: {old!r} stands {count} times in {mutant.file}")
        body = body.replace(old, new)
    return body


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree, for as long as it is used."""
    with tempfile.TemporaryDirectory(prefix="vtx-mutants-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        yield tree


@contextmanager
def broken(tree: Path, mutant: Mutant) -> Iterator[None]:
    """The tree with the change in it."""
    path = tree / mutant.file
    body = path.read_text()
    path.write_text(changed(body, mutant))
    try:
        yield
    finally:
        path.write_text(body)


def run(tree: Path, tests: Iterable[str]) -> Outcome:
    """Run tests on the copy's code up to the first that fails."""
    report = tree.parent / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    # subprocesses of the tests import the copy too; no bytecode, because a change may leave a
    # file's size and its time to the second as they were
    env = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        subprocess.run(
            [*command, f"--junitxml={report}", *tests],
            cwd=tree,
            env=env,
            capture_output=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return Outcome("crashed", message=f"no end after {PATIENCE} s")
    return outcome(report.read_text()) if report.exists() else Outcome("none")


def outcome(report: str) -> Outcome:
    """What a JUnit report of pytest says."""
    passed, skipped = 0, ""
    for case in ElementTree.fromstring(report).iter("testcase"):
        where = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        bad = [x for x in case if x.tag in ("failure", "error")]
        for x in bad:
            message = x.get("message", "")
            well = x.tag == "failure" and ASSERTED.match(message) and not CRASH.search(message)
            return Outcome("asserted" if well else "crashed", where, message)
        if (skip := case.find("skipped")) is not None:
            skipped = skip.get("message", "")
        else:
            passed += 1
    if passed:
        return Outcome("passed")
    return Outcome("skipped", message=skipped) if skipped else Outcome("none")


@dataclass
class Trials:
    """Mutants tried on one copy of the tree; the tests of each set are seen to pass once."""

    tree: Path
    sound: dict[tuple[str, ...], Outcome] = field(default_factory=dict)

    def verdict(self, mutant: Mutant) -> tuple[str, str]:
        """("dies", the test), ("skipped", why), or what is wrong: "lives", "crashes", "unsound",
        "misfit"; and a word on it.
        """
        if mutant.tests not in self.sound:
            self.sound[mutant.tests] = run(self.tree, mutant.tests)
        before = self.sound[mutant.tests]
        if before.kind == "skipped":
            return "skipped", before.message
        if before.kind != "passed":
            return "unsound", f"{before.where} {before.kind} without the change: {before.message}"
        try:
            with broken(self.tree, mutant):
                after = run(self.tree, mutant.tests)
        except LookupError as e:
            return "misfit", str(e)
        if after.kind == "asserted":
            return "dies", after.where
        if after.kind in ("passed", "skipped"):
            return "lives", mutant.promise
        return "crashes", f"{after.where} {after.message}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args(arguments)
    unknown = set(asked.only) - {m.name for m in MUTANTS}
    if unknown:
        parser.error(f"no mutant {', '.join(sorted(unknown))}: --list shows them")
    chosen = [m for m in MUTANTS if not asked.only or m.name in asked.only]
    if asked.list:
        print("\n".join(f"{m.name:34}{m.file:38}{m.promise}" for m in chosen))
        return 0
    wrong = 0
    with copied() as tree:
        trials = Trials(tree)
        for mutant in chosen:
            began = time.monotonic()
            verdict, word = trials.verdict(mutant)
            wrong += verdict not in ("dies", "skipped")
            seconds = time.monotonic() - began
            line = " ".join(word.split())[:200]
            print(f"{verdict:8} {seconds:5.1f} s  {mutant.name:34} {line}", flush=True)
    print(f"{len(chosen)} mutants, {wrong} of them not dead")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
