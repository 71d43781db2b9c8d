#include "data/data.h"
#include "trainer/commands.h"

#include <inttypes.h>
#include <stdio.h>

en_status en_command_synth(const en_options *o)
{
    const char *dir = o->operand[0];
    EN_TRY(en_synth_write(dir, (int)o->synth_classes, (int)o->train_per_class, (int)o->val_per_class, (int)o->synth_size,
                          (uint64_t)o->seed), "making %s", dir);
    printf("%s: %" PRId64 " classes, %" PRId64 " pictures to train on, %" PRId64 " to validate, %" PRId64 " x %" PRId64 " pixels\n"
           "next: effnet train --data %s --run RUN --image-size %" PRId64 " --epochs 10\n",
           dir, o->synth_classes, o->synth_classes * o->train_per_class, o->synth_classes * o->val_per_class, o->synth_size,
           o->synth_size, dir, o->synth_size);
    return EN_OK;
}
