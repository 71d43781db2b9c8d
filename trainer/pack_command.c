/* pack_command.c - `effnet pack`: an image folder as one HDF5 file, and the check of such a file. */
#include "trainer/commands.h"

#include "data/pack.h"

en_status en_command_pack(const en_options *o)
{
    en_pack_report r;
    if (o->verify) return en_pack_verify(o->operand[0], (int)o->workers, o->json, &r);
    const en_pack_config c = { .source = o->operand[0] };
    return en_pack(&c, &r);
}
