# shellcheck shell=bash disable=SC1091,SC2034
# common.sh - what the launch scripts share: packages, building, saying things.  Sourced by bash, after `set -euo pipefail`.
#
#     need_packages PACKAGE...         installs what is missing (Debian, Ubuntu), or says what to type and ends with 1
#     want_fuzzer                      clang with libFuzzer, where it can be had without a question; never fails
#     build_tree DIR TARGET [-D...]    configures and builds; safe to call again, and from two shells at once
#     cuda_headers                     sets cuda_include, for the tests of CUDA code on machines without a toolkit
#     has_gpu                          there is an NVIDIA GPU with its driver
#     mpi_environment                  for what calls mpirun without launch/run
#     cores                            how many this process may use

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program_packages=(gcc libc6-dev cmake ninja-build libopenmpi-dev openmpi-bin libhdf5-dev libjpeg-dev libpng-dev zlib1g-dev)
test_packages=(libcmocka-dev g++ python3 iproute2)      # C++ and Python: CUDA sources are tested on the processor (tests/cudaemu); ip: tests/cluster

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then bold=$'\e[1m' red=$'\e[31m' plain=$'\e[0m'; else bold='' red='' plain=''; fi
say()  { printf '%s==>%s %s\n' "$bold" "$plain" "$*"; }
note() { printf '    %s\n' "$*"; }
die()  { printf '%s%s: %s%s\n' "$red" "$(basename "$0")" "$*" "$plain" >&2; exit 1; }
usage_error() { printf '%s: %s (%s --help)\n' "$(basename "$0")" "$*" "$0" >&2; exit 2; }

cores() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc; }

# Open MPI refuses root, and binds two ranks to one core each: here for whatever calls mpirun without launch/run (ctest).
mpi_environment() {
    export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_rmaps_base_oversubscribe=1                          # 4
    export PRTE_MCA_hwloc_default_binding_policy=none PRTE_MCA_rmaps_default_mapping_policy=:OVERSUBSCRIBE      # 5
    if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
}

distribution() {                               # "debian 12"
    ( . /etc/os-release 2>/dev/null && printf '%s %s\n' "${ID:-unknown}" "${VERSION_ID:-}" ) || echo unknown
}

package_is_installed() { [[ $(dpkg-query -W -f '${Status}' "$1" 2>/dev/null) == *' installed' ]]; }

need_packages() {
    local missing=() package as_root=() log
    if ! command -v dpkg-query >/dev/null; then
        note "$(distribution): not Debian or Ubuntu, so packages are yours to install: a C compiler, CMake 3.25, Ninja or make,"
        note "Open MPI, HDF5, libjpeg, libpng, zlib with their headers; for the tests cmocka, a C++ compiler and Python 3."
        return
    fi
    for package in "$@"; do package_is_installed "$package" || missing+=("$package"); done
    ((${#missing[@]})) || return 0
    case $(distribution) in
        'debian 12' | 'debian 13' | 'ubuntu 24.04') ;;
        *) note "$(distribution) is not among the tested ones (Debian 12 and 13, Ubuntu 24.04); trying all the same" ;;
    esac
    local install="apt-get install --no-install-recommends ${missing[*]}"
    if ((EUID != 0)); then
        if ! sudo -n true 2>/dev/null; then
            printf '%s: packages are missing, and installing them needs a password. Please run\n\n    sudo %s\n\nand then this again.\n' \
                   "$(basename "$0")" "$install" >&2
            exit 1
        fi
        as_root=(sudo -n)
    fi
    say "installing ${missing[*]}"
    log=$(mktemp)
    if ! { "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300 update -qq &&
           "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq \
               --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: ${missing[*]}"
    fi
    rm -f "$log"
}

# Fuzzing is the one thing that wants clang; the package of its run-time libraries has a version in its name where there is no
# libclang-rt-dev.  Without them the tests replay the corpora and leave the search out.
has_libfuzzer() {
    local out status=0
    out=$(mktemp)
    printf 'int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n) { return p && n ? 0 : 0; }\n' |
        clang -fsanitize=fuzzer,address,undefined -x c - -o "$out" >/dev/null 2>&1 || status=1
    rm -f "$out"
    return $status
}

want_fuzzer() {
    local version
    if has_libfuzzer; then return 0; fi
    if ((EUID == 0)) || sudo -n true 2>/dev/null; then
        (need_packages clang libclang-rt-dev) 2>/dev/null || (need_packages clang) 2>/dev/null || true
        if ! has_libfuzzer && version=$(clang -dumpversion 2>/dev/null); then
            (need_packages "libclang-rt-${version%%.*}-dev") 2>/dev/null || true
        fi
    fi
    has_libfuzzer || note "no clang with libFuzzer here (packages clang and libclang-rt-dev): the fuzz targets only replay their corpora"
}

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# Three of NVIDIA's header packages, 7 MB, by pip; no toolkit, nothing outside build/.  Without a network the tests of CUDA code are
# left out.  cuda_include: for -DEN_CUDA_INCLUDE, empty where a toolkit has the headers.
cuda_headers() {
    local place folder=$root/build/cuda-headers
    cuda_include=''
    for place in "${CUDA_HOME:-/usr/local/cuda}" "${CUDA_PATH:-/usr/local/cuda}" /usr/local /usr; do
        [[ ! -f $place/include/cuda_runtime.h ]] || return 0
    done
    if [[ ! -f $folder/nvidia/cu13/include/cuda_runtime.h ]]; then
        python3 -m pip --version >/dev/null 2>&1 || need_packages python3-pip
        say "fetching CUDA's headers (pip, 7 MB)"
        mkdir -p "$root/build"
        if ! python3 -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 20 --no-deps --upgrade --target "$folder" \
                'nvidia-cuda-runtime==13.*' 'nvidia-cuda-crt==13.*' 'nvidia-cuda-cccl==13.*' >"$root/build/cuda-headers.log" 2>&1; then
            rm -rf "$folder"
            note "no CUDA toolkit here and its headers cannot be fetched (build/cuda-headers.log): the tests of CUDA code are left out"
            return 0
        fi
    fi
    cuda_include=$folder/nvidia/cu13/include
}

build_tree() {
    local tree=$1 target=$2 generator=()
    shift 2
    mkdir -p "$tree"
    (
        flock 9                                # a second build of this folder waits, then finds everything done
        log=$tree/build.log
        if [[ -f $tree/CMakeCache.txt ]]; then  # a tree that was copied or moved takes its cache along: begin again
            grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$tree/CMakeCache.txt" ||
                rm -rf "$tree/CMakeCache.txt" "$tree/CMakeFiles"
        fi
        if [[ ! -f $tree/CMakeCache.txt ]] && command -v ninja >/dev/null; then generator=(-G Ninja); fi
        if ! { cmake -S "$root" -B "$tree" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release "$@" &&
               cmake --build "$tree" --target "$target" --parallel "${EN_JOBS:-$(cores)}"; } >"$log" 2>&1 9>&-; then
            grep -nE -A12 'error|Error|FAILED' "$log" | head -n 60 >&2 || true
            die "the build failed; everything it said is in $log"
        fi
    ) 9>"$tree/.lock" || exit 1
}
