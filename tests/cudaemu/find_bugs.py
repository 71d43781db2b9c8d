#!/usr/bin/env python3
"""find_bugs.py PROGRAM plain|asan|race - every planted bug is found where this table says so, and no repaired one anywhere.

A bug counts as found when the run with it does not exit with 0: the harness or a sanitizer stopped it, a call failed, or the
result was wrong.  `says` has to occur in what was printed, so that it was found for the right reason.
"""
import os
import re
import subprocess
import sys

ANY, PLAIN, ASAN, RACE = "plain asan race", "plain", "asan", "race"
STOPPED = r"CUDAEMU ERROR|AddressSanitizer|runtime error"
ORDER, LATE, MIXED, PROTECT = "CUDAEMU_ORDER=random", "CUDAEMU_STREAMS=late", "CUDAEMU_STREAMS=random", "CUDAEMU_PROTECT=1"
BUGS = [  # name, the builds that must find it, the environment it takes, says
    ("read_past_the_end", ANY, "", STOPPED),
    ("write_past_the_end", ANY, "", STOPPED),
    ("past_a_shared_array", "asan race", "", r"out of bounds|use-after-poison|outside every shared array"),
    ("past_dynamic_shared", ANY, "", STOPPED),
    ("too_much_shared", ANY, "", "refused"),
    ("misaligned_vector", ASAN, "", "misaligned"),
    ("missing_barrier", RACE, "", "DATA RACE"),
    ("missing_barrier", "plain asan", ORDER, "WRONG RESULT"),
    ("missing_barrier_in_a_loop", RACE, "", "DATA RACE"),
    ("missing_barrier_in_a_loop", "plain asan", ORDER, "WRONG RESULT"),
    ("divergent_barrier", ANY, "", "divergent __syncthreads"),
    ("early_return", ANY, "", "early return"),
    ("missing_atomic", RACE, "", "DATA RACE"),
    ("missing_copy_wait", ANY, "", "WRONG RESULT"),
    ("shuffle_from_an_absent_lane", ANY, "", "does not take part"),
    ("full_mask_in_a_branch", ANY, "", "exited without taking part"),
    ("uninitialised_shared", ANY, "", "WRONG RESULT"),
    ("unwritten_output", ANY, "", "WRONG RESULT"),
    ("missing_syncwarp", RACE, "", "DATA RACE"),
    ("missing_syncwarp", "plain asan", ORDER, "WRONG RESULT"),
    ("launch_bounds", ANY, "", "__launch_bounds__"),
    ("race_between_blocks", RACE, "", "between blocks"),
    ("host_pointer", RACE, "", "host pointer"),
    ("use_after_free", ANY, "", STOPPED),
    ("missing_event", ANY, LATE, "WRONG RESULT"),
    ("event_recorded_too_early", ANY, LATE, "WRONG RESULT"),
    ("result_read_too_early", ANY, LATE, "WRONG RESULT"),
    ("result_read_too_early", ANY, MIXED, "WRONG RESULT"),
    ("buffer_reused_too_early", ANY, LATE, "WRONG RESULT"),
    ("copy_beside_a_stream", ANY, LATE, "WRONG RESULT"),
    ("host_reads_device_memory", "plain race", PROTECT, "host code touches device memory"),
    ("wrong_direction", ANY, "", "direction"),
    ("copy_past_the_end", ANY, "", "past an allocation"),
    ("freed_as_something_else", ANY, "", "not allocated so"),
    ("allocation_in_a_capture", ANY, "", "cudaMalloc ends a stream capture"),
    ("waiting_in_a_capture", ANY, "", "cudaStreamSynchronize ends a stream capture"),
    ("pageable_copy_in_a_capture", ANY, "", "pageable"),
    ("fork_without_join", ANY, "", "WRONG RESULT"),
    ("missing_edge_in_a_graph", ANY, MIXED, "WRONG RESULT"),
]
WAYS = ["", ORDER + " " + LATE, "CUDAEMU_ORDER=reverse " + MIXED + " CUDAEMU_SEED=3 " + PROTECT]


def run(program, name, which, settings):
    env = {k: v for k, v in os.environ.items() if not k.startswith("CUDAEMU_")}
    env.update(s.split("=") for s in settings.split())
    p = subprocess.run([program, name, which], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return p.returncode, p.stdout


def main():
    program, build = sys.argv[1:]
    wrong = []
    for name, builds, settings, says in BUGS:
        if build in builds.split():
            rc, out = run(program, name, "planted", settings)
            if rc == 0 or not re.search(says, out):
                wrong.append("NOT FOUND: %s %s planted   (exit %d, wants '%s')\n%s" % (settings, name, rc, says, out))
    for name in sorted({b[0] for b in BUGS}):
        for settings in WAYS:
            rc, out = run(program, name, "repaired", settings)
            if rc:
                wrong.append("FALSE ALARM: %s %s repaired   (exit %d)\n%s" % (settings, name, rc, out))
    print("\n".join(wrong))
    print("%d bugs, %d mistakes of the harness" % (len({b[0] for b in BUGS}), len(wrong)))
    sys.exit(bool(wrong))


main()
