/* bugs.h - planted mistakes, each with its repaired twin: the harness has to find the first and to be silent on the second. */
#ifndef BUGS_H
#define BUGS_H
#ifdef __cplusplus
extern "C" {
#endif
struct bug {
    const char *name;
    int (*run)(int planted);                       /* 0: all went well, and the result is right */
};
extern const struct bug kernel_bugs[], host_bugs[];          /* each ends with a name that is NULL */
#ifdef __cplusplus
}
#endif
#endif
