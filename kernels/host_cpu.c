#include "host.h"

#if defined(__x86_64__)
bool en_runs_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool en_runs_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
bool en_runs_sse4(void) { return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"); }
#else
bool en_runs_avx512(void) { return false; }
bool en_runs_avx2(void)   { return false; }
bool en_runs_sse4(void)   { return false; }
#endif
