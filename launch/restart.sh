# shellcheck shell=bash disable=SC2034
# restart.sh - when is a training that ended worth starting again?  Sourced by run and by slurm.sbatch.
#
# The program goes on from the newest whole checkpoint of its --run, so starting again is the same command.  Two things must not
# happen: a restart of what ends for a reason that stays (wrong usage, refused data, divergence), and restarts without an end.
# Progress is a newer checkpoint: lines of metrics behind the last one are lost with the process that wrote them.
#
#     run_folder ARGUMENT...      what --run says among the program's arguments; empty: nothing
#     newest_step RUN             step of the newest checkpoint, -1: none; of a search (RUN/<candidate>/checkpoints) those of all together
#     ended_how CODE              "killed: ..." in a few words
#     worth_again CODE STEP       by the exit code, and by whether there is a checkpoint (STEP >= 0) to go on from
#     await PID                   wait that signals do not cut short

run_folder() {
    local argument previous='' folder=''
    for argument in "$@"; do
        if [[ $previous == --run ]]; then folder=$argument; fi
        if [[ $argument == --run=* ]]; then folder=${argument#--run=}; fi
        previous=$argument
    done
    printf '%s' "$folder"
}

newest_step() {
    local file folder step all=-1
    local -A newest=()
    for file in "$1"/checkpoints/step-*.h5 "$1"/*/checkpoints/step-*.h5; do
        folder=${file%/*} step=${file##*/step-} step=${step%.h5}
        [[ $step =~ ^[0-9]{1,18}$ ]] || continue
        step=$((10#$step))
        if ((step > ${newest[$folder]:--1})); then newest[$folder]=$step; fi
    done
    for step in "${newest[@]}"; do all=$(((all < 0 ? 0 : all) + step)); done
    echo "$all"
}

ended_how() {
    case $1 in
        0) echo 'done' ;; 1) echo 'failed' ;; 2) echo 'wrong usage' ;; 3) echo 'refused data or checkpoint' ;; 4) echo 'diverged' ;;
        5) echo 'lost or stalled rank' ;; 75) echo 'stopped on request, checkpoint written' ;;
        134) echo 'aborted' ;; 135) echo 'bus error' ;; 137) echo 'killed: out of memory?' ;; 139) echo 'crashed' ;;
        143) echo 'ended by TERM' ;; 205) echo 'lost a node' ;; 255) echo 'a node was not reached' ;; *) echo 'unexpected' ;;
    esac
}

worth_again() {
    case $1 in
        0 | 2 | 3 | 4 | 126 | 127 | 130) return 1 ;;              # done, or it would end like this again; 130: Ctrl-C
        5 | 75 | 134 | 135 | 137 | 139 | 143 | 205) return 0 ;;   # somebody else's doing
        *) (($2 >= 0)) ;;                                         # a message: only what has worked before
    esac
}

# await PID: its exit code into `code`, however many signals come meanwhile.  The traps of the caller set came=1.
await() {
    local got
    code=127
    while :; do
        came=0 got=0
        wait "$1" || got=$?
        if ((got != 127)); then code=$got; fi                     # 127: it was waited for already
        ((came)) || break
    done
}
