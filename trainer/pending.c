/* pending.c - stands in for what is not written yet.  Weak, and last in the library: the real one wins; then its line goes. */
#include "trainer/commands.h"

#include <stdio.h>

#define PENDING(name)                                                                                    \
    __attribute__((weak)) en_status en_command_##name(const en_options *o)                               \
    {                                                                                                    \
        (void)o;                                                                                         \
        return en_raise(EN_ENOTSUP, __FILE__, __LINE__, __func__, "effnet %s is not in this build yet", #name); \
    }
PENDING(train)
PENDING(eval)
PENDING(predict)
PENDING(bench)

__attribute__((weak)) en_status en_plan_describe(const en_options *o, const en_model *m, void *stream)
{
    (void)o, (void)m;
    fprintf(stream, "activations: the plan is not in this build yet\n");
    return EN_OK;
}
