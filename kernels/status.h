/* status.h - how every function of this program fails.
 *
 * A library function returns an en_status and never exits.  The first frame that notices says what is wrong
 * (EN_REQUIRE), each frame above adds what it was doing (EN_TRY), and main() prints the trace once:
 *
 *     [rank 3/8 node7] bad data: /d/train/cat/7.jpg is not an image (4096 zero bytes)
 *         while decoding (loader.c:88), while opening the training split (train.c:41)
 *
 * The trace is kept per thread.  A worker thread hands its trace over as text (en_error_text) and the thread that takes
 * it raises it again.  Nothing here allocates: a trace longer than its buffer loses its outermost frames. */
#ifndef EN_STATUS_H
#define EN_STATUS_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    EN_OK = 0,
    EN_EINVAL,     /* our own mistake: an argument that no caller should pass          exit 1 */
    EN_ENOMEM,     /* memory                                                            exit 1 */
    EN_EIO,        /* the operating system said no: open, read, write, a full disk      exit 1 */
    EN_ENOTSUP,    /* this build or machine cannot                                      exit 1 */
    EN_EUSAGE,     /* the command line                                                  exit 2 */
    EN_EDATA,      /* refused data or checkpoint: missing, damaged, foreign             exit 3 */
    EN_EDIVERGED,  /* the loss or the weights are no longer finite                      exit 4 */
    EN_EPEER,      /* another rank failed, died or stalled                              exit 5 */
    EN_ESTOPPED    /* stopped on request, checkpoint written                            exit 75 */
} en_status;

const char *en_status_name(en_status s);      /* "bad data"; never NULL                      */
int         en_status_exit_code(en_status s); /* the table above, as cli documents it        */

/* Adds a frame to this thread's trace and returns `code` (so that `return en_raise(...)` reads well). */
en_status en_raise(en_status code, const char *file, int line, const char *func, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

const char *en_error_text(void);    /* the trace, innermost first, one line a frame; "" when none; valid until the next raise */
const char *en_error_message(void); /* the innermost message alone                                                            */
void        en_error_clear(void);

/* The user's mistake or the world's: checked in every build. */
#define EN_REQUIRE(cond, code, ...)                                                                                    \
    do { if (!(cond)) return en_raise((code), __FILE__, __LINE__, __func__, __VA_ARGS__); } while (0)

/* Calls, and on failure adds what this frame was doing. */
#define EN_TRY(call, ...)                                                                                              \
    do { en_status s_ = (call); if (s_ != EN_OK) return en_raise(s_, __FILE__, __LINE__, __func__, __VA_ARGS__); } while (0)

/* The same for a function that owns something: needs `en_status status` and the label `out:`. */
#define EN_TRY_OUT(call, ...)                                                                                          \
    do { status = (call);                                                                                              \
         if (status != EN_OK) { en_raise(status, __FILE__, __LINE__, __func__, __VA_ARGS__); goto out; } } while (0)
#define EN_REQUIRE_OUT(cond, code, ...)                                                                                \
    do { if (!(cond)) { status = en_raise((code), __FILE__, __LINE__, __func__, __VA_ARGS__); goto out; } } while (0)

#ifdef __cplusplus
}
#endif

#endif
